"""What a camera shows now, from what its device already sends: the open chain in the hub.

Looking costs the device nothing, and the workers nothing either: the chain is read and decoded here, beside
them. `OpenChain` follows one camera; `Stills` shares the chains among everybody who looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Self

import nats.errors
import numpy as np
import structlog
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from numpy.typing import NDArray

from cloud_inference.answered import EpochKey, epoch_key
from cloud_inference.decode import CannotDecode, ChainDecoder
from cloud_inference.feed import Feed, StreamMessage
from eyeline import subjects
from eyeline.capture_time import on_hub
from eyeline.envelope import parse_envelope
from eyeline.errors import BadEnvelope
from eyeline.v1 import frame_pb2, result_pb2

_log = structlog.get_logger()

# A chain has at most 300 frames; one that seems longer is not an agent's.
_MOST_UNITS: Final = 1000
_MOST_BYTES: Final = 64 << 20
# A frame's answer is looked for among so many messages stored after the frame, and for so long.
_MOST_MESSAGES: Final = 2000
_LOOK_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ChainUnit:
    """One picture of the open chain, coded. Times are nanoseconds since the Unix epoch on the hub's clock."""

    unit: frame_pb2.AccessUnit
    picture: frame_pb2.PictureFormat
    device: str
    epoch: frame_pb2.Epoch
    captured_ns: int
    stored_ns: int

    @property
    def key(self) -> tuple[EpochKey, int]:
        """Which frame it is: epoch and sequence."""
        return epoch_key(self.device, self.epoch), self.unit.sequence


@dataclass(frozen=True, slots=True)
class Still:
    """One decoded picture: uint8 [H, W, 3] BGR at its coded size, and the frame that it is."""

    image: NDArray[np.uint8]
    of: ChainUnit


@dataclass(slots=True)
class _Chain:
    """A keyframe and what came after it; `decoded` of them went through the decoder."""

    units: list[ChainUnit] = field(default_factory=list)
    bytes: int = 0
    decoded: int = 0


class OpenChain:
    """Follows one camera's live pictures in the hub, from the keyframe of the open chain on.

    Use as an async context manager. Reading never slows a worker down: it has a consumer of its own.
    """

    def __init__(self, connection: Client, js: JetStreamContext, site: str, camera: str) -> None:
        self._connection, self._js, self._site, self._camera = connection, js, site, camera
        self._chain = _Chain()
        self._decoder = ChainDecoder()
        self._newest: Still | None = None
        self._erasures = 0
        self._decoding = asyncio.Lock()
        self._caught_up = asyncio.Event()
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to follow; done already by entering it."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following, and give the consumer back."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})

    @property
    def failed(self) -> bool:
        """Whether following it ended: `caught_up` raises why, and only a new one goes on."""
        return self._following is not None and self._following.done()

    @property
    def units(self) -> list[ChainUnit]:
        """The open chain, its keyframe first: all that a decoder needs to join. Empty without pictures."""
        return list(self._chain.units)

    async def caught_up(self) -> None:
        """Wait until everything that the hub had when this began has been read."""
        following = self._following
        assert following is not None, "enter it first"  # noqa: S101
        waiting = asyncio.create_task(self._caught_up.wait())
        try:
            await asyncio.wait({waiting, following}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if following.done():
            following.result()  # raises why it ended

    async def changed(self) -> None:
        """Wait for the next picture."""
        await self._changed.wait()

    async def still(self, answered: tuple[EpochKey, int] | None = None) -> Still | None:
        """The newest picture, or the newest that is not after `answered`; None when there is none.

        A chain that cannot be decoded gives the last picture that could.
        """
        async with self._decoding:
            chain, erasures = self._chain, self._erasures
            end = _end(chain.units, answered)
            if end > chain.decoded:
                wanted, start, chain.decoded = chain.units[:end], chain.decoded, end
                try:
                    image = await asyncio.to_thread(self._decode, wanted[start:])
                except CannotDecode as problem:
                    _log.info("still_unavailable", camera=self._camera, reason=problem.reason)
                else:
                    if erasures == self._erasures:
                        self._newest = Still(image, wanted[-1])
            return self._newest

    def _decode(self, units: list[ChainUnit]) -> NDArray[np.uint8]:
        image = None
        for unit in units:
            image = self._decoder.decode(unit.unit, unit.picture, wanted=unit is units[-1])
        assert image is not None  # noqa: S101  # the last one is wanted
        return image

    async def _follow(self) -> None:
        feed = Feed(
            self._connection,
            self._js,
            subjects.FRAMES,
            [subjects.frame_subject(self._site, "*", self._camera)],
            start_sequence=await self._start(),
        )
        erased = await self._connection.subscribe(
            subjects.erased_subject(self._site, self._camera), cb=self._forget
        )
        try:
            await feed.open()
            if not feed.pending_at_start:
                self._caught_up.set()
            while True:
                for message in await feed.take():
                    self._accept(message)
                    if message.pending == 0:
                        self._caught_up.set()
        finally:
            with contextlib.suppress(nats.errors.Error):
                await erased.unsubscribe()
            await asyncio.shield(feed.close())

    async def _forget(self, _: Msg) -> None:
        """Something of the camera was erased: nothing of it stays here."""
        self._chain, self._newest = _Chain(), None
        self._erasures += 1

    async def _start(self) -> int:
        """Stream sequence of the live chain's keyframe, as the newest checkpoint tells; else all there is."""
        batch = await newest_batch(self._js, self._site, self._camera)
        live = next((lane for lane in batch.checkpoint.lanes if lane.lane == frame_pb2.LANE_LIVE), None)
        return live.keyframe_stream_sequence or 1 if live is not None else 1

    def _accept(self, message: StreamMessage) -> None:
        try:
            envelope = parse_envelope(message.data)
        except BadEnvelope:
            return  # the worker sets it aside
        if envelope.lane == frame_pb2.LANE_BACKLOG:
            return
        for item in envelope.items:
            if item.WhichOneof("item") != "access_unit":
                continue
            unit = item.access_unit
            if unit.keyframe or len(self._chain.units) >= _MOST_UNITS or self._chain.bytes > _MOST_BYTES:
                self._chain = _Chain()
            if not self._chain.units and not unit.keyframe:
                continue  # nothing to decode it from
            self._chain.bytes += len(unit.data)
            self._chain.units.append(
                ChainUnit(
                    unit,
                    envelope.format,
                    envelope.device,
                    envelope.epoch,
                    on_hub(unit.capture, envelope),
                    message.stored_ns,
                )
            )
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()


@dataclass(frozen=True, slots=True)
class Look:
    """What somebody who looks at a camera gets.

    answer: of exactly this picture, if there is one yet; latest: the newest answer of the camera, which tells
    whether the picture still stands.
    """

    still: Still
    answer: result_pb2.Result | None
    latest: result_pb2.Result | None


@dataclass(slots=True)
class _Watched:
    chain: OpenChain
    looked_s: float
    lookers: int = 0
    look: Look | None = None


class Stills:
    """The cameras that somebody looks at. Each one's chain is read once, however many look.

    keep_s: a chain is followed for so long after the last look, so that the next one costs one picture; most:
    so many cameras at a time. Use as an async context manager.
    """

    def __init__(self, *, keep_s: float = 10.0, most: int = 64) -> None:
        self._keep_s, self._most = keep_s, most
        self._watched: dict[tuple[str, str, str], _Watched] = {}
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for key in list(self._watched):
            await self._drop(key)

    async def look(
        self, tenant: str, connection: Client, js: JetStreamContext, site: str, camera: str
    ) -> Look | None:
        """The newest picture that has an answer, with it, or the newest at all; None without any."""
        key = (tenant, site, camera)
        if key in self._watched and self._watched[key].chain.failed:
            del self._watched[key]
        if key not in self._watched:
            await self._make_room()
        chain = OpenChain(connection, js, site, camera)
        watched = self._watched.setdefault(key, _Watched(chain, time.monotonic()))
        watched.chain.start()
        watched.lookers += 1
        try:
            return await self._look(watched, connection, js, site, camera)
        finally:
            watched.lookers -= 1
            watched.looked_s = time.monotonic()

    async def _look(
        self, watched: _Watched, connection: Client, js: JetStreamContext, site: str, camera: str
    ) -> Look | None:
        await watched.chain.caught_up()
        batch = await newest_batch(js, site, camera)
        latest = max(batch.results, key=_newness, default=None)
        still = await watched.chain.still(_answered(batch))
        if still is None:
            return None
        known = watched.look
        if known is not None and known.still is still and known.answer is not None and known.answer.final:
            answer: result_pb2.Result | None = known.answer
        else:
            answer = await answer_of(connection, js, site, camera, still.of)
        watched.look = Look(still, answer, latest)
        return watched.look

    async def _make_room(self) -> None:
        while len(self._watched) >= self._most:
            idle = [key for key, one in self._watched.items() if not one.lookers]
            if not idle:
                return
            await self._drop(min(idle, key=lambda key: self._watched[key].looked_s))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._keep_s / 4)
            before = time.monotonic() - self._keep_s
            for key, one in list(self._watched.items()):
                if not one.lookers and one.looked_s < before:
                    await self._drop(key)

    async def _drop(self, key: tuple[str, str, str]) -> None:
        watched = self._watched.pop(key, None)
        if watched is not None:
            await watched.chain.close()


async def newest_batch(js: JetStreamContext, site: str, camera: str) -> result_pb2.ResultBatch:
    """What was last stored about a camera; an empty one when that is nothing."""
    try:
        stored = await js.get_last_msg(subjects.RESULTS, subjects.result_subject(site, camera), direct=True)
    except NotFoundError:
        return result_pb2.ResultBatch()
    try:
        return result_pb2.ResultBatch.FromString(stored.data or b"")
    except DecodeError:
        return result_pb2.ResultBatch()


async def answer_of(
    connection: Client, js: JetStreamContext, site: str, camera: str, of: ChainUnit
) -> result_pb2.Result | None:
    """The stored answer of a frame, the final one if it is there; None when it has none yet."""
    key, sequence = of.key
    moment = datetime.fromtimestamp(of.stored_ns / 1e9, UTC) - timedelta(milliseconds=1)
    subject = subjects.result_subject(site, camera)
    feed = Feed(connection, js, subjects.RESULTS, [subject], start_time=moment)
    found: result_pb2.Result | None = None
    seen = 0
    try:
        async with asyncio.timeout(_LOOK_S):
            await feed.open()
            pending = feed.pending_at_start or 0
            while pending and seen < _MOST_MESSAGES:
                for message in await feed.take():
                    seen, pending = seen + 1, message.pending
                    found = _better(found, message.data, key, sequence)
                    if found is not None and found.final:
                        return found
    except (TimeoutError, nats.errors.Error):
        pass
    finally:
        await asyncio.shield(feed.close())
    return found


def _better(
    found: result_pb2.Result | None, data: bytes, key: EpochKey, sequence: int
) -> result_pb2.Result | None:
    try:
        batch = result_pb2.ResultBatch.FromString(data)
    except DecodeError:
        return found
    for result in batch.results:
        if epoch_key(result.device, result.key.epoch) != key:
            continue
        if result.key.sequence <= sequence <= max(result.last_sequence, result.key.sequence) and (
            found is None or result.revision > found.revision
        ):
            found = result
    return found


def _answered(batch: result_pb2.ResultBatch) -> tuple[EpochKey, int] | None:
    """The newest answered frame of the newest epoch."""
    if not batch.checkpoint.answered:
        return None
    newest = batch.checkpoint.answered[-1]
    if not newest.ranges:
        return None
    return epoch_key(newest.device, newest.epoch), newest.ranges[-1].last


def _end(units: list[ChainUnit], answered: tuple[EpochKey, int] | None) -> int:
    """How many of the units are not after `answered`; all of them when that is of another epoch."""
    if answered is None or not units or units[0].key[0] != answered[0] or units[0].key[1] > answered[1]:
        return len(units)
    return sum(unit.key[1] <= answered[1] for unit in units)


def _newness(result: result_pb2.Result) -> tuple[int, int, int]:
    return result.last_captured_ns, result.last_sequence, result.revision
