"""From the pipelines into the spool: what to do when an envelope cannot be kept.

Frames that are lost here are told to the cloud, as DROPPED ranges with a reason, so that each still gets its
one final answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from edge_agent.errors import SpoolError, SpoolFull
from edge_agent.frame_metrics import PUBLISHED_BYTES
from edge_agent.segments import CameraIndex, Segment, dropped_envelope, dropped_item
from edge_agent.spool import Spool
from eyeline.envelope import first_sequence, item_range, last_sequence
from eyeline.errors import BusError
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

_log = structlog.get_logger()

# Purged before the broker refuses, so that a new envelope never waits for a purge.
PURGE_ABOVE_FILL: Final = 0.9
_AGE_CHECK_S: Final = 5.0
_MOST_PURGES: Final = 64


@dataclass(slots=True)
class _Camera:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Frames not kept since the last envelope that was, as one range.
    missed: pb.FrameItem | None = None
    # What depends on a lost frame is not worth keeping.
    broken_chain: int | None = None
    # Why: what depends on it is lost for the same reason.
    broken_by: str = "spool_error"
    # Counts up whenever the live lane stops being consecutive: the pipeline starts a new chain.
    breaks: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    published_bytes: int = 0
    newest: pb.FrameEnvelope | None = None


class Keeper:
    """Keeps envelopes in the spool, makes room when it is full, and reports what was lost."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._cameras: dict[str, _Camera] = {}
        self._purging = asyncio.Lock()
        self._failing = False
        self._told_full = False
        # Told of every envelope that the spool took.
        self.kept: Callable[[pb.FrameEnvelope], None] = lambda _envelope: None
        spool.on_lost = self._lost
        # Reports on their way to the hub, as positions in the spool: nothing is joined to these any more.
        self.sending: set[int] = set()
        # What to report instead of frames dropped here, when there is something better to say of them.
        self.instead: Callable[[pb.FrameEnvelope], list[pb.FrameEnvelope]] = lambda dropped: [dropped]
        # Wakes the forwarder: something new is in the spool.
        self.added = asyncio.Condition()

    def camera(self, camera: str) -> _Camera:
        """The camera's books."""
        return self._cameras.setdefault(camera, _Camera())

    def breaks(self, camera: str) -> int:
        """Counts up whenever the camera has to start a new chain."""
        return self.camera(camera).breaks

    def break_chain(self, camera: str) -> None:
        """Ask the camera's pipeline for a new chain."""
        self.camera(camera).breaks += 1

    def dropped(self, camera: str) -> dict[str, int]:
        """Frames lost on this device, by reason."""
        return dict(self.camera(camera).dropped)

    def published_bytes(self, camera: str) -> int:
        """Bytes of envelopes that the spool took since start."""
        return self.camera(camera).published_bytes

    async def publish(self, envelope: pb.FrameEnvelope) -> bool:
        """Keep one envelope; false when its frames were dropped, and will be reported as such.

        Envelopes of one camera must come one after the other. Raises `BadEnvelope`.
        """
        books = self.camera(envelope.camera)
        async with books.lock:
            if self._depends_on_lost(envelope, books):
                self._miss(envelope, books, books.broken_by)
                return False
            sent = envelope
            if books.missed is not None:
                sent = pb.FrameEnvelope()
                sent.CopyFrom(envelope)
                del sent.items[:]
                sent.items.extend([books.missed, *envelope.items])
            if self._spool.fill > PURGE_ABOVE_FILL:
                await self.make_room()
            for _ in range(_MOST_PURGES):
                try:
                    await self._spool.put(sent)
                except SpoolFull:
                    if not await self._purge_oldest("spool_full"):
                        self._miss(envelope, books)
                        return False
                except SpoolError as problem:
                    if not self._failing:
                        self._failing = True
                        _log.error("frames_dropped", reason="spool_error", problem=str(problem))
                    self._miss(envelope, books)
                    return False
                else:
                    break
            else:
                self._miss(envelope, books)
                return False
            books.missed = books.broken_chain = None
            books.newest = sent
            self.kept(sent)
            size = sent.ByteSize()
            books.published_bytes += size
            PUBLISHED_BYTES.labels(envelope.camera).inc(size)
            if self._failing:
                self._failing = False
                _log.info("frames_kept_again")
        async with self.added:
            self.added.notify_all()
        return True

    def _depends_on_lost(self, envelope: pb.FrameEnvelope, books: _Camera) -> bool:
        if books.broken_chain is None:
            return False
        units = [item.access_unit for item in envelope.items if item.WhichOneof("item") == "access_unit"]
        return bool(units) and units[0].chain_id == books.broken_chain and not units[0].keyframe

    def _miss(self, envelope: pb.FrameEnvelope, books: _Camera, reason: str = "spool_error") -> None:
        """Frames of this envelope are lost, and what depends on them; reported with what was before them."""
        first = envelope.items[0]
        if books.missed is not None:
            first, reason = books.missed, books.missed.range.reason
        books.missed = dropped_item(first, envelope.items[-1], reason)
        books.dropped[reason] += last_sequence(envelope) - first_sequence(envelope) + 1
        chains = [
            item.access_unit.chain_id for item in envelope.items if item.WhichOneof("item") == "access_unit"
        ]
        if chains and books.broken_chain != chains[-1]:
            books.broken_chain, books.broken_by = chains[-1], reason
            books.breaks += 1

    # Purging

    async def make_room(self) -> None:
        """Purge oldest chains until the spool is below its mark."""
        for _ in range(_MOST_PURGES):
            if self._spool.fill <= PURGE_ABOVE_FILL or not await self._purge_oldest("spool_full"):
                return

    async def _purge_oldest(self, reason: str) -> bool:
        """Purge the oldest chain of the camera with the most backlog; false when nothing can go."""
        async with self._purging:
            for index in sorted(self._spool.cameras.values(), key=lambda found: -found.size):
                victim = _victim(index)
                if victim is not None:
                    if not self._told_full:
                        self._told_full = True
                        _log.warning(
                            "spool_full_purging", camera=index.camera, limit=self._spool.settings.max_bytes
                        )
                    return await self.purge(index, victim, reason)
            return False

    async def purge(
        self, index: CameraIndex, segment: Segment, reason: str, *, overwrite: bool = False
    ) -> bool:
        """Remove a segment and report its frames as dropped for `reason`; false when that failed.

        overwrite: nothing of it shall be left on the disk either.
        """
        books = self.camera(index.camera)
        is_open = segment is index.segments[-1]
        frames = segment.last_frame - segment.next_frame + 1
        try:
            first, last = await self._spool.drop_segment(index.camera, segment, overwrite=overwrite)
        except (SpoolError, BusError) as problem:
            _log.warning("purge_failed", camera=index.camera, reason=str(problem))
            return False
        books.dropped[reason] += frames
        if is_open and segment.chain is not None:
            books.broken_chain, books.broken_by = segment.chain, reason
            books.breaks += 1
        for envelope in self.instead(dropped_envelope(first, last, reason)):
            await self._report(index.camera, envelope)
        return True

    async def report_not_kept(self, envelope: pb.FrameEnvelope) -> None:
        """Report frames that an earlier run had captured when it was killed."""
        item = envelope.items[0].range
        self.camera(envelope.camera).dropped[item.reason] += item.last_sequence - item.first_sequence + 1
        await self._report(envelope.camera, envelope)

    async def _lost(self, camera: str, epoch: Epoch, first: int, last: int) -> None:
        """Report frames that a memory spool lost with its broker; their times are only roughly known."""
        books = self.camera(camera)
        books.dropped["spool_lost"] += last - first + 1
        newest = books.newest
        if newest is None or Epoch.from_proto(newest.epoch) != epoch:
            _log.error("frames_lost", camera=camera, epoch=epoch.counter, first=first, last=last)
            return
        item = dropped_item(newest.items[0], newest.items[-1], "spool_lost")
        item.range.first_sequence, item.range.last_sequence = first, last
        envelope = dropped_envelope(newest, newest, "spool_lost")
        envelope.items[0].CopyFrom(item)
        units = [it.access_unit for it in newest.items if it.HasField("access_unit")]
        if units and books.broken_chain != units[-1].chain_id:
            books.broken_chain, books.broken_by = units[-1].chain_id, "spool_lost"
            books.breaks += 1
        await self._report(camera, envelope)

    async def _report(self, camera: str, envelope: pb.FrameEnvelope) -> None:
        """Keep a report of lost frames, joined to one that it continues."""
        for position, (sequence, earlier) in enumerate(self._spool.reports.get(camera, [])):
            before, item = earlier.items[0], envelope.items[0]
            if (
                sequence not in self.sending
                and earlier.epoch == envelope.epoch
                and len(earlier.items) == len(envelope.items) == 1
                and before.range.kind == item.range.kind == pb.RANGE_KIND_DROPPED
                and before.range.reason == item.range.reason
                and item_range(before)[1] + 1 == item_range(item)[0]
            ):
                joined = pb.FrameEnvelope()
                joined.CopyFrom(envelope)
                joined.items[0].CopyFrom(dropped_item(before, item, item.range.reason))
                await self._keep_report(camera, joined, position)
                break
        else:
            await self._keep_report(camera, envelope, None)
        async with self.added:
            self.added.notify_all()

    async def _keep_report(self, camera: str, envelope: pb.FrameEnvelope, position: int | None) -> None:
        try:
            if position is None:
                await self._spool.report(envelope)
            else:
                await self._spool.replace_report(camera, position, envelope)
        except (SpoolError, BusError) as problem:
            first, last = item_range(envelope.items[0])
            _log.error("report_lost", camera=camera, first=first, last=last, reason=str(problem))

    async def purge_aged(self) -> None:
        """Purge chains older than the spool's age limit, for ever."""
        limit = self._spool.settings.max_age_s
        while True:
            await asyncio.sleep(min(_AGE_CHECK_S, limit / 4))
            now = time.monotonic()
            for index in list(self._spool.cameras.values()):
                while True:
                    victim = next((found for found in index.waiting() if not found.busy), None)
                    if victim is None or now - victim.last_stored_s <= limit:
                        break
                    if not await self.purge(index, victim, "spool_age"):
                        break
            if self._spool.fill < PURGE_ABOVE_FILL / 2:
                self._told_full = False

    async def flush_missed(self, like: pb.FrameEnvelope) -> None:
        """Report frames that no later envelope of the camera will; `like` is any envelope of its run."""
        books = self.camera(like.camera)
        if books.missed is not None:
            envelope = pb.FrameEnvelope()
            envelope.CopyFrom(like)
            envelope.ClearField("format")
            del envelope.items[:]
            envelope.items.append(books.missed)
            await self._report(like.camera, envelope)
            self.kept(envelope)
            books.missed = None


def _victim(index: CameraIndex) -> Segment | None:
    return next((segment for segment in index.waiting() if not segment.busy), None)
