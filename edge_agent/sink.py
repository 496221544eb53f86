"""From a camera's thread to the agent's event loop: a short queue, so that pressure reaches the camera."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from eyeline.v1 import frame_pb2 as pb

_CAPACITY: Final = 8


class LoopSink:
    """Envelopes of one camera on their way into the spool.

    `ready` and `offer` belong to the camera's thread; `run` and `drained` to the event loop. keep: takes one
    envelope; it is awaited before the next.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, keep: Callable[[pb.FrameEnvelope], Awaitable[bool]]
    ) -> None:
        self._loop, self._keep = loop, keep
        self._queue: deque[pb.FrameEnvelope] = deque()
        self._lock = threading.Lock()
        self._added = asyncio.Event()
        self._busy = False
        # The newest envelope of this run, for reports that no later one will carry.
        self.last: pb.FrameEnvelope | None = None

    def ready(self) -> bool:
        """Whether another envelope is taken now."""
        with self._lock:
            return len(self._queue) < _CAPACITY

    def offer(self, envelope: pb.FrameEnvelope) -> None:
        """Hand an envelope over; check `ready` first."""
        with self._lock:
            self._queue.append(envelope)
        try:
            self._loop.call_soon_threadsafe(self._added.set)
        except RuntimeError:
            return  # the agent is gone; so is the frame

    @property
    def drained(self) -> bool:
        """Whether everything handed over was kept or reported."""
        with self._lock:
            return not self._queue and not self._busy

    async def run(self) -> None:
        """Keep envelopes in order, for ever."""
        while True:
            with self._lock:
                envelope = self._queue.popleft() if self._queue else None
                self._busy = envelope is not None
            if envelope is None:
                self._added.clear()
                if not self._queue:
                    await self._added.wait()
                continue
            self.last = envelope
            await self._keep(envelope)
