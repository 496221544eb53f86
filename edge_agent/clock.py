"""How this device's clock relates to the hub's.

The hub is asked for its time now and then, and the samples with the shortest round trip count (the clock
filter of NTP, RFC 5905). Samples are kept against the monotonic clock, so a jump of the wall clock shows in
the very next estimate, without asking again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from edge_agent.claim import parse_time_ns
from edge_agent.link import Link
from eyeline.errors import BusError
from eyeline.subjects import ASKED
from eyeline.v1 import frame_pb2 as pb

_log = structlog.get_logger()

# A quartz clock is good to 50 parts in a million; twice that bounds two of them.
_DRIFT: Final = 100e-6
_SAMPLES: Final = 32
_BURST: Final = 6
# An exchange takes 1.2 KB.
_FRUGAL_BURST: Final = 2
_BURST_EVERY_S: Final = 0.2
_EVERY_S: Final = 8.0
# A change of the wall clock that is worth a line in the log.
_JUMP_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Sample:
    monotonic_ns: int
    # Hub wall clock minus our monotonic clock.
    difference_ns: int
    round_trip_ns: int

    def uncertainty_ns(self, now_ns: int) -> int:
        return self.round_trip_ns // 2 + int(max(0, now_ns - self.monotonic_ns) * _DRIFT) + 1


class HubClock:
    """Estimate of the hub's wall clock; `add` takes one answer of the hub in."""

    def __init__(
        self,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._monotonic_ns, self._wall_ns = monotonic_ns, wall_ns
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)
        self._wall_difference_ns = wall_ns() - monotonic_ns()

    def add(self, sent_ns: int, hub_wall_ns: int, received_ns: int) -> None:
        """The hub's clock read hub_wall_ns between two readings of our monotonic clock."""
        middle = (sent_ns + received_ns) // 2
        sample = _Sample(received_ns, hub_wall_ns - middle, max(0, received_ns - sent_ns))
        best = self._best()
        if best is not None:
            apart = abs(sample.difference_ns - best.difference_ns)
            if apart > sample.uncertainty_ns(received_ns) + best.uncertainty_ns(received_ns):
                # They cannot both be right: the hub's clock was set, or we talk to another hub.
                _log.warning(
                    "hub_clock_changed", by_ms=round((sample.difference_ns - best.difference_ns) / 1e6)
                )
                self._samples.clear()
        self._samples.append(sample)

    def _best(self) -> _Sample | None:
        now = self._monotonic_ns()
        return min(self._samples, key=lambda sample: sample.uncertainty_ns(now), default=None)

    def estimate(self) -> pb.ClockEstimate:
        """Offset and its uncertainty, now; both 0 before the hub ever answered."""
        best = self._best()
        if best is None:
            return pb.ClockEstimate()
        now = self._monotonic_ns()
        offset = best.difference_ns + now - self._wall_ns()
        return pb.ClockEstimate(offset_ns=offset, uncertainty_ns=best.uncertainty_ns(now))

    def estimate_at(self, moment: pb.CaptureTime) -> pb.ClockEstimate:
        """Offset as it was at an earlier moment of this run; both 0 before the hub ever answered."""
        best = self._best()
        if best is None:
            return pb.ClockEstimate()
        offset = best.difference_ns + moment.monotonic_ns - moment.wall_ns
        apart_ns = abs(best.monotonic_ns - moment.monotonic_ns)
        return pb.ClockEstimate(
            offset_ns=offset, uncertainty_ns=best.round_trip_ns // 2 + int(apart_ns * _DRIFT) + 1
        )

    def hub_now_ns(self) -> int:
        """The hub's wall clock, as far as known, else our own."""
        best = self._best()
        return self._wall_ns() if best is None else best.difference_ns + self._monotonic_ns()

    def wall_jump_ns(self) -> int:
        """How far the device's wall clock was set since the last call, against the monotonic clock."""
        difference = self._wall_ns() - self._monotonic_ns()
        jump, self._wall_difference_ns = difference - self._wall_difference_ns, difference
        return jump


async def follow(clock: HubClock, hub: Link, *, frugal: bool = False) -> None:
    """Ask the hub for its time, for ever: often after connecting, then now and then.

    frugal: not so often, where bytes count.
    """
    burst = _FRUGAL_BURST if frugal else _BURST
    while True:
        session = await hub.ready()
        asked = 0
        while not session.closed.is_set():
            sent = time.monotonic_ns()
            try:
                answer = await session.api(f"STREAM.INFO.{ASKED}")
            except BusError:
                answer = {}
            received = time.monotonic_ns()
            hub_ns = parse_time_ns(str(answer.get("ts", "")))
            if hub_ns:
                clock.add(sent, hub_ns, received)
                asked += 1
            jump = clock.wall_jump_ns()
            if abs(jump) > _JUMP_NS:
                _log.warning("wall_clock_jumped", by_ms=round(jump / 1e6))
            try:
                async with asyncio.timeout(_BURST_EVERY_S if asked < burst else _EVERY_S):
                    await session.closed.wait()
            except TimeoutError:
                continue
