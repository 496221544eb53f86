"""The client SDK for threads: the async one, run in a thread with a loop of its own.

with BlockingClient("host:50051", token="...") as client:
    for result in client.subscribe(["yard/gate"]):
        print(result.camera, result.sequence, len(result.detections))
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from eyeline._image import Image
from eyeline.client import DEFAULT_TIMEOUT_S, Camera, Client, Tls
from eyeline.errors import InvalidRequest, ResumeGapError
from eyeline.subscription import Backoff, OnGap, Subscription
from eyeline.v1 import device_pb2, system_pb2
from eyeline.values import ImageAnswer, Result, Still

T = TypeVar("T")


class BlockingClient:
    """`eyeline.Client` without asyncio: the same calls, and iterators instead of async iterators.

    May be used from several threads. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        tls: Tls = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = Client(address, token, tls=tls, timeout_s=timeout_s, backoff=backoff)
        self.address = self._client.address
        self._loop = _LoopThread()

    def __repr__(self) -> str:
        return f"BlockingClient({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every call, the connection and the thread."""
        self._loop.stop(self._client.close)

    def subscribe(
        self,
        cameras: Camera | Iterable[Camera] | None = None,
        *,
        since_ns: int | None = None,
        resume: str | None = None,
        final_only: bool = False,
        live_only: bool = False,
        on_gap: OnGap = "raise",
        connect_within_s: float | None = None,
    ) -> BlockingSubscription:
        """See `Client.subscribe`; an iterator, and a context manager that ends the stream."""

        async def start() -> Subscription:
            return self._client.subscribe(
                cameras,
                since_ns=since_ns,
                resume=resume,
                final_only=final_only,
                live_only=live_only,
                on_gap=on_gap,
                connect_within_s=connect_within_s,
            )

        return BlockingSubscription(self._loop, self._loop.run(start()))

    def latest(
        self, cameras: Camera | Iterable[Camera] | None = None, *, timeout_s: float | None = None
    ) -> list[Result]:
        """See `Client.latest`."""
        return self._loop.run(self._client.latest(cameras, timeout_s=timeout_s))

    def history(
        self,
        site: str,
        camera: str,
        from_ns: int = 0,
        to_ns: int = 0,
        *,
        page_size: int = 500,
        timeout_s: float | None = None,
    ) -> Iterator[Result]:
        """See `Client.history`."""
        pages = self._client.history(site, camera, from_ns, to_ns, page_size=page_size, timeout_s=timeout_s)
        while chunk := self._loop.run(_take(pages, page_size)):
            yield from chunk

    def detect(
        self, image: Image, model: str = "", min_score: float = 0.0, *, timeout_s: float | None = None
    ) -> ImageAnswer:
        """See `Client.detect`."""
        return self._loop.run(self._client.detect(image, model, min_score, timeout_s=timeout_s))

    def still(
        self,
        site: str,
        camera: str,
        *,
        annotated: bool = False,
        width_px: int = 0,
        timeout_s: float | None = None,
    ) -> Still:
        """See `Client.still`."""
        return self._loop.run(
            self._client.still(site, camera, annotated=annotated, width_px=width_px, timeout_s=timeout_s)
        )

    def devices(self, *, timeout_s: float | None = None) -> list[device_pb2.Device]:
        """See `Client.devices`."""
        return self._loop.run(self._client.devices(timeout_s=timeout_s))

    def device(self, site: str, device: str, *, timeout_s: float | None = None) -> device_pb2.Device:
        """See `Client.device`."""
        return self._loop.run(self._client.device(site, device, timeout_s=timeout_s))

    def set_desired(
        self,
        site: str,
        device: str,
        cameras: Iterable[device_pb2.DesiredCamera],
        *,
        expected_revision: int = 0,
        timeout_s: float | None = None,
    ) -> device_pb2.DesiredConfig:
        """See `Client.set_desired`."""
        return self._loop.run(
            self._client.set_desired(
                site, device, cameras, expected_revision=expected_revision, timeout_s=timeout_s
            )
        )

    def system(self, *, timeout_s: float | None = None) -> system_pb2.GetSystemResponse:
        """See `Client.system`."""
        return self._loop.run(self._client.system(timeout_s=timeout_s))


class BlockingSubscription:
    """`eyeline.Subscription` as an iterator, for one thread at a time; `close` may come from another."""

    def __init__(self, loop: _LoopThread, subscription: Subscription) -> None:
        self._loop, self._subscription = loop, subscription
        self._ready: list[Result] = []  # newest first, to pop from the end
        self._token = subscription.resume_token
        self._handed_out = False

    @property
    def resume_token(self) -> str:
        """Goes on right after the last result that was handed out; empty when nothing is known yet."""
        return self._token if self._handed_out else (self._subscription.resume_token or self._token)

    @property
    def reconnects(self) -> int:
        """How often a lost connection was opened again."""
        return self._subscription.reconnects

    @property
    def gaps(self) -> list[ResumeGapError]:
        """What was no longer kept, with `on_gap="continue"`."""
        return self._subscription.gaps

    def ready(self) -> None:
        """See `Subscription.ready`."""
        self._loop.run(self._subscription.ready())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        if not self._ready:
            # All that came at once: changing threads costs more than reading a result.
            self._ready = self._loop.run(self._subscription.batch())[::-1]
            if not self._ready:
                raise StopIteration
        result = self._ready.pop()
        self._token, self._handed_out = result.resume_token or self._token, True
        return result

    def __del__(self) -> None:
        # One that was dropped rather than closed ends in its own thread, as gRPC asks for.
        self._loop.post(self._subscription.aclose)

    def close(self) -> None:
        """End the stream; results already received are dropped."""
        self._ready.clear()
        self._loop.run(self._subscription.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _LoopThread:
    """An event loop in a thread of its own, started on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end in the loop; an interrupted wait cancels it."""
        with self._lock:
            loop = self._started(work)
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Have it run in the loop, if there still is one, without waiting."""
        loop = self._loop
        if loop is not None and not self._stopped:
            with contextlib.suppress(RuntimeError):  # it was closed this moment
                loop.call_soon_threadsafe(lambda: loop.create_task(work()))

    def stop(self, last: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run `last()`, then end the thread; a second call does nothing."""
        with self._lock:
            loop, thread, stopped = self._loop, self._thread, self._stopped
            self._stopped = True
        if stopped or loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(last(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def _started(self, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
        if self._stopped:
            work.close()
            raise InvalidRequest("this client is closed; make a new one")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(_report)
            self._thread = threading.Thread(target=self._main, name="eyeline-client", daemon=True)
            self._thread.start()
        return self._loop

    def _main(self) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101  # set before the thread starts
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # gRPC wakes every loop of the process for each event; those that find nothing to do say so by this error.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


async def _take(results: AsyncIterator[Result], count: int) -> list[Result]:
    """Up to `count` of them; empty at the end."""
    taken: list[Result] = []
    async for result in results:
        taken.append(result)
        if len(taken) >= max(count, 1):
            break
    return taken
