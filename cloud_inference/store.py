"""A camera's results: written in order, fenced, each batch with the checkpoint where the next owner goes on.

A write names the newest message that its writer knows of (`Nats-Expected-Last-Subject-Sequence`); the server
refuses it when another worker has written since, however late the first one wakes up.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from cloud_inference.feed import Feed
from cloud_inference.metrics import FENCED, STORE_SECONDS
from eyeline import subjects
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.errors import BusError
from eyeline.v1 import result_pb2

_WRONG_LAST_SEQUENCE = 10071
_TAIL_S = 10.0
_TIMEOUT_S = 2.0
_PURGE_EVERY_S = 5.0
_NONE = 1 << 62
# What was with the model when a newer picture overtook what came behind has its results in so many messages.
_STOOD_IN = 32


class FencedOut(Exception):
    """Another worker has written this camera's results."""


@dataclass(slots=True)
class Stored:
    """What a new owner finds: the checkpoint, and the last seconds of results, oldest first.

    left_behind: older ones, from where frames were put off that are not answered yet.
    """

    checkpoint: result_pb2.Checkpoint = field(default_factory=result_pb2.Checkpoint)
    left_behind: list[result_pb2.Result] = field(default_factory=list)
    results: list[result_pb2.Result] = field(default_factory=list)


class ResultLog:
    """One camera's part of the results stream, as its owner writes it."""

    def __init__(
        self,
        connection: Client,
        js: JetStreamContext,
        site: str,
        camera: str,
        *,
        pixels_keep_s: float = 0.0,
    ) -> None:
        """pixels_keep_s: how long pixels stay when nothing needs them any more."""
        self._pixels_keep_s = pixels_keep_s
        self._connection, self._js = connection, js
        self._subject = subjects.result_subject(site, camera)
        self._frames = subjects.frame_subject(site, "*", camera)
        self._last = 0
        self._purged_to = 0
        self._purged_s = 0.0

    @property
    def last(self) -> int:
        """Stream sequence of the newest message; 0 without one."""
        return self._last

    async def load(self) -> Stored:
        """Read where to go on; raises `BusError` when the hub does not answer."""
        try:
            newest = await self._js.get_last_msg(subjects.RESULTS, self._subject)
        except NotFoundError:
            self._last = 0
            return Stored()
        except (TimeoutError, APIError, nats.errors.Error) as problem:
            raise BusError(f"results of {self._subject} cannot be read: {problem}") from None
        if newest.seq is None or newest.data is None or newest.time is None:
            raise BusError(f"results of {self._subject} cannot be read: incomplete answer")
        self._last = newest.seq
        batch = result_pb2.ResultBatch.FromString(newest.data)
        first, tail = await self._read(newest.seq, since=newest.time - timedelta(seconds=_TAIL_S))
        since = min(
            (it for lane in batch.checkpoint.lanes if (it := lane.results_stream_sequence)), default=first
        )
        left_behind: list[result_pb2.Result] = []
        if since < first:
            _, left_behind = await self._read(first - 1, since=since, most=_STOOD_IN)
        return Stored(batch.checkpoint, left_behind, tail)

    async def _read(
        self, last: int, *, since: datetime | int, most: int | None = None
    ) -> tuple[int, list[result_pb2.Result]]:
        """Final results from a time or stream sequence on, of `most` messages and none beyond `last`.

        With the stream sequence of the first message; `last` + 1 without one.
        """
        feed = Feed(
            self._connection,
            self._js,
            subjects.RESULTS,
            [self._subject],
            start_time=since if isinstance(since, datetime) else None,
            start_sequence=since if isinstance(since, int) else None,
        )
        read: dict[int, list[result_pb2.Result]] = {}
        reached = 0
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while reached < last and (most is None or len(read) < most):
                    for message in await feed.take():
                        reached = message.sequence
                        if reached <= last:
                            read[reached] = list(result_pb2.ResultBatch.FromString(message.data).results)
        except TimeoutError:
            raise BusError(f"results of {self._subject} cannot be read: no answer") from None
        finally:
            await feed.close()
        results = [result for stored in read.values() for result in stored if result.final]
        return min(read, default=last + 1), results

    async def write(self, results: list[result_pb2.Result], checkpoint: result_pb2.Checkpoint) -> None:
        """Store one batch; raises `FencedOut`, or `BusError` (after which `load` tells what holds)."""
        answered_ns = time.time_ns()
        for result in results:
            result.times.answered_ns = answered_ns
        batch = result_pb2.ResultBatch(schema_major=SCHEMA_MAJOR, results=results, checkpoint=checkpoint)
        began = time.perf_counter()
        try:
            ack = await self._js.publish(
                self._subject,
                batch.SerializeToString(),
                timeout=_TIMEOUT_S,
                headers={"Nats-Expected-Last-Subject-Sequence": str(self._last)},
            )
        except APIError as problem:
            if problem.err_code == _WRONG_LAST_SEQUENCE:
                FENCED.inc()
                raise FencedOut from None
            raise BusError(f"results of {self._subject} cannot be stored: {problem.description}") from None
        except (TimeoutError, nats.errors.Error) as problem:
            reason = str(problem) or "no answer"
            raise BusError(f"results of {self._subject} cannot be stored: {reason}") from None
        STORE_SECONDS.observe(time.perf_counter() - began)
        self._last = ack.seq

    async def purge_frames(self, keep_from: int) -> None:
        """Remove the pixels that no open chain needs; now and then, and a failure is made up for later."""
        now = time.monotonic()
        if keep_from <= self._purged_to or now - self._purged_s < _PURGE_EVERY_S:
            return
        self._purged_s = now
        try:
            if self._pixels_keep_s:
                keep_from = min(keep_from, await self._first_since(time.time() - self._pixels_keep_s))
            await self._js.purge_stream(subjects.FRAMES, seq=keep_from, subject=self._frames)
        except (TimeoutError, APIError, nats.errors.Error):
            return
        self._purged_to = keep_from

    async def _first_since(self, moment_s: float) -> int:
        """Stream sequence of the first of our frame messages that was stored since, or a high one."""
        start = datetime.fromtimestamp(moment_s, UTC)
        feed = Feed(self._connection, self._js, subjects.FRAMES, [self._frames], start_time=start, batch=1)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await feed.open()
                return (await feed.take(1))[0].sequence if feed.pending_at_start else _NONE
        finally:
            await feed.close()
