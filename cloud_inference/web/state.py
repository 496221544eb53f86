"""What the holders of one token may know, as the API says: asked once for all their browsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from cloud_inference.web.forms import device_form, result_form
from cloud_inference.web.metrics import VIEWERS
from eyeline import Client
from eyeline.errors import EyelineError, PermissionDenied, Unauthenticated
from eyeline.values import Result

_log = structlog.get_logger()

_BACK_S: Final = 10.0
_KEPT: Final = 200
# Answers that come so close together travel together.
_GATHER_S: Final = 0.02
_DEVICES_EVERY_S: Final = 1.0
# ... of so many devices; more take longer.
_DEVICES_A_SECOND: Final = 25
_RETRY_S: Final = 1.0
_LINGER_S: Final = 5.0
_OVER: Final = 4401


class Reader(Protocol):
    """A browser. Calls never block and never raise."""

    def say(self, text: str) -> None:
        """A message of the page's protocol."""
        ...

    def end(self, code: int, reason: str) -> None:
        """Close the connection, saying why."""
        ...


class Session:
    """One token's view of the API, kept up to date while somebody reads it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._readers: set[Reader] = set()
        self._recent: dict[str, deque[dict[str, Any]]] = {}
        self._devices = ""
        self._gathered: list[dict[str, Any]] = []
        self._ask_devices = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._left_s = time.monotonic()
        # What stands in the way, in one line; empty when nothing does.
        self.problem = ""

    def join(self, reader: Reader) -> None:
        """Tell it everything that is known, and what follows."""
        self._readers.add(reader)
        if self._devices:
            reader.say(self._devices)
        known = [result for results in self._recent.values() for result in results]
        if known:
            reader.say(_results(known))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        VIEWERS.inc()

    def leave(self, reader: Reader) -> None:
        """Nothing more for it."""
        if reader in self._readers:
            self._readers.discard(reader)
            VIEWERS.dec()
        self.touch()

    def touch(self) -> None:
        """It is of use now."""
        self._left_s = time.monotonic()

    @property
    def unused(self) -> bool:
        """Whether nobody has read it for a while."""
        return not self._readers and time.monotonic() - self._left_s > _LINGER_S

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.client.close()

    def refresh(self) -> None:
        """Ask about the devices now rather than soon."""
        self._ask_devices.set()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._look_at_devices())
        except* (Unauthenticated, PermissionDenied) as problems:
            self.problem = str(problems.exceptions[0])
            for reader in list(self._readers):
                reader.end(_OVER, self.problem)

    async def _follow(self) -> None:
        """Answers, for ever."""
        while True:
            try:
                for result in await self.client.latest():
                    self._take(result)
                since_ns = int((time.time() - _BACK_S) * 1e9)
                async for result in self.client.subscribe(since_ns=since_ns, on_gap="continue"):
                    self.problem = ""
                    self._take(result)
            except (Unauthenticated, PermissionDenied):
                raise
            except EyelineError as problem:
                self.problem = str(problem)
            await asyncio.sleep(_RETRY_S)

    def _take(self, result: Result) -> None:
        form = result_form(result.proto)
        recent = self._recent.setdefault(form["camera"], deque(maxlen=_KEPT))
        recent.append(form)
        if not self._gathered:
            asyncio.get_running_loop().call_later(_GATHER_S, self._tell)
        self._gathered.append(form)

    def _tell(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            text = _results(gathered)
            for reader in list(self._readers):
                reader.say(text)

    async def _look_at_devices(self) -> None:
        while True:
            pause_s = _DEVICES_EVERY_S
            try:
                devices = await self.client.devices()
            except (Unauthenticated, PermissionDenied):
                raise
            except EyelineError as problem:
                self.problem = str(problem)
            else:
                self.problem = ""
                pause_s = max(pause_s, len(devices) / _DEVICES_A_SECOND)
                text = json.dumps(
                    {"type": "devices", "devices": [device_form(device) for device in devices]},
                    separators=(",", ":"),
                )
                if text != self._devices:
                    self._devices = text
                    for reader in list(self._readers):
                        reader.say(text)
            self._ask_devices.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._ask_devices.wait()


def _results(results: list[dict[str, Any]]) -> str:
    return json.dumps({"type": "results", "results": results}, separators=(",", ":"))


class Sessions:
    """Sessions by token. connect: a client of the API with that token."""

    def __init__(self, connect: Callable[[str], Client]) -> None:
        self._connect = connect
        self._open: dict[str, Session] = {}

    def get(self, token: str) -> Session:
        """The session of a token."""
        found = self._open.get(token)
        if found is None:
            found = self._open[token] = Session(self._connect(token))
        found.touch()
        return found

    async def sweep(self) -> None:
        """End, for ever, those that nobody reads any more."""
        while True:
            await asyncio.sleep(1)
            for token, session in list(self._open.items()):
                if session.unused:
                    del self._open[token]
                    await session.close()

    async def close(self) -> None:
        """End all of them."""
        for session in self._open.values():
            await session.close()
