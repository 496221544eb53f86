"""What a camera's viewers see: the pixels that its device sent anyway, read from the hub beside the worker.

One reader for each camera that somebody looks at, without acknowledgements: it asks nothing of the device,
and takes nothing from the worker. It keeps the open chain, so that a viewer who joins starts at its keyframe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import nats.errors
import structlog
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from cloud_inference.access import Grant
from cloud_inference.answered import EpochKey, epoch_key
from cloud_inference.audit import AuditLog
from cloud_inference.feed import Feed
from cloud_inference.web.stills import Stills
from eyeline import subjects
from eyeline.envelope import parse_envelope
from eyeline.errors import BadEnvelope
from eyeline.v1 import frame_pb2, result_pb2

_log = structlog.get_logger()

# No chain is longer, in frames and in time; what is, is left out until the next keyframe.
_MOST_UNITS: Final = 300
_MOST_BYTES: Final = 16 << 20
_LONGEST = timedelta(minutes=15)
# Kept up for those who come back at once.
_LINGER_S: Final = 5.0
_CATCH_UP_S: Final = 5.0
_CODECS: Final = {
    frame_pb2.CODEC_H264: "h264",
    frame_pb2.CODEC_HEVC: "hevc",
    frame_pb2.CODEC_AV1: "av1",
    frame_pb2.CODEC_JPEG: "jpeg",
    frame_pb2.CODEC_WEBP: "webp",
}
_STILLS: Final = frozenset({frame_pb2.CODEC_JPEG, frame_pb2.CODEC_WEBP})


@dataclass(frozen=True, slots=True)
class Unit:
    """One coded picture, and the bytes that a browser gets for it."""

    key: EpochKey
    access_unit: frame_pb2.AccessUnit
    format: frame_pb2.PictureFormat
    packet: bytes

    @property
    def is_still(self) -> bool:
        """Whether it stands alone, as an image file does."""
        return self.format.codec in _STILLS


class Watcher(Protocol):
    """Somebody who looks at a camera. Calls never block and never raise."""

    def unit(self, camera: str, unit: Unit) -> None:
        """The next picture of the chain."""
        ...

    def still(self, camera: str, packet: bytes) -> None:
        """A picture that stands alone."""
        ...


def epoch_text(key: EpochKey) -> str:
    """One run of an agent, as the page names it."""
    _, counter, random_id = key
    return f"{counter}:{random_id.hex()}"


def packet(kind: str, camera: str, unit: tuple[EpochKey, frame_pb2.AccessUnit], **more: Any) -> bytes:
    """Header length (4 bytes, big-endian) and header (JSON): what goes before a picture to the browser."""
    key, access_unit = unit
    header = {
        "kind": kind,
        "camera": camera,
        "epoch": epoch_text(key),
        "sequence": access_unit.sequence,
        "key": access_unit.keyframe,
        **more,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack(">I", len(text)) + text


def picture_form(picture: frame_pb2.PictureFormat) -> dict[str, Any]:
    """What a browser must know of a coded picture: sizes and the way back to the source frame, in pixels."""
    return {
        "codec": _CODECS.get(picture.codec, "unknown"),
        "coded": [picture.coded_width_px, picture.coded_height_px],
        "source": [picture.source_width_px, picture.source_height_px],
        "scale": [picture.scale_x, picture.scale_y],
        "pad": [picture.pad_x_px, picture.pad_y_px],
        "origin": [picture.origin_x_px, picture.origin_y_px],
    }


class Chain:
    """The open chain of one camera's live lane. Pure: envelopes in, new units out."""

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self.units: list[Unit] = []
        self._key: EpochKey | None = None
        self._id = 0
        self._next = 0
        self._seen = 0
        self._bytes = 0

    def accept(self, envelope: frame_pb2.FrameEnvelope) -> list[Unit]:
        """The units that go on where the chain stands; what comes late, twice or after a gap is left out."""
        if envelope.lane == frame_pb2.LANE_BACKLOG:
            return []
        key = epoch_key(envelope.device, envelope.epoch)
        if self._key is not None and self._key[0] == key[0] and self._key[1] > key[1]:
            return []
        fresh: list[Unit] = []
        for item in envelope.items:
            if item.WhichOneof("item") != "access_unit":
                continue
            unit = self._follow(key, item.access_unit, envelope.format)
            if unit is not None:
                fresh.append(unit)
        return fresh

    def _follow(
        self, key: EpochKey, unit: frame_pb2.AccessUnit, picture: frame_pb2.PictureFormat
    ) -> Unit | None:
        if key == self._key and unit.sequence <= self._seen:
            return None
        if unit.keyframe:
            self._key, self._id, self._next, self._seen, self._bytes = key, unit.chain_id, 0, 0, 0
            self.units = []
        elif (key, unit.chain_id, unit.chain_index) != (self._key, self._id, self._next):
            return None
        self._bytes += len(unit.data)
        if len(self.units) >= _MOST_UNITS or self._bytes > _MOST_BYTES:
            return None
        self._next, self._seen = unit.chain_index + 1, unit.sequence
        form = {"format": picture_form(picture)} if unit.keyframe else {}
        kind = "still" if picture.codec in _STILLS else "unit"
        found = Unit(key, unit, picture, packet(kind, self._camera, (key, unit), **form) + unit.data)
        self.units.append(found)
        return found


@dataclass(frozen=True, slots=True)
class Hub:
    """A tenant's connection."""

    connection: Client
    js: JetStreamContext
    audit: AuditLog


class Live:
    """One camera, while somebody looks at it."""

    def __init__(self, hub: Hub, site: str, camera: str, stills: Stills) -> None:
        self.name = f"{site}/{camera}"
        self._hub, self._site, self._camera = hub, site, camera
        self.chain = Chain(self.name)
        self._stills = stills
        self.video: set[Watcher] = set()
        self.pictures: set[Watcher] = set()
        # Set once everything that was stored before we came has been read.
        self.caught_up = asyncio.Event()
        self._news = asyncio.Event()
        self._still = b""

    async def picture(self, epoch: str, sequence: int) -> tuple[Unit, bytes] | None:
        """The newest picture of a run that is not after `sequence`: its unit, and an image file.

        None when it is not kept any more: pixels are, as long as their chain is open.
        """
        async with asyncio.timeout(_CATCH_UP_S):
            await self.caught_up.wait()
        chain = self.chain
        units = chain.units
        if not units or epoch_text(units[0].key) != epoch or sequence < units[0].access_unit.sequence:
            return None
        found = await self._stills.at(units, sequence)
        return found if chain is self.chain else None

    def join(self, watcher: Watcher, *, video: bool) -> None:
        """Give it the open chain, or a still, and what follows."""
        self.leave(watcher)
        if video:
            self.video.add(watcher)
            if self.caught_up.is_set():
                for unit in self.chain.units:
                    watcher.unit(self.name, unit)
        else:
            self.pictures.add(watcher)
            if self._still:
                watcher.still(self.name, self._still)
            self._news.set()

    def leave(self, watcher: Watcher) -> None:
        """Nothing more for it."""
        self.video.discard(watcher)
        self.pictures.discard(watcher)

    async def run(self) -> None:
        """Read until cancelled."""
        # Before anything is read: what is erased meanwhile is not kept either.
        erased = await self._hub.connection.subscribe(
            subjects.erased_subject(self._site, self._camera), cb=self._forget
        )
        feed = await self._open()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._make_stills())
                if not feed.pending_at_start:
                    self.caught_up.set()
                while True:
                    for message in await feed.take():
                        units: list[Unit] = []
                        with contextlib.suppress(BadEnvelope):  # the worker sets it aside
                            units = self.chain.accept(parse_envelope(message.data))
                        if self.caught_up.is_set():
                            self._tell(units)
                        elif not message.pending:
                            # Older chains are of no use to anybody.
                            self.caught_up.set()
                            self._tell(self.chain.units)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await erased.unsubscribe()
            await asyncio.shield(feed.close())

    async def _forget(self, _: Msg) -> None:
        """Something of the camera was erased: nothing of it stays here, until its next keyframe."""
        self.chain, self._still = Chain(self.name), b""
        self._stills.forget()

    def _tell(self, units: Iterable[Unit]) -> None:
        for unit in units:
            for watcher in self.video:
                watcher.unit(self.name, unit)
            self._news.set()

    async def _make_stills(self) -> None:
        """One still for all who want one, of the newest picture, now and then."""
        while True:
            await self._news.wait()
            await self.caught_up.wait()
            self._news.clear()
            if not self.pictures or not self.chain.units:
                continue
            chain, newest = self.chain, self.chain.units[-1]
            data = await self._stills.newest(chain.units)
            if data is not None and chain is self.chain:
                form = {"format": picture_form(newest.format)}
                head = packet("still", self.name, (newest.key, newest.access_unit), **form)
                self._still = head + data
                for watcher in self.pictures:
                    watcher.still(self.name, self._still)
            await asyncio.sleep(self._stills.interval_s)

    async def _open(self) -> Feed:
        """A reader that starts no later than the open chain does."""
        subject = subjects.frame_subject(self._site, "*", self._camera)

        def feed(**start: Any) -> Feed:
            return Feed(self._hub.connection, self._hub.js, subjects.FRAMES, [subject], batch=128, **start)

        recent = feed(start_time=datetime.now(UTC) - _LONGEST)
        await recent.open()
        if recent.pending_at_start:
            return recent
        # Silent for longer than any chain: what it sent last may still be there.
        keyframe = await self._keyframe()
        if not keyframe:
            return recent
        await recent.close()
        older = feed(start_sequence=keyframe)
        await older.open()
        return older

    async def _keyframe(self) -> int:
        """Where the worker says that the open chain begins; 0 when it does not."""
        try:
            stored = await self._hub.js.get_last_msg(
                subjects.RESULTS, subjects.result_subject(self._site, self._camera), direct=True
            )
            batch = result_pb2.ResultBatch.FromString(stored.data or b"")
        except (TimeoutError, NotFoundError, APIError, nats.errors.Error, DecodeError):
            return 0
        lanes = {lane.lane: lane.keyframe_stream_sequence for lane in batch.checkpoint.lanes}
        return lanes.get(frame_pb2.LANE_LIVE, 0)


class Lives:
    """The cameras that somebody looks at, by tenant and name."""

    def __init__(self, hubs: dict[str, Hub], stills: Callable[[], Stills]) -> None:
        """stills: makes what one camera's stills come from."""
        self._hubs, self._stills = hubs, stills
        self._running: dict[tuple[str, str], tuple[Live, asyncio.Task[None]]] = {}
        self._left: dict[tuple[str, str], float] = {}

    def get(self, tenant: str, camera: str) -> Live | None:
        """The camera's reader, started where it is not; None while the hub is away."""
        hub = self._hubs.get(tenant)
        if hub is None:
            return None
        key = tenant, camera
        found = self._running.get(key)
        if found is None or found[1].done():
            site, _, name = camera.partition("/")
            live = Live(hub, site, name, self._stills())
            found = self._running[key] = live, asyncio.create_task(live.run())
            _log.info("view_opened", tenant=tenant, camera=camera)
        self._left[key] = time.monotonic() + _LINGER_S
        return found[0]

    async def looks(self, grant: Grant, camera: str) -> None:
        """Tell the audit log that somebody is about to see a camera; raises `BusError`: then they may not."""
        hub = self._hubs.get(grant.tenant)
        if hub is not None:
            await hub.audit.viewed(grant.who, "view", [camera])

    async def sweep(self) -> None:
        """End, for ever, the readers that nobody looks through any more."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for key, (live, task) in list(self._running.items()):
                if live.video or live.pictures:
                    self._left[key] = now + _LINGER_S
                if task.done() and not task.cancelled() and task.exception() is not None:
                    _log.error("view_failed", camera=live.name, reason=str(task.exception()))
                elif now < self._left[key]:
                    continue
                else:
                    _log.info("view_closed", tenant=key[0], camera=live.name)
                del self._running[key], self._left[key]
                task.cancel()

    async def close(self) -> None:
        """End all of them."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
