"""Trying a camera out, for `edge-agent check` and `init`."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from edge_agent.address import kind_of, without_credentials
from edge_agent.capture import CameraState, Capture, Clock
from edge_agent.config import CameraSettings
from edge_agent.frame import Frame
from edge_agent.sources import OPEN_TIMEOUT_S, StreamInfo
from eyeline.errors import EyelineError


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What `probe` found.

    fps: measured frames a second; problem: one line with the mend, None when all is well.
    """

    camera: str
    source: str
    problem: str | None
    fps: float | None = None
    info: StreamInfo | None = None
    substream: SourceReport | None = None

    @property
    def ok(self) -> bool:
        """Whether frames come, from the substream too where there is one."""
        return self.problem is None and (self.substream is None or self.substream.ok)


def probe(settings: CameraSettings, clock: Clock, *, seconds: float = 2.0) -> SourceReport:
    """Open a camera and measure it for about `seconds`; problems are in the report, nothing is raised."""
    main = _probe_one(settings, clock, seconds)
    if settings.substream is None:
        return main
    second = settings.model_copy(update={"source": settings.substream, "substream": None})
    return dataclasses.replace(main, substream=_probe_one(second, clock, seconds))


def _probe_one(settings: CameraSettings, clock: Clock, seconds: float) -> SourceReport:
    shown = without_credentials(settings.source)
    trial = settings.model_copy(update={"substream": None, "realtime": True, "loop": True})
    try:
        kind_of(settings.source)
        settings.secret_password()
    except EyelineError as problem:
        return SourceReport(settings.name, shown, str(problem))
    problems: list[str] = []
    bad = {CameraState.FAILED, CameraState.RECONNECTING}
    capture = Capture(trial, clock, lambda state, message: problems.append(message) if state in bad else None)
    times: list[int] = []
    capture.start()
    try:
        # What piled up while the stream was opened comes in a burst, which measures nothing.
        until, settled = time.monotonic() + 2 * OPEN_TIMEOUT_S, 0.0
        while not problems and time.monotonic() < until and not capture.is_over:
            found = capture.read(0.1)
            if isinstance(found, Frame):
                if not settled:
                    settled = time.monotonic() + 0.3
                    until = settled + seconds
                if time.monotonic() >= settled:
                    times.append(found.monotonic_ns)
    finally:
        capture.stop()
    info = capture.stats().info
    if problems:
        return SourceReport(settings.name, shown, problems[0], info=info)
    if info is None:
        return SourceReport(settings.name, shown, f"{shown}: no picture within {2 * OPEN_TIMEOUT_S:g} s")
    span_s = (times[-1] - times[0]) / 1e9 if len(times) > 1 else 0.0
    fps = (len(times) - 1) / span_s if span_s else None
    return SourceReport(settings.name, shown, None, fps, info)
