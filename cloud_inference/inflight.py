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
# One at work and one that waits: a server so slow that these take long batches nothing.
_LEAST: Final = 2
_CUT: Final = 0.7


class InFlight:
    """Places for requests, handed out first come, first served; at most `most`, and `first` to begin with.

    Those who come late wait behind all others, and have half of the places at most.
    """

    def __init__(self, most: int, *, first: int | None = None, target_s: float = _TARGET_S) -> None:
        self._most, self._target_s = most, target_s
        self._limit = float(most if first is None else min(first, most))
        self._used = self._used_late = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waiting_late: deque[asyncio.Future[None]] = deque()
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

    async def acquire(self, *, late: bool = False) -> None:
        """Take a place, as soon as there is one."""
        waiting = self._waiting_late if late else self._waiting
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(place)
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(late=late)
            raise

    def release(self, *, late: bool = False) -> None:
        """Give a place back."""
        self._used -= 1
        self._used_late -= late
        self._hand_out()

    def _hand_out(self) -> None:
        while self._used < self.limit:
            late = not self._waiting
            if late and (not self._waiting_late or self._used_late >= max(1, self.limit // 2)):
                return
            place = (self._waiting_late if late else self._waiting).popleft()
            if not place.done():
                self._used += 1
                self._used_late += late
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
