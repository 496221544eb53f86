"""A connection to NATS that starts afresh after every loss.

A client that reconnects by itself later flushes what it had buffered, and a message that was taken for lost
then overtakes its successors. Here a lost connection ends its session: whoever was waiting is told at once,
and resumes from the first unacknowledged message in the next session.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from edge_agent.wire import WireBytes, count
from eyeline.errors import BusError

_log = structlog.get_logger()

NO_RESPONDERS: Final = 503
_LONGEST_WAIT_S: Final = 5.0

Connect = Callable[[Callable[[bool], None]], Awaitable[Client]]


class Refused(BusError):
    """JetStream answered with an error; `code` is its `err_code`, 503 when nothing listens."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class TooLarge(BusError):
    """The server takes no message of this size."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Ack:
    """A message is stored: its sequence in the stream, and whether it was there already."""

    sequence: int
    duplicate: bool


class Session:
    """One connection, from connect to loss."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.closed = asyncio.Event()

    async def request(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None, timeout_s: float
    ) -> Msg:
        """Ask and wait; raises `BusError` on a timeout or a lost connection, `TooLarge`, `Refused`."""
        if self.closed.is_set():
            raise BusError("connection lost")
        if len(payload) + 1024 > self.client.max_payload:
            raise TooLarge(f"message has {len(payload)} bytes, the server takes {self.client.max_payload}")
        asked = asyncio.ensure_future(
            self.client.request(subject, payload, timeout=timeout_s, headers=headers)
        )
        lost = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait({asked, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise BusError("connection lost")
            return asked.result()
        except nats.errors.NoRespondersError:
            raise Refused(NO_RESPONDERS, f"nothing listens on {subject}") from None
        except (TimeoutError, nats.errors.TimeoutError):
            raise BusError(f"no answer in {timeout_s:g} s") from None
        except nats.errors.Error as problem:
            raise BusError(str(problem)) from None
        finally:
            for task in (asked, lost):
                task.cancel()

    async def api(self, subject: str, body: dict[str, Any] | None = None, *, timeout_s: float = 5.0) -> Any:
        """A JetStream API call, `$JS.API.{subject}`; returns its JSON answer."""
        payload = json.dumps(body).encode() if body is not None else b""
        return _answer(await self.request(f"$JS.API.{subject}", payload, timeout_s=timeout_s))

    async def store(
        self, subject: str, payload: bytes, *, headers: dict[str, str] | None = None, timeout_s: float
    ) -> Ack:
        """Publish to a stream and wait until it is stored."""
        answer = _answer(await self.request(subject, payload, headers=headers, timeout_s=timeout_s))
        return Ack(int(answer["seq"]), bool(answer.get("duplicate")))


def _answer(message: Msg) -> Any:
    try:
        answer = json.loads(message.data)
    except ValueError:
        raise BusError(f"{message.subject} gave no JSON") from None
    if "error" in answer:
        error = answer["error"]
        code = int(error.get("err_code") or error.get("code") or 0)
        raise Refused(code, str(error.get("description", "refused")))
    return answer


class Link:
    """Keeps a session with one server; `session` is None while there is none."""

    def __init__(self, name: str, connect: Connect) -> None:
        self.name = name
        self.session: Session | None = None
        self.lost_at: float | None = time.monotonic()
        # Of what goes over the wire, what has its room in a byte budget: whoever sends it counts it.
        self.planned_bytes = 0.0
        # One line for the status: why there is no session.
        self.problem = ""
        self._connect = connect
        self._up = asyncio.Condition()
        self._ended = self._seen = WireBytes()

    @property
    def wire(self) -> WireBytes:
        """Everything that went over the wire, over all sessions."""
        if self.session is not None:
            now = count(self.session.client)
            # A closed connection tells nothing any more: what it told last stands.
            self._seen = now if now.sent >= self._seen.sent else self._seen
        return self._ended + self._seen

    async def ready(self) -> Session:
        """The session, as soon as there is one."""
        async with self._up:
            while self.session is None:
                await self._up.wait()
            return self.session

    async def run(self) -> None:
        """Connect again and again, until cancelled."""
        delay = 0.1
        while True:
            lost = asyncio.Event()
            try:
                client = await self._connect(lambda up, lost=lost: None if up else lost.set())  # type: ignore[misc]
            except BusError as problem:
                if str(problem) != self.problem:
                    _log.error("link_refused", link=self.name, reason=str(problem))
                self.problem = str(problem)
                await asyncio.sleep(delay * (1 + random.random() / 4))
                delay = min(delay * 2, _LONGEST_WAIT_S)
                continue
            client.options["allow_reconnect"] = False
            delay, self.problem = 0.1, ""
            session = Session(client)
            try:
                async with self._up:
                    self.session, self.lost_at = session, None
                    self._up.notify_all()
                _log.info("link_up", link=self.name)
                await lost.wait()
            finally:
                self._ended, self._seen = self.wire, WireBytes()
                self.session = None
                self.lost_at = time.monotonic()
                session.closed.set()
                with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                    async with asyncio.timeout(1):
                        await client.close()
            await asyncio.sleep(delay * random.random() / 2)
