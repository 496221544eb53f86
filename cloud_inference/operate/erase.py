"""Erasing what a camera showed in a time: pixels, results, dead letters, samples, and the devices' spools.

Everywhere, and then it is looked for again: the report counts what was found, and what a last reading still
finds. Frames count by capture time on the hub's clock. Whole messages go, so up to an envelope of pixels and
a batch of results more at either end; frames of the time that no worker has answered yet get the answer
DEGRADED, which tells nothing. The newest message of a camera's results carries the checkpoint by which its
worker goes on: a copy without results takes its place first, and the worker, fenced out, starts from it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import nats.errors
from google.protobuf.message import DecodeError
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from cloud_inference.feed import Feed, StreamMessage
from cloud_inference.operate.connect import Account, operator
from cloud_inference.operate.release import statuses
from eyeline import subjects
from eyeline.capture_time import captured_span
from eyeline.envelope import SCHEMA_MAJOR, parse_envelope
from eyeline.errors import BadEnvelope, BusError, ConfigError
from eyeline.v1 import device_pb2, result_pb2

_WRONG_LAST_SEQUENCE: Final = 10071
_GONE: Final = frozenset({10037, 10043, 10057})
_ANSWER_S: Final = 10.0
_AT_ONCE: Final = 64
# A worker may still hold what was erased from under it; until it is through, we look again.
_SETTLE_S: Final = 2.0
_PASSES: Final = 30
# Clocks of devices may be off by this, beyond what they estimate.
_SLACK_NS: Final = 1_000_000_000
_ATTEMPTS: Final = 50
# Wishes of erasures stay with a device for so long.
_REMEMBERED_NS: Final = 400 * 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Order:
    """What to erase: captured from `from_ns` on and before `to_ns`, on the hub's clock."""

    site: str
    camera: str
    from_ns: int
    to_ns: int

    def __post_init__(self) -> None:
        subjects.check_token(self.site, "site")
        subjects.check_token(self.camera, "camera")
        if self.from_ns >= self.to_ns:
            raise ConfigError("--to must be later than --from")
        if self.to_ns > time.time_ns():
            raise ConfigError("--to lies in the future: erase when it is over")

    def touches(self, first_ns: int, last_ns: int, slack_ns: int = 0) -> bool:
        """Whether any of it lies inside; 0 is no time, and counts as inside."""
        unknown = not first_ns or not last_ns
        return unknown or (last_ns + slack_ns >= self.from_ns and first_ns - slack_ns < self.to_ns)


@dataclass(slots=True)
class Place:
    """One place: messages and bytes found and erased, and what the last reading still found."""

    name: str
    erased: int = 0
    erased_bytes: int = 0
    left: int = 0


@dataclass(slots=True)
class Report:
    """What was done. pending: devices that have not said yet that their spools hold nothing of it."""

    id: str
    places: list[Place] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is left anywhere."""
        return not self.pending and not any(place.left for place in self.places)


async def erase(account: Account, order: Order, *, wait_s: float = 30.0) -> Report:
    """Erase it everywhere. wait_s: how long to wait for devices. Raises `BusError`, `ConfigError`."""
    report = Report(secrets.token_hex(8))
    what = {"id": report.id, "from_ns": order.from_ns, "to_ns": order.to_ns}
    named = [f"{order.site}/{order.camera}"]
    await account.audit.record(operator(), "erase", named, **what)
    try:
        report.devices = await _order_devices(account, order, report.id)
        report.pending = await _waiting(account, report, wait_s)
        report.places = [Place(name) for name in ("pixels", "results", "dead letters", "samples")]
        clean = 0
        for _ in range(_PASSES):
            await account.connection.publish(subjects.erased_subject(order.site, order.camera), b"")
            found = [await _sweep(account, order, place) for place in report.places]
            clean = clean + 1 if not any(found) else 0
            if clean == 2:
                break
            await asyncio.sleep(_SETTLE_S)
        for place in report.places:
            place.left = len([one async for one in _matching(account, order, place.name)])
        report.pending = await _waiting(account, report, 0)
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(
            f"the erasure is not finished ({str(problem) or 'no answer'}): give it again"
        ) from None
    counts = {place.name: [place.erased, place.left] for place in report.places}
    await account.audit.record(
        operator(),
        "erased",
        named,
        **what,
        erased_left=counts,
        pending=report.pending,
        complete=report.complete,
    )
    return report


# Devices


async def _order_devices(account: Account, order: Order, order_id: str) -> list[str]:
    """Write the wish into every device of the site that has, or had, the camera; their names."""
    names = {status.device for status in await statuses(account) if status.site == order.site}
    names |= await _claimed_by(account, order)
    wish = device_pb2.Erasure(
        id=order_id,
        camera=order.camera,
        from_ns=order.from_ns,
        to_ns=order.to_ns,
        ordered_ns=time.time_ns(),
    )
    bucket = await account.js.key_value(subjects.DESIRED)
    for name in sorted(names):
        key = subjects.desired_key(order.site, name)
        for _ in range(_ATTEMPTS):
            wanted, revision = device_pb2.DesiredConfig(), 0
            try:
                entry = await bucket.get(key)
                wanted.ParseFromString(entry.value or b"")
                revision = entry.revision or 0
            except KeyNotFoundError:
                pass
            oldest = time.time_ns() - _REMEMBERED_NS
            kept = [one for one in wanted.erasures if one.ordered_ns > oldest]
            del wanted.erasures[:]
            wanted.erasures.extend([*kept, wish])
            try:
                if revision:
                    await bucket.update(key, wanted.SerializeToString(), last=revision)
                else:
                    await bucket.create(key, wanted.SerializeToString())
                break
            except KeyWrongLastSequenceError:
                continue  # somebody else was quicker
        else:
            raise BusError(f"what is wanted of {order.site}/{name} changes too quickly: give it again")
        # A new chain, so that nothing which comes later needs what goes now.
        request = device_pb2.ControlRequest(camera=order.camera, keyframe=True)
        await account.connection.publish(
            subjects.control_subject(order.site, name), request.SerializeToString()
        )
    await account.connection.flush()
    return [f"{order.site}/{name}" for name in sorted(names)]


async def _claimed_by(account: Account, order: Order) -> set[str]:
    """The device that publishes the camera, however long ago it was heard of."""
    bucket = await account.js.key_value(subjects.CLAIMS)
    try:
        entry = await bucket.get(subjects.camera_key(order.site, order.camera))
        return {subjects.check_token(str(json.loads(entry.value or b"")["device"]))}
    except (KeyNotFoundError, ValueError, KeyError, TypeError):
        return set()


async def _waiting(account: Account, report: Report, wait_s: float) -> list[str]:
    """Devices that have not reported the erasure as done."""
    end = time.monotonic() + wait_s
    while True:
        done = {
            f"{status.site}/{status.device}"
            for status in await statuses(account)
            if any(one.id == report.id and one.done for one in status.erasures)
        }
        pending = [name for name in report.devices if name not in done]
        if not pending or time.monotonic() >= end:
            return pending
        await asyncio.sleep(0.25)


# The hub

_STREAMS: Final[dict[str, tuple[str, Callable[[Order], str]]]] = {
    "pixels": (subjects.FRAMES, lambda o: subjects.frame_subject(o.site, "*", o.camera)),
    "results": (subjects.RESULTS, lambda o: subjects.result_subject(o.site, o.camera)),
    "dead letters": (subjects.DEAD, lambda o: subjects.dead_subject(o.site, "*", o.camera)),
    "samples": (subjects.SAMPLES, lambda o: subjects.sample_subject(o.site, "*", o.camera)),
}


async def _matching(account: Account, order: Order, place: str) -> AsyncIterator[StreamMessage]:
    """Messages of a place with anything of the time in them."""
    stream, subject_of = _STREAMS[place]
    # Nothing is stored before it was captured, as far as clocks are right.
    start = datetime.fromtimestamp(max(0.0, order.from_ns / 1e9 - 60), UTC)
    feed = Feed(account.connection, account.js, stream, [subject_of(order)], start_time=start)
    test = _TESTS[place]
    try:
        async with asyncio.timeout(_ANSWER_S):
            await feed.open()
        if not feed.pending_at_start:
            return
        while True:
            async with asyncio.timeout(_ANSWER_S):
                messages = await feed.take(256)
            for message in messages:
                if test(order, message):
                    yield message
            if messages[-1].pending == 0:
                return
    finally:
        await asyncio.shield(feed.close())


async def _sweep(account: Account, order: Order, place: Place) -> int:
    """Erase what one reading of a place finds; how many messages."""
    stream = _STREAMS[place.name][0]
    found = [(message.sequence, len(message.data)) async for message in _matching(account, order, place.name)]
    if place.name == "results" and found:
        await _keep_checkpoint(account, order, {sequence for sequence, _ in found})
    slots = asyncio.Semaphore(_AT_ONCE)

    async def remove(sequence: int) -> None:
        async with slots:
            try:
                # The server overwrites it on disk.
                await account.js.delete_msg(stream, sequence)
            except (NotFoundError, APIError) as problem:
                if not isinstance(problem, NotFoundError) and problem.err_code not in _GONE:
                    raise

    await asyncio.gather(*(remove(sequence) for sequence, _ in found))
    place.erased += len(found)
    place.erased_bytes += sum(size for _, size in found)
    return len(found)


async def _keep_checkpoint(account: Account, order: Order, going: set[int]) -> None:
    """If the newest message of the camera goes, its checkpoint takes its place without its results."""
    subject = subjects.result_subject(order.site, order.camera)
    for _ in range(_ATTEMPTS):
        newest = await account.js.get_last_msg(subjects.RESULTS, subject)
        if newest.seq not in going:
            return
        batch = result_pb2.ResultBatch(schema_major=SCHEMA_MAJOR)
        batch.checkpoint.CopyFrom(result_pb2.ResultBatch.FromString(newest.data or b"").checkpoint)
        try:
            await account.js.publish(
                subject,
                batch.SerializeToString(),
                timeout=_ANSWER_S,
                headers={"Nats-Expected-Last-Subject-Sequence": str(newest.seq)},
            )
        except APIError as problem:
            if problem.err_code != _WRONG_LAST_SEQUENCE:
                raise
            continue  # its worker wrote: look again
        return


def _shows(order: Order, message: StreamMessage) -> bool:
    """Whether an envelope has frames of the time; one that cannot be read counts from when it was stored."""
    try:
        envelope = parse_envelope(message.data)
    except BadEnvelope:
        return message.stored_ns >= order.from_ns
    first_ns, last_ns = captured_span(envelope)
    return order.touches(first_ns, last_ns, _SLACK_NS + envelope.clock.uncertainty_ns)


def _tells(order: Order, message: StreamMessage) -> bool:
    """Whether a batch has results of the time that tell anything."""
    try:
        batch = result_pb2.ResultBatch.FromString(message.data)
    except DecodeError:
        return message.stored_ns >= order.from_ns
    return any(
        order.touches(result.times.captured_ns, result.last_captured_ns or result.times.captured_ns)
        for result in batch.results
        if result.detections or result.provenance != result_pb2.PROVENANCE_DEGRADED
    )


def _later(order: Order, message: StreamMessage) -> bool:
    """Samples do not say when they were taken: all that were stored since."""
    return message.stored_ns >= order.from_ns


_TESTS: Final[dict[str, Callable[[Order, StreamMessage], bool]]] = {
    "pixels": _shows,
    "results": _tells,
    "dead letters": _shows,
    "samples": _later,
}


def as_dict(report: Report) -> dict[str, Any]:
    """For printing."""
    return {
        "id": report.id,
        "complete": report.complete,
        "places": [
            {"name": it.name, "erased": it.erased, "erased_bytes": it.erased_bytes, "left": it.left}
            for it in report.places
        ],
        "devices": report.devices,
        "pending": report.pending,
    }
