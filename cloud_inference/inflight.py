"""How many requests a server gets at a time: as many as it answers promptly.

More in flight than a server works on only wait in its queue, and when they wait past their deadline they are
asked again, which makes an overload worse. So the limit falls when answers take longer than a target and
rises again while they do not (additive increase, multiplicative decrease: Chiu and Jain, 1989). It begins low
and doubles until it is first cut: a full hub must not drown a slow server before its first answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

_TARGET_S: Final = 1.0
# Fewer would leave a server that batches idle between batches.
_LEAST: Final = 8
_CUT: Final = 0.7


class InFlight:
    """Places for requests, handed out first come, first served; at most `most`, and `first` to begin with."""

    def __init__(self, most: int, *, first: int | None = None, target_s: float = _TARGET_S) -> None:
        self._most, self._target_s = most, target_s
        self._limit = float(most if first is None else min(first, most))
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._cut = False
        self._cut_s = -1e9

    @property
    def limit(self) -> int:
        """Places there are now."""
        return int(self._limit)

    @property
    def used(self) -> int:
        """Places that are taken now."""
        return self._used

    async def acquire(self) -> None:
        """Take a place, as soon as there is one."""
        if not self._waiting and self._used < self.limit:
            self._used += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give a place back."""
        self._used -= 1
        while self._waiting and self._used < self.limit:
            place = self._waiting.popleft()
            if not place.done():
                self._used += 1
                place.set_result(None)

    def answered(self, took_s: float) -> None:
        """A request was answered after so long."""
        if took_s > self._target_s:
            self._reduce(took_s)
        elif self._used >= self.limit - 1:
            step = 1 / self._limit if self._cut else 1.0
            self._limit = min(float(self._most), self._limit + step)

    def failed(self, took_s: float) -> None:
        """A request was not answered, and given up after so long."""
        if took_s > self._target_s:
            self._reduce(took_s)

    def _reduce(self, took_s: float) -> None:
        # What was sent before the last reduction says nothing of it.
        now = time.monotonic()
        if now - took_s >= self._cut_s:
            self._cut, self._cut_s = True, now
            # Places that nobody had are no measure of what was too much.
            used = min(self._limit, max(self._used, 1))
            self._limit = max(float(min(_LEAST, self._most)), used * _CUT)
