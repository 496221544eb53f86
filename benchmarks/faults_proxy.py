"""A link between agent and hub that can be slow, lossy, cut or torn: a TCP proxy on loopback.

Loss on a TCP link is delay: a lost segment comes again after a round trip, and everything behind it waits.
So it is modelled as that: with probability `loss`, a segment and what follows wait one round trip longer.
A link that is `cut` passes nothing and says nothing, as a pulled cable does; connections that are torn are
reset, as by a router that restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

_SEGMENT_BYTES: Final = 1448
_CHUNK_BYTES: Final = 32 << 10
# What a direction holds at most: a sender ahead of the link waits.
_MOST_CHUNKS: Final = 16


@dataclass(slots=True)
class Weather:
    """What the link does now. delay_s: one way; bytes_per_s: each way, 0 for no limit; loss: 0 to 1."""

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    loss: float = 0.0

    @property
    def is_fair(self) -> bool:
        """Whether it passes everything at once."""
        return not (self.delay_s or self.bytes_per_s or self.loss)


class Proxy:
    """Passes connections on to `host:port`; an async context manager."""

    def __init__(self, host: str, port: int, *, seed: int = 1) -> None:
        self.weather = Weather()
        self.port = 0
        self.bytes = 0
        # Pieces that went on, of at most 1,400 bytes: what a network would put headers on.
        self.segments = 0
        # Told what goes on: connection, data, and whether it goes from the client to the server.
        self.tap: Callable[[int, bytes, bool], None] = lambda _connection, _data, _up: None
        self._connections = 0
        self._target = host, port
        self._random = random.Random(seed)
        self._up = asyncio.Event()
        self._up.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.tear()

    def cut(self) -> None:
        """Pass nothing from now on, silently."""
        self._up.clear()

    def restore(self) -> None:
        """Pass everything again; what TCP would have sent again goes first."""
        self._up.set()

    def tear(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # a handler runs in one
        self._tasks.add(task)
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            said = await self._until_up(reader)
            if said is None:
                return
            far_reader, far = await asyncio.open_connection(*self._target, limit=_CHUNK_BYTES)
            self._writers.add(far)
            self._connections += 1
            if said:
                await self._pass(said, far, self._connections, up=True)
            await self._both_ways(self._connections, (reader, far), (far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass  # an end that goes takes the other with it
        finally:
            for one in (writer, far):
                if one is not None:
                    one.transport.abort()
                    self._writers.discard(one)
            self._tasks.discard(task)

    async def _until_up(self, reader: asyncio.StreamReader) -> bytes | None:
        """What a client says while the link is cut; None when it gives up: over a network it never came."""
        said = b""
        while not self._up.is_set():
            up, more = (
                asyncio.ensure_future(self._up.wait()),
                asyncio.ensure_future(reader.read(_CHUNK_BYTES)),
            )
            await asyncio.wait({up, more}, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if not more.done():
                more.cancel()
                await asyncio.gather(more, return_exceptions=True)
            elif not more.result():
                return None
            else:
                said += more.result()
        return said

    async def _both_ways(
        self, connection: int, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        """ways: from the client to the server, and back."""
        tasks = [
            asyncio.create_task(self._one_way(*way, connection, up))
            for way, up in zip(ways, (True, False), strict=True)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one_way(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int, up: bool
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(_MOST_CHUNKS)
        delivering = asyncio.create_task(self._deliver(under_way, writer, connection, up))
        loop, free_at = asyncio.get_running_loop(), 0.0
        try:
            while not delivering.done():
                weather = self.weather
                data = await reader.read(_CHUNK_BYTES if weather.is_fair else _SEGMENT_BYTES)
                if not data:
                    # What was sent before the end still arrives.
                    await under_way.put(None)
                    await delivering
                    break
                free_at = max(free_at, loop.time())
                if weather.bytes_per_s:
                    free_at += len(data) / weather.bytes_per_s
                if self._random.random() < weather.loss:
                    free_at += 2 * weather.delay_s
                await under_way.put((free_at + weather.delay_s, data))
                # A sender may be ahead of the wire by what the queue holds, not by more.
                await asyncio.sleep(max(0.0, free_at - loop.time() - 0.2))
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivering

    async def _deliver(
        self,
        under_way: asyncio.Queue[tuple[float, bytes] | None],
        writer: asyncio.StreamWriter,
        connection: int,
        up: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        while (piece := await under_way.get()) is not None:
            due, data = piece
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._up.wait()
            await self._pass(data, writer, connection, up=up)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter, connection: int, *, up: bool) -> None:
        writer.write(data)
        self.bytes += len(data)
        self.segments += -(-len(data) // 1400)
        self.tap(connection, data, up)
        await writer.drain()
