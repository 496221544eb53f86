"""The hand-over from a camera's reading thread to its processing thread: bounded, and losses are told.

A live camera must never wait for its consumer, so a full hand-over loses its oldest frame; the consumer
receives the loss as a `Dropped` range in place of the frames, so that every sequence gets an answer.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from edge_agent.frame import Frame

OVERLOAD = "overload"


@dataclass(frozen=True, slots=True)
class CaptureTime:
    """When a frame was captured, on the device's two clocks, in nanoseconds."""

    monotonic_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """Frames `first` to `last`, both included, that the source presented and nobody processed.

    reason: stable and snake_case.
    """

    first: int
    last: int
    first_capture: CaptureTime
    last_capture: CaptureTime
    reason: str

    @property
    def frames(self) -> int:
        """How many frames."""
        return self.last - self.first + 1


class Handoff:
    """A queue of at most `capacity` frames for one writer and one reader.

    lossy: whether a full queue loses its oldest frame (live sources) or makes the writer wait.
    """

    def __init__(self, capacity: int, *, lossy: bool) -> None:
        self._capacity = capacity
        self._lossy = lossy
        self._changed = threading.Condition()
        self._frames: deque[Frame] = deque()
        # What is lost was always the oldest, so one range in front of the queue says it all.
        self._dropped: Dropped | None = None
        self._closed = False
        self.dropped_frames = 0

    def put(self, frame: Frame) -> bool:
        """Hand a frame over; False when it was refused, which is after `close`."""
        with self._changed:
            if not self._lossy:
                self._changed.wait_for(lambda: self._closed or len(self._frames) < self._capacity)
            if self._closed:
                return False
            self._frames.append(frame)
            if len(self._frames) > self._capacity:
                self._lose(self._frames.popleft())
            self._changed.notify_all()
            return True

    def get(self, timeout: float) -> Frame | Dropped | None:
        """The next frame or loss, in the order of sequences; None when none came within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._frames and self._dropped is None:
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    return None
                self._changed.wait(left)
            if self._dropped is not None:
                dropped, self._dropped = self._dropped, None
                return dropped
            frame = self._frames.popleft()
            self._changed.notify_all()
            behind = len(self._frames) if self._lossy else 0
            return replace(frame, behind=behind) if behind else frame

    def close(self) -> None:
        """No more frames will come: waiting writers and readers return; what is queued can still be read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def is_drained(self) -> bool:
        """Closed, and everything was read."""
        with self._changed:
            return self._closed and not self._frames and self._dropped is None

    def _lose(self, frame: Frame) -> None:
        self.dropped_frames += 1
        here = CaptureTime(frame.monotonic_ns, frame.wall_ns)
        if self._dropped is None:
            self._dropped = Dropped(frame.sequence, frame.sequence, here, here, OVERLOAD)
        else:
            self._dropped = replace(self._dropped, last=frame.sequence, last_capture=here)
        if frame.opened:
            # The first frame that is processed after a reopening has to say so.
            self._frames[0] = replace(self._frames[0], opened=True)
