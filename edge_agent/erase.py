"""Erasing from this device's spool what the operator wants erased: whole chains, reported as dropped.

The wishes come with the desired configuration, so that a device which was away for a month hears of them
before anything of its backlog matters. Each is tried until nothing of it is found, and frames of its time can
no longer be on their way into the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from edge_agent.errors import SpoolError
from edge_agent.keep import Keeper
from edge_agent.segments import Segment
from edge_agent.spool import Spool
from eyeline.capture_time import captured_span
from eyeline.errors import BusError
from eyeline.v1 import device_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

_log = structlog.get_logger()

_EVERY_S: Final = 1.0
REASON: Final = "erased"
# Frames wait at most so long for company before they are spooled.
_BATCHED_NS: Final = 70 * 1_000_000_000
_SLACK_NS: Final = 1_000_000_000

ClockAt = Callable[[Epoch, pb.CaptureTime], pb.ClockEstimate]


class Eraser:
    """Carries the wishes out.

    hub_now_ns: the hub's clock; clock_at: an estimate where an envelope has none.
    """

    def __init__(
        self,
        spool: Spool,
        keeper: Keeper,
        *,
        hub_now_ns: Callable[[], int],
        clock_at: ClockAt,
        changed: Callable[[], None] = lambda: None,
        every_s: float = _EVERY_S,
    ) -> None:
        self._spool, self._keeper, self._clock_at = spool, keeper, clock_at
        self._hub_now_ns, self._changed, self._every_s = hub_now_ns, changed, every_s
        self._wanted: dict[str, device_pb2.Erasure] = {}
        self._told: dict[str, device_pb2.ErasureStatus] = {}
        self._news = asyncio.Event()

    def want(self, erasures: Iterable[device_pb2.Erasure]) -> None:
        """Take over what is wanted now."""
        self._wanted = {one.id: one for one in erasures}
        self._told = {key: told for key, told in self._told.items() if key in self._wanted}
        self._news.set()

    def status(self) -> list[device_pb2.ErasureStatus]:
        """What was done about each."""
        return list(self._told.values())

    async def run(self) -> None:
        """Work, for ever."""
        while True:
            open_ = [one for one in self._wanted.values() if not self._is_done(one)]
            for one in open_:
                with contextlib.suppress(BusError, SpoolError):
                    await self._try(one)
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s if open_ else None):
                    await self._news.wait()

    def _is_done(self, wanted: device_pb2.Erasure) -> bool:
        return wanted.id in self._told and self._told[wanted.id].done

    async def _try(self, wanted: device_pb2.Erasure) -> None:
        told = self._told.setdefault(wanted.id, device_pb2.ErasureStatus(id=wanted.id))
        clean = True
        index = self._spool.index(wanted.camera)
        for segment in index.waiting():
            if not await self._touches(wanted, segment):
                continue
            if segment.busy:
                clean = False  # on its way to the hub, where it is erased as well
                continue
            messages = segment.messages
            if await self._keeper.purge(index, segment, REASON, overwrite=True):
                told.messages += messages
            else:
                clean = False
        if clean and self._hub_now_ns() > wanted.to_ns + _BATCHED_NS:
            told.done = True
        elif clean:
            # What is not spooled yet was captured after the last message that is.
            told.done = self._passed(wanted)
        if told.done:
            _log.info("erased", camera=wanted.camera, id=wanted.id, messages=told.messages)
            self._changed()

    def _passed(self, wanted: device_pb2.Erasure) -> bool:
        newest = self._keeper.camera(wanted.camera).newest
        return newest is not None and captured_span(self._timed(newest))[0] >= wanted.to_ns

    async def _touches(self, wanted: device_pb2.Erasure, segment: Segment) -> bool:
        async for _, data in self._spool.payloads_of(wanted.camera, segment):
            first_ns, last_ns = captured_span(self._timed(pb.FrameEnvelope.FromString(data)))
            unknown = not first_ns
            if unknown or (last_ns + _SLACK_NS >= wanted.from_ns and first_ns - _SLACK_NS < wanted.to_ns):
                return True
        return False

    def _timed(self, envelope: pb.FrameEnvelope) -> pb.FrameEnvelope:
        """With an estimate of the clock, made before the hub was ever asked or not."""
        if envelope.clock.uncertainty_ns:
            return envelope
        timed = pb.FrameEnvelope()
        timed.CopyFrom(envelope)
        timed.clock.CopyFrom(self._clock_at(Epoch.from_proto(envelope.epoch), envelope.published))
        return timed
