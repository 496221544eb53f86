"""A subscription that outlives its connections: reconnect, resume, never a duplicate, never a silent gap."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import grpc
import grpc.aio

from eyeline._status import from_rpc, gap_error
from eyeline.errors import ApiError, DeadlineExceeded, ResumeGapError, Unavailable
from eyeline.v1 import result_pb2 as pb
from eyeline.values import Result

_log = logging.getLogger("eyeline.client")

Call = grpc.aio.UnaryStreamCall[pb.SubscribeRequest, pb.SubscribeResponse]
OnGap = Literal["raise", "continue"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: doubling from `first_s` to `most_s`, each cut at random down to its half."""

    first_s: float = 0.1
    most_s: float = 5.0
    rand: Callable[[], float] = random.random

    def pause_s(self, attempt: int) -> float:
        """The pause after the attempt, counted from 0."""
        return min(self.most_s, self.first_s * 2.0 ** min(attempt, 32)) * (0.5 + 0.5 * self.rand())


class Subscription:
    """Results as they are stored: an async iterator, and an async context manager that ends the stream.

    A lost connection is opened again, going on right after the last result; how often is in `reconnects`.
    Waiting for a result may be cancelled (`asyncio.wait_for`, say) without losing one. `gaps` lists what was
    no longer kept, with `on_gap="continue"`.
    """

    def __init__(
        self,
        start: Callable[[pb.SubscribeRequest], Call],
        request: pb.SubscribeRequest,
        *,
        address: str,
        on_gap: OnGap,
        stand_within_s: float,
        connect_within_s: float | None,
        backoff: Backoff,
    ) -> None:
        self._start, self._address, self._on_gap, self._backoff = start, address, on_gap, backoff
        self._request = pb.SubscribeRequest()
        self._request.CopyFrom(request)
        self._stand_within_s, self._connect_within_s = stand_within_s, connect_within_s
        self._call: Call | None = None
        self._reading: asyncio.Task[list[Result]] | None = None
        self._ready: list[Result] = []  # newest first, to pop from the end
        self._stands = asyncio.Event()
        self._began: float | None = None
        self._stood_at = 0.0
        self._attempt = 0
        self._closed = False
        self._in_trouble = False
        self._token = request.resume_token
        self.reconnects = 0
        self.gaps: list[ResumeGapError] = []

    @property
    def resume_token(self) -> str:
        """Goes on right after the last result that was handed out; empty when nothing is known yet."""
        return self._token

    async def ready(self) -> None:
        """Wait until the server says that the subscription stands: what is stored from then on will come."""
        if self._stands.is_set():
            return
        reading = self._read_ahead()
        stands = asyncio.ensure_future(self._stands.wait())
        try:
            await asyncio.wait({stands, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stands.cancel()
        if reading.done() and not self._stands.is_set():
            self._reading = None
            await reading  # raises why

    async def batch(self) -> list[Result]:
        """Everything that came at once, oldest first, at least one; empty when the subscription is closed."""
        try:
            first = await anext(self)
        except StopAsyncIteration:
            return []
        rest = self._ready[::-1]
        self._ready.clear()
        if rest:
            self._token = rest[-1].resume_token or self._token
        return [first, *rest]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            reading = self._read_ahead()
            try:
                # Shielded: giving up the wait must not give up what is on its way.
                found = await asyncio.shield(reading)
            except asyncio.CancelledError:
                if self._closed and reading.done():
                    raise StopAsyncIteration from None
                raise
            except BaseException:
                self._reading = None
                raise
            if self._reading is reading:
                self._reading = None
                self._ready = found[::-1]
        result = self._ready.pop()
        self._token = result.resume_token or self._token
        return result

    async def aclose(self) -> None:
        """End the stream; results already received are dropped."""
        self._closed = True
        self._ready.clear()
        if self._reading is not None:
            self._reading.cancel()
            self._hang_up()
            await asyncio.wait({self._reading})
            if not self._reading.cancelled():
                self._reading.exception()  # nobody is left to hear of it
            self._reading = None
        self._hang_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _read_ahead(self) -> asyncio.Task[list[Result]]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> list[Result]:
        """The next results, over as many connections as it takes."""
        if self._began is None:
            self._began = time.monotonic()
        # A cancellation that meets the end of a call can be lost inside gRPC: closing ends this all the same.
        while not self._closed:
            try:
                response = await self._next_response()
            except grpc.RpcError as problem:
                await self._recover(from_rpc(problem, self._address))
                continue
            except ApiError as problem:
                await self._recover(problem)
                continue
            if response.HasField("gap"):
                self._aged_out(response.gap)
            if response.results:
                self._attempt = 0
                results = [Result.from_proto(message) for message in response.results]
                self._go_on_after(results[-1].resume_token)
                # A server of an earlier version does not know what is not wanted.
                results = [it for it in results if not (self._request.live_only and it.late)]
                if results:
                    return results
                continue
            if response.resume_token:
                self._go_on_after(response.resume_token)
                if not self._ready:
                    self._token = response.resume_token
        return []

    def _aged_out(self, gap: pb.ResumeGap) -> None:
        """Results were removed before we got to them; raises the error unless these may be missed."""
        error = gap_error(gap, "stored messages aged out before this subscription got to them", self._address)
        if self._on_gap == "raise":
            raise error
        _log.warning("%s", error)
        self.gaps.append(error)

    async def _next_response(self) -> pb.SubscribeResponse:
        if self._call is not None:
            return self._checked(await self._call.read())
        opened_ns = time.time_ns()
        self._call = self._start(self._request)
        try:
            async with asyncio.timeout(max(self._patience_s(), 1.0)):
                response = self._checked(await self._call.read())
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._address}: the subscription did not stand in time; try again, or allow more time",
                status="DEADLINE_EXCEEDED",
            ) from None
        self._stood_at = time.monotonic()
        if self._request.WhichOneof("from") is None and not response.resume_token:
            # "From now" must stay the same now over a reconnect; only a server without tokens here needs it.
            self._request.from_time_ns = opened_ns
        if self._in_trouble:
            self._in_trouble = False
            self.reconnects += 1
            _log.info("%s: connected again, going on after the last result", self._address)
        self._stands.set()
        return response

    def _checked(self, response: pb.SubscribeResponse | object) -> pb.SubscribeResponse:
        if not isinstance(response, pb.SubscribeResponse):  # the end of the stream, which has none
            raise Unavailable(f"{self._address}: the server ended the subscription; try again", status="OK")
        return response

    async def _recover(self, error: ApiError) -> None:
        """Prepare the next attempt and pause; raises the error when there is to be none."""
        self._hang_up()
        if isinstance(error, ResumeGapError) and self._on_gap == "continue" and self._request.resume_token:
            _log.warning("%s", error)
            self.gaps.append(error)
            # All that is kept comes after the token; a time rounded on its way could miss the first of it.
            self._request.from_time_ns = 1
            return
        if not error.retryable or (not self._stands.is_set() and self._patience_s() <= 0):
            raise error
        if not self._in_trouble:
            self._in_trouble = True
            _log.warning("%s; trying again", error)
        if self._stands.is_set() and time.monotonic() - self._stood_at > self._backoff.most_s:
            self._attempt, self._stood_at = 0, time.monotonic()
        pause_s = self._backoff.pause_s(self._attempt)
        self._attempt += 1
        if not self._stands.is_set() and self._connect_within_s is not None:
            pause_s = min(pause_s, self._patience_s())
        await asyncio.sleep(pause_s)

    def _patience_s(self) -> float:
        """Seconds that this attempt may take to stand."""
        if self._stands.is_set() or self._connect_within_s is None or self._began is None:
            return self._stand_within_s
        return min(self._stand_within_s, self._began + self._connect_within_s - time.monotonic())

    def _go_on_after(self, token: str) -> None:
        if token:
            self._request.resume_token = token

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
