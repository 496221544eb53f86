"""One reading of a camera's checkpoint until something goes wrong: take, decode, infer, track, store.

Then the frame counts as answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cloud_inference import metrics
from cloud_inference.agree import Reports
from cloud_inference.answer import Answers, Pending, Seen, captured_ns
from cloud_inference.answered import Answered, epoch_key
from cloud_inference.consume import Intake, Kind, Lane, Source, Work
from cloud_inference.counting import Counter
from cloud_inference.decode import CannotDecode, ChainDecoder, to_source
from cloud_inference.early import provisional
from cloud_inference.feed import Feed, StreamMessage
from cloud_inference.hub_clock import HubClock
from cloud_inference.infer import DEADLINE
from cloud_inference.piled import Message, Piled
from cloud_inference.progress import Progress, stored_lanes
from cloud_inference.rollout.route import Answered as RouteAnswer
from cloud_inference.rollout.route import CameraRoute, Prepared, ref_of
from cloud_inference.store import FencedOut, ResultLog, Stored
from cloud_inference.thinning import Thinning
from cloud_inference.watermark import Watermark
from cloud_inference.workload import CameraLoad
from eyeline import subjects
from eyeline.errors import BadEnvelope, BusError, InvalidName
from eyeline.v1 import frame_pb2, result_pb2
from eyeline_models.catalogue import detections

if TYPE_CHECKING:
    from cloud_inference.camera import Camera

# Decoded at once while nothing else goes on: 0.3 ms, and to a thread and back takes as long again.
_SMALL_PX: Final = 200_000
# A device is told that its messages wait here from so long on, so often.
_LAG_NS: Final = 500_000_000
_TELL_LAG_EVERY_S: Final = 0.5
# Late messages on end after which no live one is supposed to be behind them.
_MANY: Final = 500
# Provisional results in one message.
_EARLY_AT_ONCE: Final = 200
# Beyond, they are left out: the final ones come anyway.
_MOST_EARLY: Final = 10_000

# What each reader takes, by whether it is late.
_READERS: Final = {
    False: (frame_pb2.LANE_LIVE,),
    True: (frame_pb2.LANE_BACKLOG, frame_pb2.LANE_OVERTAKEN),
}


class Session:
    """From one reading of the checkpoint until something goes wrong."""

    group: asyncio.TaskGroup

    def __init__(self, owner: Camera, log: ResultLog, stored: Stored) -> None:
        self._owner, self._log = owner, log
        self._shared, self._bus, site, camera = owner.parts
        checkpoint = stored.checkpoint
        self._progress = Progress(checkpoint, self._shared.worker)
        self._intake = Intake(
            tenant=self._bus.tenant, answered=Answered(checkpoint.answered), lanes=stored_lanes(checkpoint)
        )
        # Live messages that waited for too long, and what the live lane gave along with them.
        self._piled: Piled[tuple[Lane, ChainDecoder]] = Piled()
        self._decoders: dict[int, ChainDecoder] = {}
        card = self._shared.card
        self._answers = Answers(
            tracks=self._shared.tracks,
            next_track_id=self._progress.take_track_id,
            model=ref_of(card),
            mode=self._shared.propagate,
            is_late=self._is_late,
        )
        self._counter = Counter()
        for result in stored.left_behind:
            self._answers.restore(result, epoch_key(result.device, result.key.epoch))
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
        start = self._progress.keep_from()
        self._mark = Watermark(start - 1)
        # Set while no live message waits; while there is work for the late reader; while it has none left.
        self._live_rests, self._put_off, self._nothing_overtaken = (asyncio.Event() for _ in range(3))
        self._live_rests.set()
        self._nothing_overtaken.set()
        # The message at which a defect of ours came up, by its stream sequence.
        self.blamed = 0
        self._clock = HubClock()
        self._thinning = Thinning()
        self._thinned = metrics.THINNED.labels(self._bus.tenant)
        self._subject = subjects.frame_subject(site, "*", camera)
        self._feed = self._open_feed(start, 64)

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
        """Messages into work, pictures on their way to the model; late ones are put off."""
        in_a_row = 0
        while True:
            if not self._feed.waiting or in_a_row > _MANY:
                self._live_rests.set()
            messages = await self._feed.take(16)
            for number, message in enumerate(messages, 1):
                self._clock.heard(message.stored_ns, self._feed.way_ns)
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
                late, rest = (source, None) if source.late else await self._overtaken(message, source)
                self._load.took((rest or late or source).lane, message.pending, put_off=rest is None)
                if late is not None:
                    in_a_row += 1
                    self._mark.put_off(message.sequence)
                    if self._mark.late_behind:
                        self._nothing_overtaken.clear()
                        self._put_off.set()
                if rest is None:
                    continue
                source = rest
                if source.envelope.in_order:
                    await self._nothing_overtaken.wait()
                self._live_rests.clear()
                in_a_row = 0
                behind = len(messages) - number + self._feed.behind
                await self._work(source, self._load.live_part(behind))

    async def take_late(self) -> None:
        """What was put off, whenever no live message waits."""
        while True:
            await self._put_off.wait()
            feed = self._open_feed(self._mark.late_from, 16)
            try:
                while self._mark.late_behind:
                    for message in await feed.take(8):
                        if message.sequence > self._mark.put_off_to:
                            # The other reader has not looked at it yet; what was put off before it is gone.
                            self._mark.passed(self._mark.put_off_to)
                            break
                        source = self._late_part(message)
                        if source is None:
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

    async def _overtaken(self, message: StreamMessage, source: Source) -> tuple[Source | None, Source | None]:
        """What of a live message is put off, since it waited for too long, and what is answered live."""
        if source.provisional:
            return None, source
        envelope, items, was_on = source.envelope, len(source.envelope.items), self._piled.is_on
        look = self._piled.look(
            Message(
                message.sequence,
                items,
                (self._clock.now_ns() - message.stored_ns) / 1e9,
                wants_pixels=self._intake.wants_pixels(source),
                fresh_start=self._intake.fresh_start(source),
                in_time=bool(envelope.deadline_ns) or envelope.in_order,
            ),
            caught_up=not self._mark.overtaken,
        )
        if look.begins:
            self._hand_over(source)
        elif look.rejoins:
            self._rejoin()
        if was_on != self._piled.is_on:
            self._owner.tell("live_again" if was_on else "live_put_off", frame=message.sequence)
        if not look.put_off:
            return None, source
        late = source.part(0, look.put_off, overtaken=True)
        self._intake.put_off(late)
        if look.put_off < items:
            return late, source.part(look.put_off, items, overtaken=False)
        if self._intake.has_pixels(source):
            await self._owner.ask_keyframe(source)
        return late, None

    def _hand_over(self, source: Source) -> None:
        """What the live lane knows of its chain goes to the overtaken one: itself goes on at a keyframe."""
        self._thinning.lost()
        lane, decoder = self._intake.hand_over(), self._decoders.pop(frame_pb2.LANE_LIVE, ChainDecoder())
        self._piled.begun((lane, decoder))
        self._progress.hand_over(source, lane, results_to=self._log.last, busy=self._mark.overtaken)

    def _rejoin(self) -> None:
        """All that was put off is answered: the live lane takes its chain back."""
        self._intake.rejoin()
        self._answers.rejoin()
        decoder = self._decoders.pop(frame_pb2.LANE_OVERTAKEN, None)
        if decoder is not None:
            self._decoders[frame_pb2.LANE_LIVE] = decoder

    def _late_part(self, message: StreamMessage) -> Source | None:
        """What of a message was put off."""
        try:
            self._owner.check_poison(message)
            source = self._intake.read(message)
        except (BadEnvelope, InvalidName):
            return None  # the other reader puts it aside
        if source.late or source.provisional:
            return source if source.late else None
        stretch = self._piled.stretch_of(message.sequence)
        if stretch is None:
            return None
        if stretch.handed is not None:
            lane, self._decoders[frame_pb2.LANE_OVERTAKEN] = stretch.handed
            self._intake.take_up(lane)
            stretch.handed = None
        items = stretch.items if message.sequence == stretch.last else None
        return source.part(0, items or len(source.envelope.items), overtaken=True)

    async def _work(self, source: Source, behind: float = 0) -> None:
        """Into work. behind: messages like it that wait after it."""
        late = source.late
        self._mark.took(source.stream_sequence, late=late)
        with self._blaming(source.stream_sequence):
            works = self._intake.work(source)
            pictures = left = sum(one.kind is Kind.PIXELS and one.wanted for one in works)
            for one in works:
                if source.provisional and one.kind is not Kind.END:
                    if len(self._early) < _MOST_EARLY:
                        self._early.append(one)
                elif one.kind is Kind.PIXELS:
                    self._taking[late] = source
                    left -= one.wanted
                    await self._picture(one, late=late, behind=left + behind * pictures)
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
            await self._purge()
            if not self._clock.is_known:
                continue
            self._clock.forget()
            for late, lanes in _READERS.items():
                works = [work for lane in lanes if (work := self._answers.oldest_unseen(lane)) is not None]
                oldest = min((work.source for work in works), key=lambda it: it.stored_ns, default=None)
                source = oldest or self._taking[late]
                lag_ns = self._clock.now_ns() - source.stored_ns if source is not None else 0
                self._load.lagging(lanes[0], lag_ns / 1e9)
                if source is not None and lag_ns > _LAG_NS:
                    await self._owner.tell_lag(source.envelope.device, lag_ns, late=late)

    def _left_s(self, work: Work) -> float | None:
        """Seconds until the deadline of a live frame; None without one."""
        envelope = work.source.envelope
        if not envelope.deadline_ns or work.source.late:
            return None
        captured = captured_ns(work.last_capture, work.source)
        return (captured + envelope.deadline_ns - self._clock.now_ns()) / 1e9

    def _is_late(self, work: Work) -> bool:
        left_s = self._left_s(work)
        return work.source.late if left_s is None else left_s <= 0

    async def _picture(self, work: Work, *, late: bool, behind: float) -> None:
        may_thin = work.wanted and not late and not work.source.envelope.in_order
        thinned = may_thin and self._thinning.leaves_out(behind, work.source.key)
        wanted = work.wanted and not thinned
        placed = wanted and await self._place(work, late=late)
        try:
            pending = self._answers.append(work, time.monotonic()) if wanted else None
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
                if not late:
                    self._thinning.lost()
                if thinned:
                    pending = self._answers.append(work, time.monotonic())
                if pending is not None and (placed or thinned):
                    pending.outcome = problem.reason
                    self._wake.set()
                await self._owner.ask_keyframe(work.source)
                return
            metrics.DECODE_SECONDS.observe(time.perf_counter() - began)
            if thinned:
                # Filled in like what the device skips.
                self._answers.append(replace(work, kind=Kind.SKIPPED), time.monotonic())
                self._thinned.inc()
            if pending is not None and prepared is not None:
                self._load.picture(work.source.lane)
                if not late:
                    self._thinning.looked_at(work.source.key)
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
        began = time.monotonic()
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
        finally:
            if not late:
                self._thinning.waited(time.monotonic() - began)
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
                    await self._log.write(collected.results, self._progress.checkpoint())
                metrics.count(self._bus.tenant, collected.results)
                if self._shared.traces is not None:
                    self._shared.traces.answered(collected.results)
                self._report(collected.results)
            await self._purge()

    async def _answer_ahead(self) -> None:
        """Store what devices answered by themselves, of frames that have no answer yet."""
        while self._early:
            works = [self._early.popleft() for _ in range(min(len(self._early), _EARLY_AT_ONCE))]
            with self._blaming(works[0].source.stream_sequence):
                results = provisional(works, self._progress.is_open)
                if results:
                    await self._log.write(results, self._progress.checkpoint())

    def _report(self, results: list[result_pb2.Result]) -> None:
        for result in results:
            if result.lane == frame_pb2.LANE_LIVE:
                self._reports.answered(result.device, result.key.epoch.counter, result.last_sequence)

    def _note(self, work: Work) -> None:
        if work.kind is not Kind.END:
            self._progress.note(work)
            return
        self._mark.answered(work.source.stream_sequence, late=work.source.late)
        self._progress.answered_through(self._mark.answered_to)
        if not self._mark.overtaken:
            if work.source.stored_ns >= self._clock.began_ns:  # behind all that a former owner put off
                self._progress.caught_up()
            self._nothing_overtaken.set()

    async def _purge(self) -> None:
        """Remove the pixels that nobody needs any more."""
        await self._log.purge_frames(self._progress.keep_from(overtaken=self._mark.overtaken))


def _is_small(work: Work) -> bool:
    picture = work.source.envelope.format
    return picture.coded_width_px * picture.coded_height_px <= _SMALL_PX


def _end_of(message: StreamMessage) -> Work:
    source = Source(frame_pb2.FrameEnvelope(), ("", 0, b""), message.sequence, message.stored_ns, 0)
    return Work(Kind.END, source, 0, 0)
