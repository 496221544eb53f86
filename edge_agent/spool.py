"""The spool: what the hub does not have yet, in a broker of our own on this device.

A frame counts as kept once `Spool.put` returned. The broker refuses what does not fit (`discard: new`); which
frames go instead is decided here, whole chains at a time, and each loss is reported in the stream itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import structlog

from edge_agent import spool_stream
from edge_agent.broker import Broker
from edge_agent.config import SpoolSettings
from edge_agent.ending import end_tasks
from edge_agent.errors import SpoolError, SpoolFull
from edge_agent.link import Ack, Link, Refused, Session
from edge_agent.payloads import Payloads
from edge_agent.segments import CameraIndex, Entry, Segment, entry_of, headers_of
from eyeline.envelope import encode_envelope
from eyeline.errors import BusError
from eyeline.subjects import spool_subject
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

_log = structlog.get_logger()

# JetStream error codes: the stream is full; nothing of that sequence or subject.
_FULL_CODES: Final = frozenset({10047, 10077, 10023})
# Below so much free disk the broker is not asked: it would switch its storage off for good.
DISK_RESERVE_BYTES: Final = 24 << 20
# Payloads kept in memory for the forwarder, all cameras together.
_CACHE_BYTES: Final = 8 << 20
_PUT_TIMEOUT_S: Final = 5.0
_DELETE_EVERY_S: Final = 0.02
# Of a message beside its payload, as stored: subject, headers, record.
_OVERHEAD_BYTES: Final = 250


# Camera, epoch, first and last frame.
_Frames = tuple[str, Epoch, int, int]


class Spool:
    """The device's broker, its stream and an index of what is in it.

    `put` and `read` wait for the broker for a bounded time and then raise `SpoolError` or `BusError`.
    """

    def __init__(self, settings: SpoolSettings, state_dir: Path) -> None:
        self.settings = settings
        self.cameras: dict[str, CameraIndex] = {}
        self.problem = ""
        self._folder = state_dir / "spool"
        self._broker = Broker(settings, self._folder)
        self._link = Link("spool", self._broker.connect)
        self._payloads = Payloads(_CACHE_BYTES)
        self._deletions: dict[str, set[int]] = {}
        self._reports_to_delete: list[int] = []
        self._wake_deleter = asyncio.Event()
        self._deleting = asyncio.Lock()
        # Clear while a new connection's stream is not checked yet: what is stored then would be out of order.
        self._usable = asyncio.Event()
        self._lost: list[_Frames] = []
        self._last_sequence = 0
        self._known = False
        self._tasks: list[asyncio.Task[None]] = []
        self.highest_epoch = 0
        # Told of frames that were kept and are gone: camera, epoch, first and last.
        self.on_lost: Callable[[str, Epoch, int, int], Awaitable[None]] = _ignore
        # Reports of lost frames, oldest first: spool sequence and the envelope.
        self.reports: dict[str, list[tuple[int, pb.FrameEnvelope]]] = {}

    # Life cycle

    @property
    def url(self) -> str:
        """The broker's address on this device."""
        return self._broker.url

    @property
    def pid(self) -> int | None:
        """Process id of the broker while it runs."""
        return self._broker.pid

    @property
    def session(self) -> Session | None:
        """The connection to the broker, None while there is none."""
        return self._link.session

    async def start(self) -> None:
        """Start the broker and read what earlier runs left; raises `ServerFailed` or `SpoolError`."""
        await self._broker.start()
        self._tasks = [
            asyncio.create_task(self._broker.supervise(self._say)),
            asyncio.create_task(self._link.run()),
            asyncio.create_task(self._delete_for_ever()),
        ]
        try:
            async with asyncio.timeout(60):
                session = await self._link.ready()
                while not await self._prepare(session):
                    await asyncio.sleep(0.2)
                    session = await self._link.ready()
        except TimeoutError:
            await self.stop()
            raise SpoolError(f"the spool in {self._folder} does not come up: {self.problem}") from None
        self._usable.set()
        self._tasks.append(asyncio.create_task(self._follow_sessions(session)))

    async def stop(self) -> None:
        """Finish deletions and stop the broker."""
        with contextlib.suppress(BusError, TimeoutError):
            async with asyncio.timeout(2):
                await self._flush_deletions()
        await end_tasks(self._tasks)
        await self._broker.stop()

    async def _follow_sessions(self, session: Session) -> None:
        while True:
            await session.closed.wait()
            self._usable.clear()
            session = await self._link.ready()
            while not session.closed.is_set():
                if await self._prepare(session):
                    self._usable.set()
                    lost, self._lost = self._lost, []
                    for camera, epoch, first, last in lost:
                        await self.on_lost(camera, epoch, first, last)
                    break
                await asyncio.sleep(0.5)

    def _say(self, problem: str) -> None:
        """Tell of a change of the spool's own state, once."""
        if problem and not self.problem:
            _log.error("spool_problem", reason=problem)
        elif self.problem and not problem:
            _log.info("spool_works_again")
        self.problem = problem

    # The stream and its index

    async def _prepare(self, session: Session) -> bool:
        """Create the stream or check it; false when that did not work yet."""
        try:
            state = await spool_stream.ensure(session, self.settings)
            if not self._known:
                await self._scan(session, state)
                self._known = True
            elif int(state["last_seq"]) < self._last_sequence:
                await self._restore(session, state)
        except (BusError, SpoolError) as problem:
            self._say(str(problem))
            return False
        self._last_sequence = max(self._last_sequence, int(state["last_seq"]))
        self._say("")
        return True

    async def _scan(self, session: Session, state: dict[str, Any], *, late: bool = True) -> None:
        """Rebuild the index from headers; payloads stay where they are."""
        found = await spool_stream.scan(session, state)
        for is_report, camera, entry in found:
            if not is_report:
                self.index(camera).append(entry)
            self.highest_epoch = max(self.highest_epoch, entry.epoch.counter)
        for is_report, camera, entry in found:
            message = await spool_stream.get(session, {"seq": entry.sequence}) if is_report else None
            if message is not None:
                envelope = pb.FrameEnvelope.FromString(message[1])
                self.reports.setdefault(camera, []).append((entry.sequence, envelope))
        if not found:
            return
        now = time.monotonic()
        for index in self.cameras.values() if late else ():
            for segment in index.segments:
                # The index was built from messages that all wait; ages of an earlier run count as late.
                segment.stored_s = min(segment.stored_s, now - self.settings.late_after_s - 1)
        _log.info("spool_recovered", messages=self.messages, bytes=self.size)

    async def _restore(self, session: Session, state: dict[str, Any]) -> None:
        """The broker came back with less than it acknowledged: a memory spool, or one killed in mid-purge.

        What it still has is read again, what we still have in memory is stored again, and the rest is lost.
        """
        _log.error("spool_went_back", messages=self.messages, last=int(state["last_seq"]))
        kept = {
            camera: self._payloads.of(camera, oldest)
            for camera in self._payloads.cameras
            if (oldest := self.index(camera).oldest_unsent()) is not None
        }
        missing = [
            (index.camera, segment.epoch, segment.next_frame, segment.last_frame)
            for index in self.cameras.values()
            for segment in index.waiting()
        ]
        for index in self.cameras.values():
            for segment in list(index.segments):
                index.discard(segment)
            index.segments.clear()
        for forgotten in (self.reports, self._payloads, self._deletions, self._reports_to_delete):
            forgotten.clear()
        self._last_sequence = int(state["last_seq"])
        await self._scan(session, state, late=False)
        there = [
            (index.camera, segment.epoch, segment.next_frame, segment.last_frame)
            for index in self.cameras.values()
            for segment in index.segments
        ]
        for camera, entries in kept.items():
            for entry, data in entries:
                headers = headers_of(pb.FrameEnvelope.FromString(data))
                ack = await session.store(
                    spool_subject(camera), data, headers=headers, timeout_s=_PUT_TIMEOUT_S
                )
                there.append((camera, entry.epoch, entry.first, entry.last))
                self._last_sequence = max(self._last_sequence, ack.sequence)
                if not ack.duplicate:
                    self._added(camera, dataclasses.replace(entry, sequence=ack.sequence), data)
        self._lost = [gap for span in missing for gap in _gaps(span, there)]

    def index(self, camera: str) -> CameraIndex:
        """The camera's index, made at first use."""
        if camera not in self.cameras:
            self.cameras[camera] = CameraIndex(camera, split_after_s=2 * self.settings.late_after_s)
        return self.cameras[camera]

    @property
    def messages(self) -> int:
        """Messages that the hub does not have, reports of losses included."""
        reports = sum(len(found) for found in self.reports.values())
        return reports + sum(index.messages for index in self.cameras.values())

    @property
    def size(self) -> int:
        """Their size, as the stream counts it, roughly."""
        return self.messages * _OVERHEAD_BYTES + sum(index.size for index in self.cameras.values())

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1."""
        return min(1.0, self.size / self.settings.max_bytes)

    def oldest_age_s(self, camera: str | None = None) -> float:
        """Age of the oldest message that the hub does not have; 0 without one."""
        chosen = self.cameras.values() if camera is None else [self.index(camera)]
        stored = [segment.stored_s for index in chosen for segment in index.waiting()]
        return max(0.0, time.monotonic() - min(stored)) if stored else 0.0

    # Writing

    async def put(self, envelope: pb.FrameEnvelope, *, wait_s: float = _PUT_TIMEOUT_S) -> Segment:
        """Keep an envelope; returns its segment.

        Raises `SpoolFull` when it does not fit, `SpoolError` when the broker or the disk fails for longer
        than `wait_s`, and `BadEnvelope` for what no reader would take.
        """
        data = encode_envelope(envelope)
        ack = await self._store(spool_subject(envelope.camera), data, headers_of(envelope), wait_s)
        entry = entry_of(envelope, ack.sequence, len(data), time.monotonic())
        return self._added(envelope.camera, entry, data)

    async def report(self, envelope: pb.FrameEnvelope) -> None:
        """Keep a report of lost frames; raises like `put`."""
        data = encode_envelope(envelope)
        # Not the frames' own id: these may have been spooled, and lost, within the duplicate window.
        headers = headers_of(envelope)
        ack = await self._store(
            f"{spool_stream.REPORTS}.{envelope.camera}", data, headers, _PUT_TIMEOUT_S, "lost."
        )
        self.reports.setdefault(envelope.camera, []).append((ack.sequence, envelope))

    async def _store(
        self, subject: str, data: bytes, headers: dict[str, str], wait_s: float, prefix: str = ""
    ) -> Ack:
        self._check_disk()
        if prefix:
            name = headers["Nats-Msg-Id"].split(".", 1)
            headers = {**headers, "Nats-Msg-Id": f"{prefix.rstrip('.')}.{name[1]}"}
        deadline = time.monotonic() + wait_s
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._usable.wait()
                    session = await self._link.ready()
                ack = await session.store(subject, data, headers=headers, timeout_s=_PUT_TIMEOUT_S)
            except Refused as problem:
                if problem.code in _FULL_CODES:
                    raise SpoolFull(f"the spool is full: {self.settings.max_bytes} bytes") from None
                reason = str(problem)
            except TimeoutError:
                reason = "its broker is down"
            except BusError as problem:
                reason = str(problem)
            else:
                if self.problem:
                    self._say("")
                self._last_sequence = max(self._last_sequence, ack.sequence)
                return ack
            if time.monotonic() >= deadline:
                self._say(reason)
                self._revive()
                raise SpoolError(f"the spool takes nothing: {reason}")
            await asyncio.sleep(0.05)

    def _check_disk(self) -> None:
        """Raise `SpoolError` on a full disk, before the broker runs into it."""
        if self.settings.storage == "memory":
            return
        if self.free_disk_bytes() < DISK_RESERVE_BYTES:
            self._say(f"disk full: under {self._folder} less than {DISK_RESERVE_BYTES >> 20} MiB are free")
            raise SpoolError(self.problem)

    def free_disk_bytes(self) -> int:
        """Free bytes under the spool."""
        try:
            return shutil.disk_usage(self._folder).free
        except OSError:
            return 0

    def _revive(self) -> None:
        """End a broker that runs but stores nothing, as after a full disk; the supervisor restarts it."""
        session, pid = self._link.session, self._broker.pid
        if session is not None and pid is not None and self.free_disk_bytes() >= DISK_RESERVE_BYTES:
            _log.warning("spool_broker_restarting", reason=self.problem)
            self._broker.end()

    def _added(self, camera: str, entry: Entry, data: bytes) -> Segment:
        segment = self.index(camera).append(entry)
        self._payloads.add(camera, entry, data)
        return segment

    # Reading and removing

    async def read(
        self, camera: str, segment: Segment, *, max_messages: int = 64, max_bytes: int = 1 << 19
    ) -> list[tuple[int, bytes]]:
        """The next messages of a segment: sequence and payload, in order; empty when they are gone."""
        found = self._payloads.read(camera, segment, max_messages, max_bytes)
        if found:
            return found
        session = await self._link.ready()
        ask = {
            "seq": segment.cursor,
            "next_by_subj": spool_subject(camera),
            "batch": max_messages,
            "max_bytes": max_bytes,
        }
        return [
            (sequence, data)
            for sequence, data in await spool_stream.get_many(session, ask)
            if sequence <= segment.last_seq
        ]

    def acknowledged(
        self, camera: str, segment: Segment, sent: list[tuple[int, bytes]], last_frame: int
    ) -> None:
        """The hub has these messages: forget them, here and in the broker."""
        size = sum(len(data) for _, data in sent)
        self.index(camera).acknowledged(segment, sent[-1][0], last_frame, len(sent), size)
        self._deletions.setdefault(camera, set()).update(sequence for sequence, _ in sent)
        self._payloads.forget(camera, self.index(camera).oldest_unsent())
        self._wake_deleter.set()

    def report_acknowledged(self, camera: str, sequence: int) -> None:
        """The hub has this report of lost frames."""
        self.reports[camera] = [found for found in self.reports[camera] if found[0] != sequence]
        self._reports_to_delete.append(sequence)
        self._wake_deleter.set()

    async def _delete_for_ever(self) -> None:
        while True:
            await self._wake_deleter.wait()
            await asyncio.sleep(_DELETE_EVERY_S)
            self._wake_deleter.clear()
            try:
                await self._flush_deletions()
            except BusError:
                # Tried again with the next; until then the hub and the cloud tell duplicates.
                await asyncio.sleep(0.5)
                self._wake_deleter.set()

    async def _flush_deletions(self) -> None:
        async with self._deleting:
            await self._delete_acknowledged()

    async def _delete_acknowledged(self) -> None:
        session = await self._link.ready()
        for camera, sequences in list(self._deletions.items()):
            oldest = self.index(camera).oldest_unsent()
            below = {sequence for sequence in sequences if oldest is None or sequence < oldest}
            if below:
                await spool_stream.purge(session, camera, max(below))
                sequences.difference_update(below)
            for sequence in sorted(sequences):
                await spool_stream.delete(session, sequence)
                sequences.discard(sequence)
        while self._reports_to_delete:
            await spool_stream.delete(session, self._reports_to_delete[0])
            self._reports_to_delete.pop(0)

    async def payloads_of(self, camera: str, segment: Segment) -> AsyncIterator[tuple[int, bytes]]:
        """What is left of a segment, from the broker: spool sequence and payload of each message."""
        session = await self._link.ready()
        sequence = segment.cursor
        while sequence <= segment.last_seq:
            ask = {"seq": sequence, "next_by_subj": spool_subject(camera), "batch": 64, "max_bytes": 1 << 20}
            found = [it for it in await spool_stream.get_many(session, ask) if it[0] <= segment.last_seq]
            for one in found:
                yield one
            if not found:
                return
            sequence = found[-1][0] + 1

    async def drop_segment(
        self, camera: str, segment: Segment, *, overwrite: bool = False
    ) -> tuple[pb.FrameEnvelope, pb.FrameEnvelope]:
        """Remove what is left of a segment; returns its first and last envelope, for the report."""
        session = await self._link.ready()
        subject = spool_subject(camera)
        first = await spool_stream.get(session, {"seq": segment.cursor, "next_by_subj": subject})
        last = await spool_stream.get(session, {"seq": segment.last_seq})
        index = self.index(camera)
        if overwrite:
            async for sequence, _ in self.payloads_of(camera, segment):
                await spool_stream.delete(session, sequence, overwrite=True)
        oldest = index.oldest_unsent()
        ends = [pb.FrameEnvelope.FromString(found[1]) for found in (first, last) if found is not None]
        if oldest is not None and oldest >= segment.cursor:
            await spool_stream.purge(session, camera, segment.last_seq)
        else:
            self._deletions.setdefault(camera, set()).update(range(segment.cursor, segment.last_seq + 1))
        index.discard(segment)
        self._payloads.forget(camera, self.index(camera).oldest_unsent())
        if not ends:
            raise SpoolError(f"messages of camera {camera} are gone from the spool")
        return ends[0], ends[-1]

    async def replace_report(self, camera: str, position: int, envelope: pb.FrameEnvelope) -> None:
        """Put a report that covers more in the place of an older one."""
        old, _ = self.reports[camera].pop(position)
        try:
            await self.report(envelope)
        finally:
            self._reports_to_delete.append(old)
            self._wake_deleter.set()


def _gaps(span: _Frames, there: list[_Frames]) -> list[_Frames]:
    """The frames of a span that nothing covers."""
    camera, epoch, first, last = span
    gaps: list[_Frames] = []
    for _, _, start, end in sorted((it for it in there if it[:2] == (camera, epoch)), key=lambda it: it[2]):
        if start > first:
            gaps.append((camera, epoch, first, min(start - 1, last)))
        first = max(first, end + 1)
        if first > last:
            return gaps
    return [*gaps, (camera, epoch, first, last)]


async def _ignore(camera: str, epoch: Epoch, first: int, last: int) -> None:
    _log.error("frames_lost", camera=camera, epoch=epoch.counter, first=first, last=last)
