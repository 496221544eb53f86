"""One reading of a camera's checkpoint until something goes wrong: take, decode, infer, track, store.

Then the frame counts as answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cloud_inference import metrics
from cloud_inference.agree import Reports
from cloud_inference.answer import Answers, Pending, Seen, captured_ns
from cloud_inference.answered import Answered, EpochKey, epoch_key
from cloud_inference.consume import Intake, Kind, Source, Work
from cloud_inference.counting import Counter
from cloud_inference.decode import CannotDecode, ChainDecoder, to_source
from cloud_inference.early import provisional
from cloud_inference.feed import Feed, StreamMessage
from cloud_inference.infer import DEADLINE
from cloud_inference.rollout.route import Answered as RouteAnswer
from cloud_inference.rollout.route import CameraRoute, Prepared, ref_of
from cloud_inference.store import FencedOut, ResultLog, Stored
from cloud_inference.watermark import Watermark
from cloud_inference.workload import CameraLoad
from eyeline import subjects
from eyeline.errors import BadEnvelope, BusError, InvalidName
from eyeline.v1 import frame_pb2, result_pb2
from eyeline_models.catalogue import detections

if TYPE_CHECKING:
    from cloud_inference.camera import Camera

# No chain is longer; one that was not heard of for so long pins no pixels.
_CHAIN_NS: Final = 15 * 60 * 1_000_000_000
# Decoded at once while nothing else goes on: 0.3 ms, and to a thread and back takes as long again.
_SMALL_PX: Final = 200_000
# A device is told that its messages wait here from so long on, so often.
_LAG_NS: Final = 500_000_000
_TELL_LAG_EVERY_S: Final = 0.5
_FORGET_NS: Final = 1_000_000
# Messages of the backlog on end after which no live one is supposed to be behind them.
_MANY: Final = 500
# Provisional results in one message.
_EARLY_AT_ONCE: Final = 200
# Beyond, they are left out: the final ones come anyway.
_MOST_EARLY: Final = 10_000


class _LaneState:
    """The open chain of one lane, as answered: what the next owner needs."""

    def __init__(self, stored: result_pb2.LaneCheckpoint) -> None:
        self.stored = stored
        self.heard_ns = time.time_ns()


class Session:
    """From one reading of the checkpoint until something goes wrong."""

    group: asyncio.TaskGroup

    def __init__(self, owner: Camera, log: ResultLog, stored: Stored) -> None:
        self._owner, self._log = owner, log
        self._shared, self._bus, site, camera = owner.parts
        checkpoint = stored.checkpoint
        self._answered = Answered(checkpoint.answered)
        self._track_ids = itertools.count(max(1, checkpoint.next_track_id))
        self._next_track_id = max(1, checkpoint.next_track_id)
        self._frame_sequence = checkpoint.frame_stream_sequence
        self._lanes = {lane.lane: _LaneState(lane) for lane in checkpoint.lanes}
        self._intake = Intake(
            tenant=self._bus.tenant, answered=Answered(checkpoint.answered), lanes=_stored_lanes(checkpoint)
        )
        self._decoders: dict[int, ChainDecoder] = {}
        card = self._shared.card
        self._answers = Answers(
            tracks=self._shared.tracks,
            next_track_id=self._take_track_id,
            model=ref_of(card),
            mode=self._shared.propagate,
            is_late=self._is_late,
        )
        self._counter = Counter()
        for result in stored.results:
            self._answers.restore(result, epoch_key(result.device, result.key.epoch))
            self._counter.restore(result, owner.drawn(result.device))
        self._reports = Reports(card)
        # Work of messages that only answer ahead of others.
        self._early: deque[Work] = deque()
        router = self._shared.routers.get(self._bus.tenant)
        self._route = CameraRoute(self._shared.inference, card, router, site, camera)
        self._load = CameraLoad(self._bus.tenant)
        most = self._shared.max_in_flight
        # By whether it is late: the backlog leaves room for the live picture.
        self._slots = {False: asyncio.Semaphore(most), True: asyncio.Semaphore(max(1, most // 2))}
        self._wake = asyncio.Event()
        # The messages that wait for a place, if any do.
        self._taking: dict[bool, Source | None] = {False: None, True: None}
        self._mark = Watermark(self._keep_from() - 1)
        # Set while no live message waits; while there is work for the late reader; while it has none left.
        self._live_rests, self._put_off, self._nothing_overtaken = (asyncio.Event() for _ in range(3))
        self._live_rests.set()
        self._nothing_overtaken.set()
        # The message at which a defect of ours came up, by its stream sequence.
        self.blamed = 0
        # The shortest way from the hub to here: our clock and the hub's need not agree.
        self._shortest_ns: int | None = None
        self._subject = subjects.frame_subject(site, "*", camera)
        self._feed = self._open_feed(self._keep_from(), 64)

    def _open_feed(self, start: int, batch: int) -> Feed:
        bus = self._bus
        return Feed(
            bus.connection, bus.js, subjects.FRAMES, [self._subject], start_sequence=start, batch=batch
        )

    @contextlib.contextmanager
    def _blaming(self, sequence: int | None) -> Iterator[None]:
        """Whatever goes wrong inside and is neither the hub's fault nor bad input came up at that message.

        None: at the one that is being answered.
        """
        try:
            yield
        except (FencedOut, BusError, BadEnvelope, InvalidName):
            raise
        except Exception:
            if sequence is None:
                work = self._answers.answering
                sequence = work.source.stream_sequence if work is not None else 0
            self.blamed = self.blamed or sequence
            raise

    async def close(self) -> None:
        """Give the consumer back."""
        self._load.close()
        self._route.close()
        await self._feed.close()

    async def take(self) -> None:
        """Messages into work, pictures on their way to the model; those of the backlog are put off."""
        in_a_row = 0
        while True:
            if not self._feed.waiting or in_a_row > _MANY:
                self._live_rests.set()
            for message in await self._feed.take(16):
                took_ns = time.time_ns() - message.stored_ns
                self._shortest_ns = min(took_ns, self._shortest_ns or took_ns)
                try:
                    self._owner.check_poison(message)
                    with self._blaming(message.sequence):
                        source = self._intake.read(message)
                except (BadEnvelope, InvalidName) as problem:
                    bad = (
                        problem if isinstance(problem, BadEnvelope) else BadEnvelope("invalid", str(problem))
                    )
                    await self._owner.set_aside(message, bad)
                    self._mark.took(message.sequence, late=False)
                    self._answers.append(_end_of(message), time.monotonic())
                    self._wake.set()
                    continue
                late = source.lane == frame_pb2.LANE_BACKLOG
                self._load.took(source.lane, message.pending, put_off=late)
                if late:
                    in_a_row += 1
                    self._mark.put_off(message.sequence)
                    if self._mark.late_behind:
                        self._nothing_overtaken.clear()
                        self._put_off.set()
                    continue
                if source.envelope.in_order:
                    await self._nothing_overtaken.wait()
                self._live_rests.clear()
                in_a_row = 0
                await self._work(source)

    async def take_late(self) -> None:
        """What was put off, whenever no live message waits."""
        while True:
            await self._put_off.wait()
            feed = self._open_feed(self._mark.late_from, 16)
            try:
                while self._mark.late_behind:
                    for message in await feed.take(8):
                        try:
                            self._owner.check_poison(message)
                            source = self._intake.read(message)
                        except (BadEnvelope, InvalidName):
                            source = None  # the other reader puts it aside
                        if source is None or source.lane != frame_pb2.LANE_BACKLOG:
                            self._mark.passed(message.sequence)
                            continue
                        self._load.caught_up(message.pending)
                        self._taking[True] = source
                        await self._live_rests.wait()
                        await self._work(source)
            finally:
                await asyncio.shield(feed.close())
            if not self._mark.late_behind:
                self._put_off.clear()
                self._load.caught_up(0, taken=0)

    async def _work(self, source: Source) -> None:
        late = source.lane == frame_pb2.LANE_BACKLOG
        self._mark.took(source.stream_sequence, late=late)
        with self._blaming(source.stream_sequence):
            for one in self._intake.work(source):
                if source.provisional and one.kind is not Kind.END:
                    if len(self._early) < _MOST_EARLY:
                        self._early.append(one)
                elif one.kind is Kind.PIXELS:
                    self._taking[late] = source
                    await self._picture(one, late=late)
                else:
                    self._answers.append(one, time.monotonic())
        self._taking[late] = None
        self._wake.set()

    async def tell_lag(self) -> None:
        """Tell the device how long its messages wait, while they wait for long, and what came of them."""
        while True:
            await asyncio.sleep(_TELL_LAG_EVERY_S)
            for device, report in self._reports.due(time.monotonic()):
                await self._owner.tell_answers(device, report)
            # Of a camera that fell silent too.
            await self._log.purge_frames(self._keep_from())
            if self._shortest_ns is None:
                continue
            self._shortest_ns += _FORGET_NS  # or a clock that was set would count for ever
            for late, lane in ((False, frame_pb2.LANE_LIVE), (True, frame_pb2.LANE_BACKLOG)):
                oldest = self._answers.oldest_unseen(lane)
                source = oldest.source if oldest is not None else self._taking[late]
                lag_ns = time.time_ns() - source.stored_ns - self._shortest_ns if source is not None else 0
                self._load.lagging(lane, lag_ns / 1e9)
                if source is not None and lag_ns > _LAG_NS:
                    await self._owner.tell_lag(source.envelope.device, lag_ns, late=late)

    def _left_s(self, work: Work) -> float | None:
        """Seconds until the deadline of a live frame; None without one."""
        envelope = work.source.envelope
        if not envelope.deadline_ns or work.source.lane == frame_pb2.LANE_BACKLOG:
            return None
        hub_ns = time.time_ns() - (self._shortest_ns or 0)
        return (captured_ns(work.last_capture, work.source) + envelope.deadline_ns - hub_ns) / 1e9

    def _is_late(self, work: Work) -> bool:
        left_s = self._left_s(work)
        return work.source.lane == frame_pb2.LANE_BACKLOG if left_s is None else left_s <= 0

    async def _picture(self, work: Work, *, late: bool) -> None:
        placed = work.wanted and await self._place(work, late=late)
        try:
            pending = self._answers.append(work, time.monotonic()) if work.wanted else None
            if pending is not None and not placed:
                pending.outcome = DEADLINE
            began = time.perf_counter()
            try:
                if self._shared.inference.quiet and _is_small(work):
                    prepared = self._decode(work, wanted=placed)
                else:
                    loop = asyncio.get_running_loop()
                    prepared = await loop.run_in_executor(
                        self._shared.executor, lambda: self._decode(work, wanted=placed)
                    )
            except CannotDecode as problem:
                if pending is not None and placed:
                    pending.outcome = problem.reason
                    self._wake.set()
                await self._owner.ask_keyframe(work.source)
                return
            metrics.DECODE_SECONDS.observe(time.perf_counter() - began)
            if pending is not None and prepared is not None:
                self._load.picture(work.source.lane)
                self.group.create_task(self._infer(pending, prepared, time.time_ns(), late=late))
                placed = False
        finally:
            if placed:
                self._give_back(late=late)

    async def _place(self, work: Work, *, late: bool) -> bool:
        """Wait for a place at the model; false when the frame's deadline comes first."""
        left_s = self._left_s(work)
        if left_s is not None and left_s <= 0:
            return False
        try:
            async with asyncio.timeout(left_s):
                await self._slots[late].acquire()
                try:
                    await self._shared.inference.reserve(late=late)
                except BaseException:
                    self._slots[late].release()
                    raise
        except TimeoutError:
            return False
        return True

    def _give_back(self, *, late: bool) -> None:
        self._slots[late].release()
        self._shared.inference.release(late=late)

    def _decode(self, work: Work, *, wanted: bool) -> Prepared | None:
        assert work.unit is not None  # noqa: S101  # PIXELS has one
        decoder = self._decoders.setdefault(work.source.lane, ChainDecoder())
        picture = decoder.decode(work.unit, work.source.envelope.format, wanted=wanted)
        return None if picture is None else self._route.prepare(picture)

    async def _infer(self, pending: Pending, prepared: Prepared, decoded_ns: int, *, late: bool) -> None:
        metrics.IN_FLIGHT.inc()
        try:
            answer = await self._route.infer(prepared, within_s=self._left_s(pending.work))
            if isinstance(answer, str):
                pending.outcome = answer
            else:
                source = pending.work.source
                with self._blaming(source.stream_sequence):
                    in_source = to_source(answer.found, source.envelope.format)
                    if answer.card is self._shared.card:
                        self._compare(pending.work, answer)
                times = decoded_ns, answer.rows.start_ns, answer.rows.end_ns
                pending.outcome = Seen(in_source, *times, ref_of(answer.card))
        finally:
            metrics.IN_FLIGHT.dec()
            self._give_back(late=late)
            self._wake.set()

    def _compare(self, work: Work, answer: RouteAnswer) -> None:
        """Hold what the edge model saw in this frame, if it looked, against what was found here."""
        unit, envelope = work.unit, work.source.envelope
        if unit is None or not unit.HasField("edge"):
            return
        rows, least = answer.rows, self._reports.least
        found = detections(answer.card, rows.boxes, rows.count, answer.letterbox, thresholds=least)
        in_source = to_source(found, envelope.format)
        self._reports.compare(envelope.device, envelope.epoch.counter, unit, in_source)

    async def answer(self) -> None:
        """Results in order, each batch stored before the next."""
        while True:
            await self._answer_ahead()
            with self._blaming(None):
                collected = self._answers.collect(time.monotonic())
            if not collected.done:
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._answers.wait_s(time.monotonic())):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            for work in collected.done:
                self._note(work)
            if collected.results:
                with self._blaming(collected.done[0].source.stream_sequence):
                    for result in collected.results:
                        self._counter.count(result, self._owner.drawn(result.device))
                    await self._log.write(collected.results, self._checkpoint())
                self._count(collected.results)
                self._report(collected.results)
            await self._log.purge_frames(self._keep_from())

    async def _answer_ahead(self) -> None:
        """Store what devices answered by themselves, of frames that have no answer yet."""
        while self._early:
            works = [self._early.popleft() for _ in range(min(len(self._early), _EARLY_AT_ONCE))]
            with self._blaming(works[0].source.stream_sequence):
                results = provisional(
                    works,
                    lambda it: (
                        self._answered.missing(it.source.key, it.first, it.last) == [(it.first, it.last)]
                    ),
                )
                if results:
                    await self._log.write(results, self._checkpoint())

    def _report(self, results: list[result_pb2.Result]) -> None:
        for result in results:
            if result.lane == frame_pb2.LANE_LIVE:
                self._reports.answered(result.device, result.key.epoch.counter, result.last_sequence)

    def _note(self, work: Work) -> None:
        source = work.source
        if work.kind is Kind.END:
            late = source.lane == frame_pb2.LANE_BACKLOG
            self._mark.answered(source.stream_sequence, late=late)
            self._frame_sequence = max(self._frame_sequence, self._mark.answered_to)
            if not self._mark.overtaken:
                self._nothing_overtaken.set()
            return
        self._answered.add(source.key, work.first, work.last)
        state = self._lanes.get(source.lane)
        if state is None or _lane_key(state.stored) != source.key[1:]:
            stored = result_pb2.LaneCheckpoint(lane=source.lane, epoch=source.envelope.epoch)
            state = self._lanes[source.lane] = _LaneState(stored)
        state.stored.last_sequence = max(state.stored.last_sequence, work.last)
        state.heard_ns = time.time_ns()
        if work.unit is not None:
            state.stored.chain_id = work.unit.chain_id
            state.stored.keyframe_stream_sequence = work.keyframe_at

    def _checkpoint(self) -> result_pb2.Checkpoint:
        return result_pb2.Checkpoint(
            answered=self._answered.to_proto(),
            lanes=[state.stored for state in self._lanes.values()],
            frame_stream_sequence=self._frame_sequence,
            next_track_id=self._next_track_id,
            worker=self._shared.worker,
        )

    def _keep_from(self) -> int:
        """The oldest message that a new owner would need."""
        oldest = time.time_ns() - _CHAIN_NS
        open_chains = [
            state.stored.keyframe_stream_sequence
            for state in self._lanes.values()
            if state.stored.keyframe_stream_sequence and state.heard_ns > oldest
        ]
        return min([*open_chains, self._frame_sequence + 1])

    def _take_track_id(self) -> int:
        taken = next(self._track_ids)
        self._next_track_id = taken + 1
        return taken

    def _count(self, results: list[result_pb2.Result]) -> None:
        tenant = self._bus.tenant
        for result in results:
            frames = result.last_sequence - result.key.sequence + 1
            name = result_pb2.Provenance.Name(result.provenance).removeprefix("PROVENANCE_").lower()
            metrics.FRAMES.labels(tenant, name).inc(frames)
            if result.reason:
                metrics.DEGRADED.labels(tenant, metrics.reason_label(tenant, result.reason)).inc(frames)
            if result.provenance == result_pb2.PROVENANCE_CLOUD:
                metrics.CODED_BYTES.labels(tenant).inc(result.coded_bytes)
                delay_ns = result.times.answered_ns - result.times.captured_ns
                metrics.ANSWER_SECONDS.observe(max(0, delay_ns) / 1e9)
                if self._shared.traces is not None:
                    self._shared.traces.answered(result)


def _is_small(work: Work) -> bool:
    picture = work.source.envelope.format
    return picture.coded_width_px * picture.coded_height_px <= _SMALL_PX


def _end_of(message: StreamMessage) -> Work:
    source = Source(frame_pb2.FrameEnvelope(), ("", 0, b""), message.sequence, message.stored_ns, 0)
    return Work(Kind.END, source, 0, 0)


def _lane_key(stored: result_pb2.LaneCheckpoint) -> tuple[int, bytes]:
    return stored.epoch.counter, stored.epoch.random_id


def _stored_lanes(
    checkpoint: result_pb2.Checkpoint,
) -> Iterator[tuple[frame_pb2.Lane.ValueType, EpochKey, result_pb2.LaneCheckpoint]]:
    devices = {(e.epoch.counter, e.epoch.random_id): e.device for e in checkpoint.answered}
    for lane in checkpoint.lanes:
        yield lane.lane, (devices.get(_lane_key(lane), ""), *_lane_key(lane)), lane
