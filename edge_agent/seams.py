"""What a camera's pipeline needs of its neighbours, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edge_agent.frame import Frame
from edge_agent.handoff import Dropped
from edge_agent.opinion import Look
from eyeline.v1 import frame_pb2 as pb


class Source(Protocol):
    """What the pipeline needs of capture."""

    @property
    def ended(self) -> bool:
        """Whether no frame will come any more, and all were read."""
        ...

    def read(self, timeout_s: float) -> Frame | Dropped | None:
        """The next frame, or frames that capture had to drop; None when the time is up."""
        ...


class EdgeDetector(Protocol):
    """What the pipeline needs of the edge model."""

    def look(self, frame: Frame) -> Look:
        """Objects in source pixels, and what may be one."""
        ...


class Sink(Protocol):
    """What the pipeline sees of delivery. Neither call blocks."""

    def ready(self) -> bool:
        """Whether another envelope is welcome."""
        ...

    def offer(self, envelope: pb.FrameEnvelope) -> None:
        """Hand over; only after `ready()` said yes."""
        ...


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a camera's frames so far."""

    captured: int
    sent: int
    edge: int
    idle: int
    skipped: int
    dropped: Mapping[str, int]
    chains: int
    last_sequence: int
    rung: str
    rung_reason: str
    rung_standing: tuple[float, int]
    size: tuple[int, int]
    capture_fps: float
    stage_cpu_ns: Mapping[str, int]
