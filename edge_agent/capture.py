"""The first stage: one camera, read in threads of its own, as numbered and timestamped frames.

A supervisor thread opens sessions one after another. A session is a thread that reads one opened source until
it ends, fails or is abandoned. FFmpeg's own time-outs end most stalls; a read that hangs nevertheless (in a
driver, say) cannot be interrupted, so the supervisor leaves such a session behind and opens the camera anew.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import structlog

from edge_agent.address import without_credentials
from edge_agent.config import CameraSettings
from edge_agent.errors import SourceUnavailable
from edge_agent.frame import Frame
from edge_agent.handoff import CaptureTime, Dropped, Handoff
from edge_agent.pacing import Backoff, Pacer
from edge_agent.sources import OPEN_TIMEOUT_S, Shot, Source, StreamInfo, open_source
from edge_agent.substream import Substream
from edge_agent.yardstick import Yardstick
from eyeline.errors import EyelineError
from eyeline.v1 import device_pb2

__all__ = ["CameraState", "Capture", "CaptureStats", "CaptureTime", "Dropped"]

QUEUE_FRAMES = 4
# The supervisor leaves FFmpeg's own time-out so much room to act first.
GRACE_S = 0.5
# After a stream was good for so long, the next failure is a first one again.
STEADY_S = 10.0
# A camera that needs a person is tried again all the same: the person may mend the camera, not the agent.
FAILED_RETRY_S = 60.0
STOP_TIMEOUT_S = 2.0
_FPS_WINDOW_S = 5.0

_log = structlog.get_logger(__name__)


class CameraState(Enum):
    """As in `eyeline.v1.CameraState`."""

    STARTING = device_pb2.CAMERA_STATE_STARTING
    LIVE = device_pb2.CAMERA_STATE_LIVE
    RECONNECTING = device_pb2.CAMERA_STATE_RECONNECTING
    ENDED = device_pb2.CAMERA_STATE_ENDED
    FAILED = device_pb2.CAMERA_STATE_FAILED


class Clock(Protocol):
    """The device's two clocks, in nanoseconds; the monotonic one is `time.monotonic_ns`."""

    def monotonic_ns(self) -> int: ...

    def wall_ns(self) -> int: ...


OnState = Callable[[CameraState, str], None]


@dataclass(frozen=True, slots=True)
class CaptureStats:
    """One camera's numbers since start. fps: presented frames a second over the last seconds."""

    state: CameraState
    message: str
    frames_captured: int
    frames_dropped: int
    last_sequence: int
    reconnects: int
    fps: float
    info: StreamInfo | None
    yardstick: Yardstick


class Capture:
    """Runs one camera.

    Live sources, and recordings played in real time, lose their oldest unread frame when `read` is too slow,
    and `read` tells the loss; recordings with `realtime: false` wait instead. Sequences go on over
    reconnects.
    """

    def __init__(
        self,
        settings: CameraSettings,
        clock: Clock,
        on_state: OnState | None = None,
        *,
        queue_frames: int = QUEUE_FRAMES,
        backoff: Callable[[], Backoff] = Backoff,
        opener: Callable[..., Source] = open_source,
        on_frame: Callable[[Frame], None] = lambda _frame: None,
    ) -> None:
        """on_state: told every change of state with one line for a person, from a thread of the capture.

        on_frame: told of every frame that the source presented, before anybody else has it.
        opener: called as `open_source` is.
        """
        self._settings = settings
        self._clock = clock
        self._on_state = on_state
        self._backoff = backoff()
        self._opener = opener
        self._on_frame = on_frame
        self._log = _log.bind(camera=settings.name)
        self._shown = without_credentials(settings.source)
        self._paced = settings.realtime and not settings.is_live
        self._handoff = Handoff(queue_frames, lossy=settings.is_live or settings.realtime)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._sequence = 0
        self._last_captured_ns = 0
        self._reconnects = 0
        self._recent: deque[int] = deque(maxlen=256)
        self._info: StreamInfo | None = None
        self._yardstick = Yardstick()
        self._state, self._message = CameraState.STARTING, f"opening {self._shown}"
        self._substream: Substream | None = None
        if settings.substream is not None:
            address = settings.substream
            self._substream = Substream(
                settings.name, lambda: self._opener(settings, address=address), backoff()
            )
        self._supervisor = threading.Thread(
            target=self._supervise, name=f"capture-{settings.name}", daemon=True
        )

    def start(self) -> None:
        """Begin; returns at once."""
        if self._substream is not None:
            self._substream.start()
        self._supervisor.start()

    def read(self, timeout: float) -> Frame | Dropped | None:
        """The next frame, or the frames lost before it; None when none came within `timeout` seconds."""
        return self._handoff.get(timeout)

    def stop(self) -> None:
        """Stop; frames already handed over can still be read. Returns within a few seconds."""
        self._stop.set()
        self._handoff.close()
        if self._supervisor.ident is not None:
            self._supervisor.join(2 * STOP_TIMEOUT_S)
        if self._substream is not None and self._supervisor.ident is not None:
            self._substream.stop(STOP_TIMEOUT_S)

    @property
    def is_over(self) -> bool:
        """No more frames will come (played to its end, failed for good, or stopped), and all were read."""
        return self._handoff.is_drained

    def stats(self) -> CaptureStats:
        """The camera's numbers now."""
        with self._lock:
            since = time.monotonic_ns() - _FPS_WINDOW_S * 1e9
            recent = [at for at in self._recent if at > since]
            span_s = (recent[-1] - recent[0]) / 1e9 if len(recent) > 1 else 0.0
            return CaptureStats(
                state=self._state,
                message=self._message,
                frames_captured=self._sequence,
                frames_dropped=self._handoff.dropped_frames,
                last_sequence=self._sequence,
                reconnects=self._reconnects,
                fps=(len(recent) - 1) / span_s if span_s else 0.0,
                info=self._info,
                yardstick=dataclasses.replace(self._yardstick),
            )

    def present(self, session: _Session, shot: Shot, captured_ns: int) -> None:
        """Number a session's picture and hand it over; an abandoned session's are ignored."""
        gate_picture = self._substream.nearest(shot.arrived_ns) if self._substream is not None else None
        with self._lock:
            if session is not self._session:
                return
            # Pictures that were reordered by the decoder arrived in another order than they were taken.
            captured_ns = self._last_captured_ns = max(captured_ns, self._last_captured_ns)
            wall_ns = self._clock.wall_ns() - (self._clock.monotonic_ns() - captured_ns)
            opened = session.frames == 0
            session.frames += 1
            self._sequence += 1
            self._recent.append(captured_ns)
            frame = Frame(self._sequence, captured_ns, wall_ns, shot.picture, opened, gate_picture, shot.own)
            if opened:
                self._info = session.info
        self._on_frame(frame)
        self._yardstick.add(shot.picture, shot.coded_bytes)
        if opened:
            self._tell(CameraState.LIVE, _describe(session.info))
        if not self._handoff.put(frame):
            with self._lock:
                # Stopped meanwhile: nobody will answer this number, so it was never given.
                self._sequence -= 1

    def _supervise(self) -> None:
        try:
            while not self._stop.is_set():
                session = _Session(self, self._settings, self._opener, self._stop, paced=self._paced)
                with self._lock:
                    self._session = session
                problem = session.run(self._settings.stall_timeout_s + GRACE_S)
                with self._lock:
                    self._session = None
                if self._stop.is_set():
                    return
                if problem is None:
                    self._tell(CameraState.ENDED, f"{self._shown}: played to its end")
                    return
                delay_s = self._after(problem, session)
                if delay_s is None:
                    return
                self._stop.wait(delay_s)
        finally:
            self._handoff.close()

    def _after(self, problem: EyelineError, session: _Session) -> float | None:
        """Tell what went wrong; the seconds until the next attempt, None when there is none."""
        if session.lasted_s > STEADY_S:
            self._backoff.reset()
        was_good = self._sequence > 0
        if problem.retryable or (was_good and self._settings.is_live):
            # What worked once does so again: a camera that starts up refuses much that it grants later.
            self._tell(CameraState.RECONNECTING, str(problem))
            with self._lock:
                self._reconnects += 1
            return self._backoff()
        self._tell(CameraState.FAILED, str(problem))
        return FAILED_RETRY_S if self._settings.is_live else None

    def _tell(self, state: CameraState, message: str) -> None:
        with self._lock:
            if (state, message) == (self._state, self._message):
                return
            self._state, self._message = state, message
        well = state in {CameraState.STARTING, CameraState.LIVE, CameraState.ENDED}
        log = self._log.info if well else self._log.warning
        log("camera_state", state=state.name.lower(), message=message)
        if self._on_state is not None:
            self._on_state(state, message)


class _Session:
    """One opening of the source, read in a thread that can be left behind."""

    def __init__(
        self,
        capture: Capture,
        settings: CameraSettings,
        opener: Callable[..., Source],
        stop: threading.Event,
        *,
        paced: bool,
    ) -> None:
        self.frames = 0
        self.info: StreamInfo | None = None
        self._capture = capture
        self._settings = settings
        self._opener = opener
        self._stop = stop
        self._pacer = Pacer() if paced else None
        self._source: Source | None = None
        self._problem: EyelineError | None = None
        self._started_ns = time.monotonic_ns()
        # Since when the source has been asked for a picture; None while this thread does something else.
        self._asking_since_ns: int | None = None
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"session-{settings.name}", daemon=True)

    @property
    def lasted_s(self) -> float:
        """Seconds since it began."""
        return (time.monotonic_ns() - self._started_ns) / 1e9

    def run(self, stall_s: float) -> EyelineError | None:
        """Read until the source ends (None), fails, stalls for `stall_s`, or the capture is stopped."""
        self._thread.start()
        while True:
            self._thread.join(0.1)
            if not self._thread.is_alive():
                return self._problem
            if self._stop.is_set():
                self._thread.join(STOP_TIMEOUT_S)
                return None
            if self._is_stalled(stall_s):
                self._abandoned.set()
                shown = without_credentials(self._settings.source)
                return SourceUnavailable(f"{shown}: nothing came for {stall_s - GRACE_S:g} s")

    def _is_stalled(self, stall_s: float) -> bool:
        now = time.monotonic_ns()
        source, since = self._source, self._asking_since_ns
        if source is None:
            return now - self._started_ns > max(stall_s, OPEN_TIMEOUT_S + GRACE_S) * 1e9
        return since is not None and now - max(since, source.progress_ns) > stall_s * 1e9

    def _read(self) -> None:
        try:
            source = self._opener(self._settings)
            try:
                self.info = source.info
                self._source = source
                self._pass_on(source)
            finally:
                source.close()
        except EyelineError as problem:
            self._problem = problem
        except Exception as problem:  # noqa: BLE001 - one bad camera never stops the agent
            _log.exception("capture_bug", camera=self._settings.name)
            shown = without_credentials(self._settings.source)
            self._problem = SourceUnavailable(f"{shown}: reading failed ({type(problem).__name__})")

    def _pass_on(self, source: Source) -> None:
        shots = source.shots()
        while not self._stop.is_set() and not self._abandoned.is_set():
            self._asking_since_ns = time.monotonic_ns()
            shot = next(shots, None)
            self._asking_since_ns = None
            if shot is None:
                return
            if self._pacer is not None:
                captured_ns = self._pacer.wait(shot.media_s, self._stop)
                if self._stop.is_set():
                    return
            else:
                captured_ns = shot.arrived_ns
            self._capture.present(self, shot, captured_ns)


def _describe(info: StreamInfo | None) -> str:
    if info is None:
        return "frames come"
    decoder = f"{info.hardware} decoder" if info.hardware is not None else "software decoder"
    return f"{info.width}x{info.height} {info.codec}, {decoder}"
