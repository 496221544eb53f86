"""Reading a stream in order, across reconnects and server restarts, with bounded memory.

An ephemeral pull consumer without acknowledgements: the position is ours, so after anything unusual a new
consumer simply starts behind the last message that was taken. Pull requests overlap, so that a message which
arrives is delivered at once.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

_log = structlog.get_logger()

_HEARTBEAT_S: Final = 2.0
_REQUEST_S: Final = 30.0
_INACTIVE_S: Final = 60.0
_CHECK_S: Final = 0.25
_RETRY_S: Final = 0.25
_HEARTBEAT_STATUS: Final = "100"


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message of a stream; `stored_ns` is the server's clock, nanoseconds since the Unix epoch."""

    subject: str
    data: bytes
    headers: dict[str, str]
    sequence: int
    stored_ns: int
    # Messages that match and were stored after this one, when it was delivered.
    pending: int


class Feed:
    """Messages of `stream` on `subjects`, in stream order, each exactly once.

    Starts at `start_sequence`, or at `start_time`, or with the newest of each subject (`last_per_subject`),
    or else with what is stored from now on. batch and max_bytes bound what waits in memory.
    """

    def __init__(
        self,
        connection: Client,
        js: JetStreamContext,
        stream: str,
        subjects: Sequence[str],
        *,
        start_sequence: int | None = None,
        start_time: datetime | None = None,
        last_per_subject: bool = False,
        batch: int = 256,
        max_bytes: int = 4 << 20,
    ) -> None:
        self._connection, self._js = connection, js
        self._stream, self._subjects = stream, list(subjects)
        self._start_sequence, self._start_time = start_sequence, start_time
        self._last_per_subject = last_per_subject
        self._batch, self._max_bytes = batch, max_bytes
        self._queue: deque[StreamMessage] = deque()
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._inbox = ""
        self._generation = 0
        self._broken = False
        self._credit = 0
        self._received = 0
        self._reconnects = 0
        self._heard = 0.0
        self._last_sequence = 0
        self._pending = 0
        # Newest match when the consumer was made; None until then.
        self.pending_at_start: int | None = None
        # Our monotonic clock when we heard that the consumer was made, less the hub's clock when it made it.
        self.way_ns: int | None = None

    async def open(self) -> None:
        """Create the consumer now rather than at the first `take`, so that nothing stored later is missed."""
        while self._subscription is None or self._broken:
            await self._reopen()

    @property
    def waiting(self) -> int:
        """Messages that `take` would give at once."""
        return len(self._queue)

    @property
    def behind(self) -> int:
        """Messages after the last that `take` gave: those here, and those in the hub when the newest came."""
        return len(self._queue) + self._pending

    async def take(self, most: int = 64) -> list[StreamMessage]:
        """The next messages, at least one and at most `most`; waits for as long as it takes."""
        while not self._queue:
            if self._needs_reopening():
                await self._reopen()
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(_CHECK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
        count = min(most, len(self._queue))
        await self._ask(taking=count)
        # No await from here on: a caller that gives up loses nothing.
        return [self._queue.popleft() for _ in range(count)]

    async def close(self) -> None:
        """Give the consumer back to the server."""
        await self._drop()

    def _needs_reopening(self) -> bool:
        silent = asyncio.get_running_loop().time() - self._heard > 3 * _HEARTBEAT_S
        moved = self._connection.stats["reconnects"] != self._reconnects
        return self._subscription is None or self._broken or moved or silent

    async def _reopen(self) -> None:
        await self._drop()
        said = False
        while True:
            try:
                await self._create()
            except (TimeoutError, APIError, nats.errors.Error, OSError) as problem:
                if isinstance(problem, nats.errors.ConnectionClosedError):
                    raise
                if not said:
                    _log.warning("feed_waiting", stream=self._stream, reason=str(problem) or "no answer")
                    said = True
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _create(self) -> None:
        self._reconnects = self._connection.stats["reconnects"]
        name = f"feed-{secrets.token_hex(8)}"
        config = ConsumerConfig(
            name=name,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )
        if len(self._subjects) == 1:
            config.filter_subject = self._subjects[0]
        else:
            config.filter_subjects = self._subjects
        if self._last_sequence and not self._last_per_subject:
            config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = self._last_sequence + 1
        elif self._start_sequence is not None:
            config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = max(1, self._start_sequence)
        elif self._start_time is not None:
            config.deliver_policy = DeliverPolicy.BY_START_TIME
            config.opt_start_time = self._start_time
        elif self._last_per_subject:
            config.deliver_policy = DeliverPolicy.LAST_PER_SUBJECT
        else:
            config.deliver_policy = DeliverPolicy.NEW
        inbox = self._connection.new_inbox()
        self._generation += 1
        generation = self._generation

        async def deliver(message: Msg) -> None:
            if generation == self._generation:
                await self._on_message(message)

        subscription = await self._connection.subscribe(inbox, cb=deliver)
        self._subscription = subscription
        self._inbox = inbox
        self._credit = self._received = 0
        self._broken = False
        self._heard = asyncio.get_running_loop().time()
        info = await self._js.add_consumer(self._stream, config=config)
        self._consumer = name
        self.way_ns = time.monotonic_ns() - int(info.created.timestamp() * 1e6) * 1000
        if self.pending_at_start is None:
            self.pending_at_start = info.num_pending or 0
            if config.deliver_policy is DeliverPolicy.NEW:
                # Pinned, so that a consumer made after a reconnect misses nothing.
                self._start_sequence = (info.delivered.stream_seq if info.delivered else 0) + 1
        await self._ask()

    async def _drop(self) -> None:
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, ""
        self._generation += 1
        if subscription is None or self._connection.is_closed:
            return
        try:
            await subscription.unsubscribe()
            if consumer and self._connection.is_connected:
                async with asyncio.timeout(1):
                    await self._js.delete_consumer(self._stream, consumer)
        except (TimeoutError, APIError, nats.errors.Error):
            pass  # it goes by itself after _INACTIVE_S

    async def _ask(self, taking: int = 0) -> None:
        """Request more as soon as half of what may be under way has come."""
        room = self._batch - self._credit - (len(self._queue) - taking)
        if room < max(1, self._batch // 2) or not self._consumer:
            return
        request = {
            "batch": room,
            "max_bytes": self._max_bytes,
            "expires": int(_REQUEST_S * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        self._credit += room
        try:
            await self._connection.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                json.dumps(request).encode(),
                reply=self._inbox,
            )
        except nats.errors.Error:
            self._broken = True

    async def _on_message(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        headers = message.headers or {}
        status = headers.get("Status")
        if status is not None and not message.reply.startswith("$JS.ACK"):
            if status == _HEARTBEAT_STATUS:
                return
            # A request ended: what it did not deliver is no longer under way.
            self._credit = max(0, self._credit - int(headers.get("Nats-Pending-Messages", self._credit)))
            if status not in {"404", "408"} and "exceed" not in headers.get("Description", "").lower():
                self._broken = "batch completed" not in headers.get("Description", "").lower()
            self._wake.set()
            await self._ask()
            return
        sequence, consumer_sequence, stored_ns, pending = parse_ack_subject(message.reply)
        self._received += 1
        if consumer_sequence != self._received:
            self._broken = True
        if not self._broken:
            self._credit = max(0, self._credit - 1)
            self._last_sequence, self._pending = sequence, pending
            self._queue.append(
                StreamMessage(message.subject, message.data, headers, sequence, stored_ns, pending)
            )
        self._wake.set()


def parse_ack_subject(reply: str) -> tuple[int, int, int, int]:
    """Stream sequence, consumer sequence, time stored in ns, pending count, from a JetStream reply subject.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, with domain and
    account hash before the stream, and a random token at the end, in the newer form.
    """
    tokens = reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    return int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 2]), int(tokens[at + 3])
