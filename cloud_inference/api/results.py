"""The `Results` service: reading the results stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from grpc import StatusCode
from nats.js.errors import NotFoundError

from cloud_inference.access import Grant
from cloud_inference.api import metrics, tokens
from cloud_inference.api.auth import Authenticator, patterns, require
from cloud_inference.api.continuity import (
    ALL,
    aged_out,
    behind_everything,
    check_reachable,
    check_same,
    jumps,
)
from cloud_inference.api.errors import Refusal, streaming, unary
from cloud_inference.api.limits import Limits
from cloud_inference.api.tenants import TenantHub, Tenants
from cloud_inference.api.tokens import Kind, Position
from cloud_inference.feed import Feed, StreamMessage
from cloud_inference.traces import Traces
from eyeline import subjects
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.errors import InvalidName
from eyeline.v1 import frame_pb2, result_pb2, result_pb2_grpc

_log = structlog.get_logger()

_MAX_CAMERAS = 500
_PAGE_DEFAULT, _PAGE_MOST = 100, 1000
# A call reads at most so many messages; the page token goes on from there.
_SCAN_MESSAGES = 20_000
_SCAN_S = 5.0
# ... and waits at most so long for a hub that went away.
_PAGE_S = 10.0
# How soon a quiet subscription notices that the hub lost its results.
_LOOK_S = 1.0
_RETRY_S = 0.25
# Stored messages in one response: what clients take by default is 4 MiB.
_RESPONSE_BYTES = 1 << 20
# Beside a backlog, live answers are stored at least as often as the first of these says; those of a camera
# that ended may lie further back.
_LOOK_BACK_S = (10.0, 120.0, 1800.0)
# A subscription that is quiet for so long gets a fresh token, lest its old one expires.
_QUIET_S = 30.0
# A device's clock may run ahead of the hub's by this, so that a frame seems captured after it was stored.
_CLOCK_SLACK_NS = 60 * 1_000_000_000


class ResultsService(result_pb2_grpc.ResultsServicer):
    """Serves stored results."""

    def __init__(
        self, tenants: Tenants, auth: Authenticator, limits: Limits, traces: Traces | None = None
    ) -> None:
        self._tenants, self._auth, self._limits, self._traces = tenants, auth, limits, traces
        self._subscriptions: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def stop(self) -> None:
        """End every subscription with UNAVAILABLE: they do not end by themselves."""
        self._stopping = True
        for task in self._subscriptions:
            task.cancel()

    @streaming
    async def Subscribe(  # type: ignore[override]  # noqa: N802  # the stubs know no servicer that writes
        self, request: result_pb2.SubscribeRequest, context: Any
    ) -> None:
        """Results as they are stored, until cancelled; the first response is empty."""
        caller = self._auth.caller(context, "read")
        wanted = _subjects(request.cameras, caller)
        task = asyncio.current_task()
        try:
            with self._limits.stream(caller.tenant):
                if task is not None:
                    self._subscriptions.add(task)
                metrics.STREAMS.set(len(self._subscriptions))
                await self._follow(request, caller, wanted, context)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            raise Refusal(StatusCode.UNAVAILABLE, "the server stops; resume elsewhere") from None
        finally:
            if task is not None:
                self._subscriptions.discard(task)
            metrics.STREAMS.set(len(self._subscriptions))

    async def _follow(
        self, request: result_pb2.SubscribeRequest, caller: Grant, wanted: list[str], context: Any
    ) -> None:
        hub = self._tenants.hub(caller.tenant)
        await hub.audit.viewed(caller.who, "view", _cameras(request.cameras, caller))
        stream = await hub.stream_identity()
        connection = hub.reconnects
        newest = await behind_everything(hub)
        start = self._start(request, stream, newest)
        if start.after is not None and request.WhichOneof("from") == "resume_token":
            await check_reachable(hub, start.after)
        feed = Feed(
            hub.connection,
            hub.js,
            subjects.RESULTS,
            wanted,
            start_sequence=start.sequence,
            start_time=start.moment,
        )
        taking: asyncio.Task[list[StreamMessage]] | None = None
        quiet_since = time.monotonic()
        # Everything up to here was passed on; of what was stored before the start, nothing was asked for.
        known = start.after
        try:
            await feed.open()
            token = tokens.encode(Kind.RESUME, stream, start.after) if start.after is not None else ""
            await context.write(result_pb2.SubscribeResponse(resume_token=token))
            while True:
                if caller.expired:
                    raise Refusal(StatusCode.UNAUTHENTICATED, "this token has expired")
                response = result_pb2.SubscribeResponse()
                # A task of its own: giving up the wait must not give up what is on its way.
                taking = taking or asyncio.create_task(feed.take())
                await asyncio.wait({taking}, timeout=min(_LOOK_S, _QUIET_S))
                if connection != hub.reconnects:
                    found = await check_same(hub, stream)
                    if found is None:
                        await asyncio.sleep(_RETRY_S)
                        continue
                    # What was stored before the connection broke may still be on its way.
                    connection, newest, quiet_since = hub.reconnects, found, time.monotonic()
                if not taking.done():
                    if time.monotonic() - quiet_since >= _QUIET_S and hub.connection.is_connected:
                        # Nothing came since `newest` was read: a caller need not go back further.
                        response.resume_token = tokens.encode(Kind.RESUME, stream, newest)
                        await context.write(response)
                        known = newest
                        newest, quiet_since = await behind_everything(hub), time.monotonic()
                    continue
                messages, taking, quiet_since = taking.result(), None, time.monotonic()
                first = held_bytes = 0
                for message in messages:
                    held_bytes += len(message.data)
                    if held_bytes > _RESPONSE_BYTES:
                        await self._deliver(response, context)
                        response, held_bytes = result_pb2.SubscribeResponse(), len(message.data)
                    if jumps(known, message):
                        first = first or (await hub.js.stream_info(subjects.RESULTS)).state.first_seq
                    gap = aged_out(known, message, first)
                    if gap is not None:
                        metrics.GAPS.inc()
                        await self._deliver(response, context)
                        response = result_pb2.SubscribeResponse()
                        await context.write(result_pb2.SubscribeResponse(gap=gap))
                    known = Position(message.sequence, ALL, message.stored_ns)
                    if message.stored_ns < request.from_time_ns:
                        continue  # a start time is only kept to the microsecond
                    response.results.extend(
                        result
                        for result in _open(
                            message, stream, caller, start.after, final_only=request.final_only
                        )
                        if not (request.live_only and is_late(result))
                    )
                    metrics.DELIVERY_SECONDS.observe(max(0, time.time_ns() - message.stored_ns) / 1e9)
                newest = max(newest, Position(messages[-1].sequence, ALL, messages[-1].stored_ns))
                await self._deliver(response, context)
        finally:
            if taking is not None:
                taking.cancel()
            await asyncio.shield(feed.close())

    async def _deliver(self, response: result_pb2.SubscribeResponse, context: Any) -> None:
        if not response.results:
            return
        metrics.RESULTS.inc(len(response.results))
        await context.write(response)
        if self._traces is not None:
            for result in response.results:
                self._traces.delivered(result, time.time_ns())

    @staticmethod
    def _start(request: result_pb2.SubscribeRequest, stream: bytes, newest: Position) -> _Start:
        """Where to begin; raises `Refusal` for a token that is not ours."""
        match request.WhichOneof("from"):
            case "resume_token":
                after = tokens.decode(request.resume_token, Kind.RESUME, stream)
                return _Start(after, sequence=max(1, after.sequence))
            case "from_time_ns":
                # Rounded down; what is too early is left out.
                moment = datetime.fromtimestamp(request.from_time_ns // 1_000 / 1e6, UTC)
                return _Start(None, moment=moment - timedelta(microseconds=1))
            case _:
                return _Start(newest, sequence=newest.sequence + 1)

    @unary
    async def GetLatest(  # noqa: N802
        self, request: result_pb2.GetLatestRequest, context: Any
    ) -> result_pb2.GetLatestResponse:
        """The newest result of each camera; cameras without any are left out."""
        caller = self._auth.caller(context, "read")
        hub = self._tenants.hub(caller.tenant)
        wanted = _subjects(request.cameras, caller)
        await hub.audit.viewed(caller.who, "view", _cameras(request.cameras, caller))
        if not request.cameras:
            known: set[str] = set()
            for pattern in wanted:
                info = await hub.js.stream_info(subjects.RESULTS, subjects_filter=pattern)
                known.update(info.state.subjects or {})
            # Others are not even read.
            wanted = sorted(subject for subject in known if caller.covers(*subject.split(".")[3:]))
        stream = await hub.stream_identity()
        response = result_pb2.GetLatestResponse()
        for subject in wanted:
            try:
                stored = await hub.js.get_last_msg(subjects.RESULTS, subject, direct=True)
            except NotFoundError:
                continue
            stored_ns = int(stored.time.timestamp() * 1e9) if stored.time is not None else 0
            message = StreamMessage(subject, stored.data or b"", {}, stored.seq or 0, stored_ns, 0)
            found = _open(message, stream, caller, None, final_only=False)
            for back_s in _LOOK_BACK_S:
                if any(not is_late(result) for result in found) or _is_newest(message, found):
                    break
                # Answers of an outage alone: the live ones are newer, and as a rule not far away.
                for earlier in await _just_before(hub, message, back_s):
                    found += _open(earlier, stream, caller, None, final_only=False)
            if found:
                response.results.append(max(found, key=_newness))
        return response

    @unary
    async def ListResults(  # noqa: N802
        self, request: result_pb2.ListResultsRequest, context: Any
    ) -> result_pb2.ListResultsResponse:
        """One camera's results of a time range, in the order they were stored."""
        caller = self._auth.caller(context, "read")
        hub = self._tenants.hub(caller.tenant)
        if not request.HasField("camera"):
            raise Refusal(StatusCode.INVALID_ARGUMENT, "name the camera whose results to list")
        (subject,) = _subjects([request.camera], caller)
        if request.to_time_ns and request.to_time_ns <= request.from_time_ns:
            raise Refusal(StatusCode.INVALID_ARGUMENT, "to_time_ns must be later than from_time_ns")
        size = min(request.page_size or _PAGE_DEFAULT, _PAGE_MOST)
        await hub.audit.viewed(caller.who, "export", _cameras([request.camera], caller))
        stream = await hub.stream_identity()
        scope = f"{subject} {request.from_time_ns} {request.to_time_ns}"
        after: Position | None = None
        feed = Feed(hub.connection, hub.js, subjects.RESULTS, [subject], start_sequence=1)
        if request.page_token:
            after = tokens.decode(request.page_token, Kind.PAGE, stream, scope)
            feed = Feed(hub.connection, hub.js, subjects.RESULTS, [subject], start_sequence=after.sequence)
        elif request.from_time_ns > _CLOCK_SLACK_NS:
            earliest = datetime.fromtimestamp((request.from_time_ns - _CLOCK_SLACK_NS) / 1e9, UTC)
            feed = Feed(hub.connection, hub.js, subjects.RESULTS, [subject], start_time=earliest)
        try:
            page = _Page(request, stream, caller, size)
            async with asyncio.timeout(_PAGE_S):
                reached_end = await page.fill(feed, after)
            response = result_pb2.ListResultsResponse(results=page.highest_revisions())
            if not reached_end and page.position is not None:
                response.next_page_token = tokens.encode(Kind.PAGE, stream, page.position, scope)
            return response
        finally:
            await asyncio.shield(feed.close())


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a subscription begins, and the position whose results the caller already has."""

    after: Position | None
    sequence: int | None = None
    moment: datetime | None = None


class _Page:
    """One page of ListResults, while it is being read."""

    def __init__(
        self, request: result_pb2.ListResultsRequest, stream: bytes, caller: Grant, size: int
    ) -> None:
        self._request, self._stream, self._caller, self._size = request, stream, caller, size
        self._found: list[result_pb2.Result] = []
        self._highest: dict[tuple[int, bytes, int], int] = {}
        self.position: Position | None = None

    async def fill(self, feed: Feed, after: Position | None) -> bool:
        """Read until the page is full; True when the stream's end was reached.

        A provisional result on the page is looked up further on, as its final one may come after the page.
        """
        await feed.open()
        if not feed.pending_at_start:
            return True
        end = time.monotonic() + _SCAN_S
        scanned, full = 0, False
        while True:
            for message in await feed.take(256):
                scanned += 1
                for result in _open(message, self._stream, self._caller, after, final_only=False):
                    key = _key(result)
                    if not full and self._in_range(result):
                        self._found.append(result)
                        self._highest[key] = max(self._highest.get(key, 0), result.revision)
                        if len(self._found) == self._size:
                            full = True
                            self.position = tokens.decode(result.resume_token, Kind.RESUME, self._stream)
                    elif key in self._highest:
                        self._highest[key] = max(self._highest[key], result.revision)
                if not full:
                    self.position = Position(message.sequence, ALL, message.stored_ns)
                if message.pending == 0:
                    return not full
                settled = full and all(result.final for result in self._found)
                if settled or scanned >= _SCAN_MESSAGES or time.monotonic() > end:
                    return False

    def highest_revisions(self) -> list[result_pb2.Result]:
        """What was found, without what a higher revision replaced."""
        return [result for result in self._found if result.revision == self._highest[_key(result)]]

    def _in_range(self, result: result_pb2.Result) -> bool:
        first, last = result.times.captured_ns, result.last_captured_ns or result.times.captured_ns
        to = self._request.to_time_ns
        return last >= self._request.from_time_ns and (not to or first < to)


def _is_newest(message: StreamMessage, found: list[result_pb2.Result]) -> bool:
    """Whether no live result before a stored message is newer than its own, as its checkpoint tells."""
    if not found:
        return True
    lanes = result_pb2.ResultBatch.FromString(message.data).checkpoint.lanes
    live = next((it for it in lanes if it.lane == frame_pb2.LANE_LIVE), None)
    if live is None:
        return bool(lanes)
    return any(it.key.epoch == live.epoch and it.last_sequence >= live.last_sequence for it in found)


async def _just_before(hub: TenantHub, message: StreamMessage, back_s: float) -> list[StreamMessage]:
    """What was stored of the same camera in the seconds before a message."""
    start = datetime.fromtimestamp(message.stored_ns / 1e9 - back_s, UTC)
    feed = Feed(hub.connection, hub.js, subjects.RESULTS, [message.subject], start_time=start)
    found: list[StreamMessage] = []
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SCAN_S):
                while not found or found[-1].sequence < message.sequence:
                    found += await feed.take(256)
    finally:
        await asyncio.shield(feed.close())
    return [it for it in found if it.sequence < message.sequence]


def is_late(result: result_pb2.Result) -> bool:
    """Of the backlog, or past its deadline; workers of an earlier version only tell the lane."""
    return result.late or result.lane == frame_pb2.LANE_BACKLOG


def _open(
    message: StreamMessage, stream: bytes, caller: Grant, after: Position | None, *, final_only: bool
) -> list[result_pb2.Result]:
    """The results of a stored message that the caller may see and does not have, with their tokens."""
    start = after.index + 1 if after is not None and message.sequence == after.sequence else 0
    if start >= ALL:
        return []
    try:
        batch = result_pb2.ResultBatch.FromString(message.data)
    except DecodeError:
        # No worker of ours wrote it; it must not stand in the way of what follows.
        metrics.UNREADABLE.inc()
        _log.error("result_unreadable", subject=message.subject, stream_sequence=message.sequence)
        return []
    if batch.schema_major > SCHEMA_MAJOR:
        raise Refusal(
            StatusCode.UNIMPLEMENTED,
            f"results are stored in schema {batch.schema_major}, this API reads up to {SCHEMA_MAJOR}: "
            "update it",
        )
    found = []
    for index, result in enumerate(batch.results):
        if index < start or (final_only and not result.final):
            continue
        if not caller.covers(result.key.site, result.key.camera):
            continue
        position = Position(message.sequence, index, message.stored_ns)
        result.resume_token = tokens.encode(Kind.RESUME, stream, position)
        found.append(result)
    return found


def _subjects(cameras: Iterable[result_pb2.CameraRef], caller: Grant) -> list[str]:
    """Subjects of the cameras asked for, or of all that the caller may see.

    Raises `Refusal` for impossible names, and for cameras outside the caller's scope.
    """
    named = list(cameras)
    if len(named) > _MAX_CAMERAS:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT,
            f"{len(named)} cameras were named, at most {_MAX_CAMERAS} are allowed",
        )
    try:
        found = {
            subjects.result_subject(
                subjects.check_token(camera.site, "site"), subjects.check_token(camera.camera, "camera")
            )
            for camera in named
        }
    except InvalidName as problem:
        raise Refusal(StatusCode.INVALID_ARGUMENT, str(problem)) from None
    for camera in named:
        require(caller, camera.site, camera.camera)
    return sorted(found) or [subjects.result_subject(*pattern) for pattern in patterns(caller)]


def _cameras(named: Iterable[result_pb2.CameraRef], caller: Grant) -> list[str]:
    """The cameras asked for, or all that the caller may see, for the audit log."""
    found = [f"{camera.site}/{camera.camera}" for camera in named]
    return found or [f"{site}/{camera}" for site, camera in caller.cameras]


def _key(result: result_pb2.Result) -> tuple[int, bytes, int]:
    return result.key.epoch.counter, result.key.epoch.random_id, result.key.sequence


def _newness(result: result_pb2.Result) -> tuple[int, int, int]:
    return result.last_captured_ns, result.last_sequence, result.revision
