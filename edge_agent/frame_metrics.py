"""What the frame path counts, for `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge

STAGE_CPU: Final = Counter(
    "eyeline_edge_stage_cpu_seconds",
    "CPU time of the frame path by stage, in seconds, all cameras; a model's own extra threads not included.",
    ["stage"],
)
FRAMES: Final = Counter(
    "eyeline_edge_frames",
    "Captured frames by what became of them: sent (with pixels), edge (answered here), idle, skipped or "
    "dropped.",
    ["camera", "outcome"],
)
DROPPED: Final = Counter(
    "eyeline_edge_frames_dropped", "Captured frames answered as dropped, by reason.", ["camera", "reason"]
)
CHAINS: Final = Counter(
    "eyeline_edge_chains", "Chains started (keyframes sent), by why they were.", ["camera", "reason"]
)
REDACTION_FAILED: Final = Gauge(
    "eyeline_edge_redaction_failed_ratio",
    "1 while no pixels of the camera leave because they cannot be redacted, else 0.",
    ["camera"],
)
EDGE_LOOKS: Final = Counter(
    "eyeline_edge_looks",
    "Looks of the edge model at frames to be sent, by what came of them: answer (it stands), carry (sent "
    "with the pixels, to be compared) or pixels (sent without).",
    ["camera", "verdict"],
)
PUBLISHED_BYTES: Final = Counter(
    "eyeline_edge_published_bytes", "Bytes of envelopes that the spool took.", ["camera"]
)

CALIBRATION_BYTES: Final = Counter(
    "eyeline_edge_calibration_bytes", "Bytes of calibration samples that the hub took.", ["camera"]
)
RUNG_F1: Final = Gauge(
    "eyeline_edge_rung_expected_f1_ratio",
    "Accuracy of the rung in force, as calibration measured it against the cloud's model; else 0.",
    ["camera"],
)
RUNG_BELOW: Final = Gauge(
    "eyeline_edge_rung_below_home_count",
    "Rungs of its frontier that pressure has moved the camera below the one that meets its target.",
    ["camera"],
)

OUTCOMES: Final = ("sent", "edge", "idle", "skipped", "dropped")
STAGES: Final = ("gate", "plan", "redact", "detect", "encode", "batch", "publish")


class StageClock:
    """Adds up the calling thread's CPU time by stage, in nanoseconds, and exports it."""

    def __init__(self) -> None:
        self.spent_ns = dict.fromkeys(STAGES, 0)
        self._counters = {stage: STAGE_CPU.labels(stage) for stage in STAGES}

    def add(self, name: str, spent_ns: int) -> None:
        """Count what another thread spent for a stage."""
        self.spent_ns[name] += spent_ns
        self._counters[name].inc(spent_ns / 1e9)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        start_ns = time.thread_time_ns()
        try:
            yield
        finally:
            self.add(name, time.thread_time_ns() - start_ns)


class Outcomes:
    """Counts what became of a camera's frames, and exports it."""

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self.frames = dict.fromkeys(OUTCOMES, 0)
        self.dropped: dict[str, int] = {}
        self._counters = {name: FRAMES.labels(camera, name) for name in OUTCOMES}

    def add(self, outcome: str, frames: int = 1) -> None:
        """One of `OUTCOMES`."""
        self.frames[outcome] += frames
        self._counters[outcome].inc(frames)

    def drop(self, reason: str, frames: int) -> bool:
        """Dropped, and why; true for the first time with that reason."""
        first = reason not in self.dropped
        self.dropped[reason] = self.dropped.get(reason, 0) + frames
        DROPPED.labels(self._camera, reason).inc(frames)
        self.add("dropped", frames)
        return first


class Pace:
    """Frames a second that come, smoothed over the last ten or so; pauses of 10 s and more do not count."""

    def __init__(self) -> None:
        self._interval_s = 0.0
        self._last_ns = 0

    @property
    def fps(self) -> float:
        """0 before the second frame."""
        return 1 / self._interval_s if self._interval_s > 0 else 0.0

    def frame(self, now_ns: int) -> None:
        """One came, on the monotonic clock."""
        step_s = (now_ns - self._last_ns) / 1e9
        if self._last_ns and 0 < step_s < 10:
            self._interval_s += (step_s - self._interval_s) * (0.1 if self._interval_s else 1.0)
        self._last_ns = now_ns
