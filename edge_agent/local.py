"""What a camera answers by itself while the cloud is away: the edge model's looks, and the frames between.

An outage is never "no objects": each frame is answered by what the edge model saw, by what it saw last, or by
a reason why nothing can be said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_agent.batch import Moment, edge_answer
from edge_agent.config import DetectSettings
from edge_agent.frame import Frame
from edge_agent.gate import GateReason
from edge_agent.opinion import Look
from edge_agent.plan import Pace
from eyeline.v1 import frame_pb2 as pb

NO_MODEL: Final = "no_edge_model"
MODEL_FAILED: Final = "edge_model_failed"


@dataclass(frozen=True, slots=True)
class LocalItem:
    """Frames answered here.

    range: of kind EDGE, SKIPPED (the answer before it stands) or DROPPED (nothing can be said, `reason` says
    why). size: width and height of the captured frame, in pixels.
    """

    range: pb.FrameRange
    size: tuple[int, int]


class LocalAnswers:
    """One camera's, in its thread: every frame of an outage is in exactly one item, in order.

    emit: takes items; must not block.
    """

    def __init__(
        self, settings: DetectSettings, emit: Callable[[LocalItem], None], *, heartbeat_s: float
    ) -> None:
        self._settings, self._emit = settings, emit
        self._heartbeat_ns = int(heartbeat_s * 1e9)
        self._pace = Pace()
        self._asked = self._standing = False
        self._open: pb.FrameRange | None = None
        self._size = (0, 0)

    def wants(self, now_ns: int, *, away: bool, gate_open: bool) -> bool:
        """Whether to look at this frame: at moving pictures, at most so often, and first of all."""
        if not away or not self._settings.enabled:
            return False
        first = not self._standing
        return (gate_open or first) and self._pace.pick(
            now_ns, self._settings.outage_fps, force=not self._asked
        )

    def frame(
        self, frame: Frame, gate_reason: GateReason, look: Look | None, *, away: bool, reason: str = ""
    ) -> None:
        """Answer a frame, if nobody else does. reason: why the edge model must not answer it, if so."""
        if not away:
            self._flush()
            self._asked = self._standing = False
            return
        self._size, self._asked = frame.size, True
        when = Moment(frame.monotonic_ns, frame.wall_ns)
        if reason or (look is None and not self._standing):
            self._standing = False
            missing = MODEL_FAILED if self._settings.enabled else NO_MODEL
            self._extend(pb.RANGE_KIND_DROPPED, gate_reason, frame.sequence, when, reason or missing)
        elif look is None:
            self._extend(pb.RANGE_KIND_SKIPPED, gate_reason, frame.sequence, when)
        else:
            self._standing = True
            self._flush()
            seen = self._range(pb.RANGE_KIND_EDGE, gate_reason, frame.sequence, when)
            seen.edge.CopyFrom(edge_answer(look.detections))
            self._emit(LocalItem(seen, self._size))

    def dropped(self, first: tuple[int, Moment], last: tuple[int, Moment], reason: str) -> None:
        """Frames that nobody could look at, in an outage."""
        if not self._asked:
            return
        self._flush()
        lost = self._range(pb.RANGE_KIND_DROPPED, GateReason.OFF, first[0], first[1], reason)
        lost.last_sequence = last[0]
        lost.last_capture.CopyFrom(last[1].to_item_proto())
        self._emit(LocalItem(lost, self._size))

    def _extend(
        self,
        kind: pb.RangeKind.ValueType,
        gate_reason: GateReason,
        sequence: int,
        when: Moment,
        reason: str = "",
    ) -> None:
        """Add a frame to the open range, or begin another one; long ones go out."""
        held = self._open
        if held is None or (held.kind, held.reason) != (kind, reason):
            self._flush()
            held = self._open = self._range(kind, gate_reason, sequence, when, reason)
        held.last_sequence = sequence
        held.last_capture.CopyFrom(when.to_item_proto())
        if when.monotonic_ns - held.first_capture.monotonic_ns >= self._heartbeat_ns:
            self._flush()

    def _flush(self) -> None:
        if self._open is not None:
            self._emit(LocalItem(self._open, self._size))
            self._open = None

    @staticmethod
    def _range(
        kind: pb.RangeKind.ValueType, gate_reason: GateReason, sequence: int, when: Moment, reason: str = ""
    ) -> pb.FrameRange:
        return pb.FrameRange(
            first_sequence=sequence,
            last_sequence=sequence,
            first_capture=when.to_item_proto(),
            last_capture=when.to_item_proto(),
            kind=kind,
            gate_reason=gate_reason.value,
            reason=reason,
        )
