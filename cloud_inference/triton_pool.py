"""One model on several Triton servers: requests go to the server with the fewest of ours in flight, by turns.

Addresses are given, or come from a name that is resolved again every few seconds, as of a headless service:
servers that appear get work at once, and none is lost on those that go. gRPC's own balancing would not do: it
hears of new addresses only when an old one fails, and Triton has no health watch that it could follow. A
server that fails is left out and asked every now and then whether it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from cloud_inference.errors import ModelMissing, TritonTooSlow, TritonUnavailable
from cloud_inference.triton import Answer, Card, Statistics, TritonModel
from eyeline.errors import EyelineError

_log = structlog.get_logger()

_RESOLVE_EVERY_S: Final = 5.0
_ASK_EVERY_S: Final = 0.5
_POLL_S: Final = 0.1

Resolve = Callable[[str, int], Awaitable[list[str]]]


class _Server:
    """One of the servers."""

    def __init__(self, model: TritonModel) -> None:
        self.model = model
        self.in_flight = 0
        self.up = False
        self.leaving = False
        self.asking: asyncio.Task[None] | None = None


async def resolve(host: str, port: int) -> list[str]:
    """`ip:port` of every address of a name, none when it has none now."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = dict.fromkeys(str(it[4][0]) for it in found)
    return [f"[{it}]:{port}" if ":" in it else f"{it}:{port}" for it in addresses]


class TritonPool:
    """As `TritonModel`, for one or many servers; an async context manager.

    urls: `host:port` of gRPC endpoints; each name may stand for many addresses.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        card: Card,
        *,
        timeout_s: float = 5.0,
        shared_memory: int = 32,
        resolving: Resolve = resolve,
        resolve_every_s: float = _RESOLVE_EVERY_S,
    ) -> None:
        self._urls = [urls] if isinstance(urls, str) else list(urls)
        self.url = ", ".join(self._urls)
        self.name = card.name
        self._card, self._timeout_s, self._shared_memory = card, timeout_s, shared_memory
        self._resolving, self._resolve_every_s = resolving, resolve_every_s
        self._servers: dict[str, _Server] = {}
        self._turn = itertools.count()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._look_up()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every channel; requests in flight are cancelled."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        for server in list(self._servers.values()):
            await self._drop(server)
        self._servers.clear()

    @property
    def up(self) -> list[str]:
        """Addresses of the servers that get requests."""
        return [url for url, server in self._servers.items() if server.up]

    async def infer(self, images: NDArray[np.uint8], *, within_s: float | None = None) -> Answer:
        """Ask one server, and another one when it cannot answer; raises what `TritonModel.infer` raises.

        within_s: how long the answer is of use, from now.
        """
        tried: set[str] = set()
        problem: EyelineError = TritonUnavailable(f"no Triton at {self.url} is up")
        while (chosen := self._choose(tried)) is not None:
            url, server = chosen
            tried.add(url)
            server.in_flight += 1
            try:
                return await server.model.infer(images, within_s=within_s)
            except (TritonUnavailable, ModelMissing) as failed:
                problem = failed
                self._suspect(url, server, failed)
                if isinstance(failed, TritonTooSlow):
                    break  # the time is over
            finally:
                server.in_flight -= 1
        raise problem

    async def wait_ready(self) -> None:
        """Wait until a server serves the model as the contract says; raises `ModelMissing`, `ModelMismatch`
        when one is ready and none does.
        """
        said = False
        while True:
            try:
                await self.check()
            except TritonUnavailable as problem:
                if not said:
                    said = True
                    _log.warning("triton_waiting", server=self.url, model=self.name, reason=str(problem))
                await asyncio.sleep(_POLL_S)
            else:
                return

    async def check(self) -> None:
        """Ask every server once whether it serves the model; good when one does. Raises as `wait_ready`."""
        problems: list[EyelineError] = []
        for url, server in list(self._servers.items()):
            try:
                await server.model.check()
            except EyelineError as problem:
                problems.append(problem)
                server.up = False
            else:
                await self._welcome(url, server)
        if self.up:
            return
        problems.sort(key=lambda it: it.retryable)
        raise problems[0] if problems else TritonUnavailable(f"{self.url} has no address")

    async def statistics(self) -> Statistics:
        """Triton's own counts, of all servers that are up; raises what `infer` raises."""
        found = [await it.model.statistics() for it in self._servers.values() if it.up]
        return Statistics(
            inferences=sum(it.inferences for it in found),
            executions=sum(it.executions for it in found),
            requests=sum(it.requests for it in found),
            queue_ns=sum(it.queue_ns for it in found),
            compute_ns=sum(it.compute_ns for it in found),
        )

    def _choose(self, tried: set[str]) -> tuple[str, _Server] | None:
        up = [(url, it) for url, it in self._servers.items() if it.up and url not in tried]
        if not up:
            return None
        least = min(it.in_flight for _, it in up)
        even = [one for one in up if one[1].in_flight == least]
        return even[next(self._turn) % len(even)]

    def _suspect(self, url: str, server: _Server, problem: EyelineError) -> None:
        """Leave a server out until it says that it is well; one that was slow has to say so too."""
        # The only one is asked all the same: its errors are what the caller wants to hear.
        if server.up and len(self._servers) > 1:
            server.up = False
            _log.warning("triton_left_out", server=url, model=self.name, reason=str(problem))
        if server.asking is None or server.asking.done():
            server.asking = asyncio.create_task(self._until_well(url, server))

    async def _until_well(self, url: str, server: _Server) -> None:
        while not server.leaving:
            with contextlib.suppress(EyelineError):
                await server.model.check()
                await self._welcome(url, server)
                return
            await asyncio.sleep(_ASK_EVERY_S)

    async def _welcome(self, url: str, server: _Server) -> None:
        if not server.up and not server.leaving:
            await server.model.share()
            server.up = True
            _log.info("triton_ready", server=url, model=self.name, shared_memory=server.model.shares)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._resolve_every_s)
            await self._look_up()

    async def _look_up(self) -> None:
        """Take up the servers that there are now, and let go of those that are no more."""
        now: list[str] = []
        for url in self._urls:
            host, _, port = url.rpartition(":")
            if not host or not port.isdigit():
                now.append(url)
                continue
            # Loopback names are left as they are: memory is shared with such servers.
            local = host in {"localhost", "127.0.0.1", "[::1]"}
            now += [url] if local else await self._resolving(host.strip("[]"), int(port))
        for url in dict.fromkeys(now):
            if url not in self._servers:
                model = TritonModel(
                    url, self._card, timeout_s=self._timeout_s, shared_memory=self._shared_memory
                )
                await model.__aenter__()
                server = self._servers[url] = _Server(model)
                server.asking = asyncio.create_task(self._until_well(url, server))
        # A name that has no address at the moment takes nobody away: those that are there may well answer.
        for url in list(self._servers) if now else ():
            if url not in now:
                await self._drop(self._servers.pop(url), grace_s=self._timeout_s)

    async def _drop(self, server: _Server, grace_s: float = 0.0) -> None:
        """Let it finish what it has, for a while, then close."""
        server.leaving, server.up = True, False
        if server.asking is not None:
            server.asking.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while server.in_flight:  # noqa: ASYNC110  # a few times in the life of a server
                    await asyncio.sleep(_POLL_S)
        await server.model.close()
