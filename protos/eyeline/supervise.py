"""Keeping the programs of one machine running."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Protocol, Self

import structlog

from eyeline.errors import ServerFailed

_log = structlog.get_logger()

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
# One that stayed up for so long starts over with the shortest wait.
_STEADY_S = 30.0


class Service(Protocol):
    """A `Child`, or a server that is one."""

    @property
    def name(self) -> str:
        """For logs."""
        ...

    async def start(self) -> object:
        """Start it, until it is up; raises `ServerFailed`."""
        ...

    async def wait(self) -> int:
        """Wait until it ends; returns the exit status."""
        ...

    async def stop(self) -> object:
        """Stop it, if it runs."""
        ...


class Supervisor:
    """Starts services and starts again those that end; on leaving, stops them, the last one first.

    An async context manager.
    """

    def __init__(self) -> None:
        self._services: list[Service] = []
        self._watches: list[asyncio.Task[None]] = []
        self.restarts: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for service in reversed(self._services):
            await service.stop()

    async def start(self, *services: Service) -> None:
        """Start these together and keep them running; raises `ServerFailed` when one does not come up now."""
        # Before starting: what is half started when another one fails must be stopped as well.
        self._services += services
        outcomes = await asyncio.gather(*(service.start() for service in services), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        for service in services:
            self.restarts[service.name] = 0
            self._watches.append(asyncio.create_task(self._keep(service), name=f"supervise {service.name}"))

    async def _keep(self, service: Service) -> None:
        delay = _FIRST_WAIT_S
        while True:
            began = time.monotonic()
            status = await service.wait()
            if time.monotonic() - began > _STEADY_S:
                delay = _FIRST_WAIT_S
            _log.error("child_died", child=service.name, status=status, restart_in_s=round(delay, 1))
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_WAIT_S)
                # Its helpers, if it has any, must not live on beside the new one's.
                with contextlib.suppress(ServerFailed):
                    await service.stop()
                try:
                    await service.start()
                except ServerFailed as problem:
                    _log.error("child_not_restarted", child=service.name, reason=str(problem))
                else:
                    break
            self.restarts[service.name] += 1
            _log.warning("child_restarted", child=service.name)
