"""From the spool to the hub: in order within each camera's lane, live before backlog.

One message of a camera's lane is under way at a time, so that one which fails cannot be overtaken; while it
is, what follows is put into one larger message. So the rate is not bound by the round trip, and on a fast
link every envelope still goes out at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import structlog

from edge_agent.allowance import Allowances
from edge_agent.batch import as_dropped
from edge_agent.ending import end_tasks
from edge_agent.epoch import read_json, write_atomically
from edge_agent.errors import SpoolError
from edge_agent.join import ClockAt, Message, join
from edge_agent.keep import Keeper
from edge_agent.link import Ack, Link, Refused, Session, TooLarge
from edge_agent.pressure import Pressure
from edge_agent.segments import CameraIndex, Segment
from edge_agent.spool import Spool
from eyeline.envelope import (
    first_sequence,
    last_sequence,
    message_id,
)
from eyeline.errors import BusError
from eyeline.subjects import FRAMES, frame_subject
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

_log = structlog.get_logger()

# A dead connection is noticed by its pings; an answer may be long on a slow one.
_ACK_TIMEOUT_S: Final = 12.0
_FIRST_RETRY_S: Final = 0.1
_LONGEST_RETRY_S: Final = 5.0
_POLL_S: Final = 0.25
# Joined messages grow while they are acknowledged quickly, and shrink when they hold the link for long:
# seconds beyond the round trip.
_SMALLEST_BATCH_BYTES: Final = 16 << 10
_LARGEST_BATCH_BYTES: Final = 512 << 10
_QUICK_S: Final = 0.1
_SLOW_S: Final = 0.4
# Messages joined into one; of the backlog, what its rate allows in so many seconds.
_MOST_MESSAGES: Final = 64
_FEWEST_MESSAGES: Final = 4
_BACKLOG_STEP_S: Final = 0.25
# Within a byte budget the backlog waits for so much room, rather than go piece by piece.
_LEAST_ROOM_BYTES: Final = 2_000
# The backlog lets waiting live messages pass, but not for ever.
_YIELD_S: Final = 0.2
# New chains for a link that is too slow are asked for at most so often.
_CHAIN_EVERY_S: Final = 5.0


class Permission(Protocol):
    """Who says whether a camera may be published now."""

    def may_publish(self, camera: str) -> bool:
        """Whether this device holds the camera's claim."""


@dataclass(slots=True)
class _Camera:
    index: CameraIndex
    # Last sequence that the hub has, per lane and epoch.
    reached: dict[tuple[int, Epoch], int] = field(default_factory=dict)
    asked_chain_s: float = -1e9
    asked_for_outage: bool = False
    sent_messages: int = 0
    sent_bytes: int = 0
    lanes: dict[int, str] = field(default_factory=dict)


class Forwarder:
    """Forwards every camera's spooled envelopes to the hub and removes what the hub acknowledged."""

    def __init__(
        self,
        spool: Spool,
        keeper: Keeper,
        hub: Link,
        *,
        site: str,
        device: str,
        permission: Permission,
        state_dir: Path,
        pressure: Callable[[str], Pressure],
        allowances: Allowances,
        clock_at: ClockAt,
        taken: Callable[[str], None] = lambda _camera: None,
    ) -> None:
        """taken: told when the hub took something of a camera."""
        self._spool, self._keeper, self._hub = spool, keeper, hub
        self._site, self._device = site, device
        self._permission = permission
        self._pressure = pressure
        self._allowances = allowances
        self._clock_at = clock_at
        self._taken = taken
        # Whether something of a camera has to reach the hub before its backlog.
        self.goes_first: Callable[[str], bool] = lambda _camera: False
        self._order = spool.settings.order
        self._late_s = spool.settings.late_after_s
        self._cameras: dict[str, _Camera] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._live_waiting: set[str] = set()
        self._live_clear = asyncio.Event()
        self._live_clear.set()
        self._backlog_turn = asyncio.Lock()
        # Set when no live picture follows any more.
        self._last_words = asyncio.Event()
        self._batch_bytes = 64 << 10
        self._round_trip_s = 1.0
        # Joined messages stay below the hub's max_payload.
        self._most_bytes = _LARGEST_BATCH_BYTES
        self._pins_file = state_dir / "backlog-chains.json"
        self._pins: dict[str, list[str]] = {}
        # One line for the status; empty while the hub takes everything.
        self.problem = ""
        self.too_large: Counter[str] = Counter()

    async def run(self) -> None:
        """Forward for ever."""
        self._read_pins()
        try:
            while True:
                for camera in self._spool.cameras:
                    if camera not in self._tasks:
                        self._start(camera)
                async with self._keeper.added:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await self._keeper.added.wait()
                for tasks in self._tasks.values():
                    for task in tasks:
                        if task.done():
                            task.result()
        finally:
            await end_tasks(task for found in self._tasks.values() for task in found)

    def _start(self, camera: str) -> None:
        state = self._cameras[camera] = _Camera(self._spool.index(camera))
        pins = self._pins.get(camera, [])
        for segment in state.index.segments:
            # From an earlier run: the rest of a chain goes where its start went.
            if not segment.whole:
                state.index.assign(segment, pb.LANE_BACKLOG if _pin(segment) in pins else pb.LANE_LIVE)
            elif segment.chain is None and segment is state.index.segments[0]:
                # It may be the last of one, without pixels of its own.
                pinned = any(pin.startswith(_pin_epoch(segment)) for pin in pins)
                state.index.assign(segment, pb.LANE_BACKLOG if pinned else pb.LANE_LIVE)
        self._tasks[camera] = [
            asyncio.create_task(self._forward_live(camera, state)),
            asyncio.create_task(self._forward_backlog(camera, state)),
        ]

    def spare_nothing(self) -> None:
        """Nothing more is captured: what is kept goes as fast as hub and byte budget take it."""
        self._last_words.set()

    def sent(self, camera: str) -> tuple[int, int]:
        """Messages and bytes that the hub took from this camera, since start."""
        state = self._cameras.get(camera)
        return (state.sent_messages, state.sent_bytes) if state is not None else (0, 0)

    # Choosing

    async def _forward_live(self, camera: str, state: _Camera) -> None:
        while True:
            session = self._hub.session
            if session is None:
                self._shorten_straddling(state)
            segment = None
            if session is not None and self._permission.may_publish(camera):
                segment = await self._next_live(state)
            if segment is None or session is None:
                self._set_live_waiting(camera, waiting=False)
                await self._wait_for_work()
                continue
            self._set_live_waiting(camera, waiting=True)
            await self._send_next(camera, state, segment)

    def _set_live_waiting(self, camera: str, *, waiting: bool) -> None:
        (self._live_waiting.add if waiting else self._live_waiting.discard)(camera)
        if self._live_waiting:
            self._live_clear.clear()
        else:
            self._live_clear.set()

    async def _wait_for_work(self) -> None:
        async with self._keeper.added:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._keeper.added.wait()

    def _shorten_straddling(self, state: _Camera) -> None:
        """In an outage, end the chain whose start is at the hub: its rest has to stay in the live lane."""
        lost_at = self._hub.lost_at
        now = time.monotonic()
        last = state.index.segments[-1] if state.index.segments else None
        if (
            lost_at is not None
            and now - lost_at > self._late_s
            and last is not None
            and last.lane == pb.LANE_LIVE
        ):
            self._ask_chain(state, now)

    def _ask_chain(self, state: _Camera, now: float) -> None:
        if now - state.asked_chain_s >= _CHAIN_EVERY_S:
            state.asked_chain_s = now
            self._keeper.break_chain(state.index.camera)

    def _ask_chain_while_live(self, state: _Camera, message: Message) -> None:
        if message.lane == pb.LANE_LIVE:
            self._ask_chain(state, time.monotonic())

    async def _next_live(self, state: _Camera) -> Segment | None:
        """The segment to send next in the live lane; late ones are moved to the backlog on the way."""
        now = time.monotonic()
        backlog_waits = False
        for segment in state.index.waiting():
            if segment.lane == pb.LANE_UNSPECIFIED and not segment.whole:
                state.index.assign(segment, state.index.lane_of_chain(segment) or pb.LANE_LIVE)
            late = now - segment.stored_s > self._late_s
            if segment.lane == pb.LANE_LIVE:
                if late and segment is state.index.segments[-1]:
                    # Its end is the soonest that the live picture can come first again.
                    self._ask_chain(state, now)
                return segment
            if segment.lane == pb.LANE_UNSPECIFIED:
                waits_behind = backlog_waits and self._order == "backlog-first"
                if not late and not waits_behind:
                    state.index.assign(segment, pb.LANE_LIVE)
                    return segment
                if not late:
                    return None
                await self._move_to_backlog(state, segment)
            backlog_waits = backlog_waits or segment.lane == pb.LANE_BACKLOG
        last = state.index.segments[-1] if state.index.segments else None
        if last is not None and last.lane == pb.LANE_BACKLOG and last.chain is not None:
            # The chain that is still growing is late as a whole: the live picture needs a new one.
            self._ask_chain(state, now)
        return None

    async def _move_to_backlog(self, state: _Camera, segment: Segment) -> None:
        if self._order == "live-only":
            await self._keeper.purge(state.index, segment, "live_only")
            return
        state.index.assign(segment, pb.LANE_BACKLOG)

    async def _forward_backlog(self, camera: str, state: _Camera) -> None:
        while True:
            segment = next((found for found in state.index.waiting() if found.lane == pb.LANE_BACKLOG), None)
            reports = self._due_reports(camera, state)
            nothing = segment is None and not reports
            if nothing:
                self._pressure(camera).backlog_done()
            if nothing or self._hub.session is None or not self._permission.may_publish(camera):
                await self._wait_for_work()
                continue
            room = self._allowances.room(camera, late=True)
            waits = self.goes_first(camera) and not self._last_words.is_set()
            if waits or room < _LEAST_ROOM_BYTES:
                await asyncio.sleep(_POLL_S)
                continue
            pixels = 0
            # Within a byte budget a camera waits for its own room, and holds up no other.
            async with self._backlog_turn if room == float("inf") else contextlib.nullcontext():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_YIELD_S):
                        await self._live_clear.wait()
                if reports:
                    await self._send_report(camera, state, *reports[0])
                elif segment is not None and segment.pending:
                    pixels = await self._send_next(camera, state, segment)
            # The cloud answers in the order of arrival: so the live picture waits for little of this.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pixels / self._pressure(camera).backlog_fps()):
                    await self._last_words.wait()

    def _due_reports(self, camera: str, state: _Camera) -> list[tuple[int, pb.FrameEnvelope]]:
        """Reports of lost frames, but none before frames of the same run that came earlier."""
        waiting = [it for it in state.index.waiting() if it.lane != pb.LANE_LIVE]
        return [
            (position, report)
            for position, report in self._spool.reports.get(camera, [])
            if not any(
                it.epoch == Epoch.from_proto(report.epoch) and it.next_frame < first_sequence(report)
                for it in waiting
            )
        ]

    def _adapt(self, took_s: float) -> None:
        """Make joined messages as large as the link carries without holding up the live picture."""
        self._round_trip_s = min(took_s, self._round_trip_s * 1.02 + 0.0005)
        if took_s < self._round_trip_s + _QUICK_S:
            self._batch_bytes = min(self._batch_bytes * 2, _LARGEST_BATCH_BYTES)
        elif took_s > self._round_trip_s + _SLOW_S:
            self._batch_bytes = max(self._batch_bytes // 2, _SMALLEST_BATCH_BYTES)

    # Sending

    async def _send_next(self, camera: str, state: _Camera, segment: Segment) -> int:
        """Send the next messages of a segment as one; the number of pictures that the hub took."""
        segment.busy = True
        most = _MOST_MESSAGES
        if segment.lane == pb.LANE_BACKLOG and not self._last_words.is_set():
            rate = self._pressure(camera).backlog_fps()
            most = min(most, max(_FEWEST_MESSAGES, int(rate * _BACKLOG_STEP_S)))
        try:
            parts = await self._spool.read(
                camera, segment, max_messages=most, max_bytes=min(self._batch_bytes, self._most_bytes)
            )
            if not parts:
                _log.error("spool_messages_gone", camera=camera, messages=segment.messages)
                state.index.discard(segment)
                return 0
            late = segment.lane == pb.LANE_BACKLOG
            if late:
                parts = _within(parts, self._allowances.room(camera, late=True))
                self._pin(camera, segment)
            reached = state.reached.get((segment.lane, segment.epoch))
            message = join(segment, parts, reached, self._clock_at)
            await self._allowances.wait(camera, len(message.payload), late=late)
            started = time.monotonic()
            ack = await self._until_stored(camera, state, message)
            if ack is None:
                return 0
            self._adapt(time.monotonic() - started)
            state.reached[message.lane, message.epoch] = message.last
            self._forget_epochs(state)
            state.sent_messages += 1
            state.sent_bytes += len(message.payload)
            self._spool.acknowledged(camera, segment, message.parts, message.last)
            self._taken(camera)
        except (BusError, SpoolError) as problem:
            # The spool's broker is away; it says so itself.
            _log.debug("spool_read_failed", reason=str(problem))
            await asyncio.sleep(_FIRST_RETRY_S)
            return 0
        finally:
            segment.busy = False
        return message.pictures

    async def _send_report(
        self, camera: str, state: _Camera, sequence: int, report: pb.FrameEnvelope
    ) -> None:
        """Send a report of lost frames in the backlog lane."""
        envelope, epoch = pb.FrameEnvelope(), Epoch.from_proto(report.epoch)
        envelope.CopyFrom(report)
        envelope.lane = pb.LANE_BACKLOG
        reached = state.reached.get((pb.LANE_BACKLOG, epoch), 0)
        envelope.previous_sequence = min(reached, first_sequence(envelope) - 1)
        last = last_sequence(envelope)
        message = Message(
            envelope.SerializeToString(),
            f"{message_id(envelope)}.lost",
            [],
            pb.LANE_BACKLOG,
            epoch,
            last,
            envelope,
        )
        self._keeper.sending.add(sequence)
        try:
            await self._allowances.wait(camera, len(message.payload), late=True)
            if await self._until_stored(camera, state, message) is None:
                return
        finally:
            self._keeper.sending.discard(sequence)
        state.reached[pb.LANE_BACKLOG, epoch] = max(reached, last)
        self._spool.report_acknowledged(camera, sequence)

    async def _until_stored(self, camera: str, state: _Camera, message: Message) -> Ack | None:
        """Publish again and again until the hub has it; None when the claim was lost meanwhile."""
        delay = _FIRST_RETRY_S
        payload, name = message.payload, message.message_id
        while True:
            session = await self._session(state)
            if not self._permission.may_publish(camera):
                return None
            # A link that says nothing may be dead long before that shows: then the live picture needs a chain
            # that can be sent apart from what waits.
            loop = asyncio.get_running_loop()
            silent = loop.call_later(self._late_s, self._ask_chain_while_live, state, message)
            try:
                ack = await self._store(session, camera, payload, name)
            except TooLarge as problem:
                if len(message.parts) > 1:
                    self._most_bytes = session.client.max_payload // 2
                    return None
                frames = message.last - first_sequence(message.envelope) + 1
                if name.endswith(".too_large"):
                    raise BusError(str(problem)) from None
                self.too_large[camera] += frames
                _log.error("message_set_aside", camera=camera, reason="too_large", problem=str(problem))
                payload = as_dropped(message.envelope, "too_large").SerializeToString()
                name += ".too_large"
                continue
            except BusError as problem:
                self._say(str(problem) if isinstance(problem, Refused) or not session.closed.is_set() else "")
                if not session.closed.is_set():
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _LONGEST_RETRY_S)
                continue
            finally:
                silent.cancel()
            self._say("")
            return ack

    async def _session(self, state: _Camera) -> Session:
        """The hub, when it is there; an outage goes on to be noticed while a message is under way."""
        while True:
            try:
                async with asyncio.timeout(_POLL_S):
                    return await self._hub.ready()
            except TimeoutError:
                self._shorten_straddling(state)

    async def _store(self, session: Session, camera: str, payload: bytes, name: str) -> Ack:
        subject = frame_subject(self._site, self._device, camera)
        headers = {"Nats-Msg-Id": name, "Nats-Expected-Stream": FRAMES}
        return await session.store(subject, payload, headers=headers, timeout_s=_ACK_TIMEOUT_S)

    def _say(self, problem: str) -> None:
        if problem and not self.problem:
            _log.warning("hub_refuses", reason=problem, kept="in the spool")
        elif self.problem and not problem:
            _log.info("hub_takes_again")
        self.problem = problem

    def _forget_epochs(self, state: _Camera) -> None:
        while len(state.reached) > 16:
            del state.reached[next(iter(state.reached))]

    # Chains in the backlog lane, kept across restarts

    def _read_pins(self) -> None:
        found = read_json(self._pins_file)
        if isinstance(found, dict):
            self._pins = {
                str(key): [str(pin) for pin in pins] for key, pins in found.items() if isinstance(pins, list)
            }

    def _pin(self, camera: str, segment: Segment) -> None:
        """Remember that this chain's start went into the backlog lane."""
        pin = _pin(segment)
        if segment.chain is None or pin in self._pins.get(camera, []):
            return
        self._pins[camera] = [*self._pins.get(camera, [])[-3:], pin]
        try:
            write_atomically(self._pins_file, self._pins)
        except OSError as problem:
            _log.warning("pins_not_written", reason=problem.strerror)


def _within(parts: list[tuple[int, bytes]], room: float) -> list[tuple[int, bytes]]:
    """The first of these messages that have room together; one at least."""
    sizes = itertools.accumulate(len(data) for _, data in parts)
    return parts[: max(1, sum(size <= room for size in sizes))]


def _pin(segment: Segment) -> str:
    return f"{_pin_epoch(segment)}{segment.chain}"


def _pin_epoch(segment: Segment) -> str:
    return f"{segment.epoch.counter}.{segment.epoch.random_id.hex()}."
