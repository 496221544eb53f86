"""The device's own broker: a nats-server child that is started again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import structlog
from nats.aio.client import Client

from edge_agent.config import Fsync, SpoolSettings
from eyeline import bus
from eyeline.errors import ServerFailed
from eyeline.nats_server import NatsServer, StoreKey
from eyeline.subjects import EDGE_DOMAIN

_log = structlog.get_logger()

_USER: Final = "agent"
# Memory the broker may take for itself, beside a memory spool.
_BROKER_BYTES: Final = 64 << 20
_RESTART_FIRST_S: Final = 0.2
_RESTART_LONGEST_S: Final = 10.0

_SYNC: Final = {Fsync.ALWAYS: "always", Fsync.SECOND: '"1s"', Fsync.RELAXED: '"2m"'}


class Broker:
    """A nats-server for the spool in `folder`; only this process knows the password that may write."""

    def __init__(self, settings: SpoolSettings, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_hex(16)
        key = settings.store_key()
        memory = settings.max_bytes if settings.storage == "memory" else 0
        self._server = NatsServer(
            _config(settings, folder, self._password, key),
            work_dir=folder,
            name="broker",
            port=settings.port,
            env={"GOMEMLIMIT": str(_BROKER_BYTES + memory), **(key.env if key is not None else {})},
        )

    @property
    def url(self) -> str:
        """Its address on this device."""
        return self._server.url

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._server.pid

    async def start(self) -> None:
        """Start it, after the end of one that a killed agent left behind; raises `ServerFailed`."""
        await self._end_orphan()
        await self._server.start()

    async def stop(self) -> None:
        """Stop it."""
        await self._server.stop()

    def end(self) -> None:
        """Ask it to end, for `supervise` to start it again."""
        if self._server.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._server.pid, 15)

    async def connect(self, changed: Any) -> Client:
        """Connect as the one who may write."""
        return await bus.connect(
            self.url, name="spool", user=_USER, password=self._password, on_change=changed
        )

    async def supervise(self, say: Callable[[str], None]) -> None:
        """Start it again when it ends, for ever; `say` gets one line when that fails."""
        delay = _RESTART_FIRST_S
        while True:
            started = time.monotonic()
            code = await self._server.wait()
            _log.error("spool_broker_ended", exit_status=code)
            if time.monotonic() - started > 60:
                delay = _RESTART_FIRST_S
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RESTART_LONGEST_S)
                try:
                    await self._server.start()
                except ServerFailed as problem:
                    say(str(problem))
                else:
                    _log.info("spool_broker_restarted", pid=self._server.pid)
                    break

    async def _end_orphan(self) -> None:
        """Wait for a broker that a killed agent left behind: two must never write one store."""
        try:
            process = psutil.Process(int((self._folder / "broker.pid").read_text(encoding="utf-8")))
            if str(self._folder / "broker.conf") not in process.cmdline():
                return
            process.terminate()
            await asyncio.to_thread(process.wait, 10)
        except psutil.TimeoutExpired:
            process.kill()
        except (OSError, ValueError, psutil.Error):
            return


def _config(settings: SpoolSettings, folder: Path, password: str, key: StoreKey | None) -> str:
    """Loopback only (the launcher sees to it); local readers may listen, and only the agent may write."""
    memory = settings.max_bytes + (1 << 20) if settings.storage == "memory" else 0
    disk = settings.max_bytes * 2 + (64 << 20) if settings.storage == "file" else 1 << 20
    encrypted = "\n".join(f"  {name}: {value}" for name, value in (key.config if key else {}).items())
    return f"""
server_name: eyeline-spool
pid_file: "{folder / "broker.pid"}"
jetstream {{
  store_dir: "{folder / "store"}"
  domain: {EDGE_DOMAIN}
  max_mem: {max(memory, 1 << 20)}
  max_file: {disk}
  sync_interval: {_SYNC[settings.fsync]}
{encrypted}
}}
authorization {{
  users: [
    {{ user: {_USER}, password: "{password}" }}
    {{ user: local, password: "", permissions: {{ publish: {{ deny: ">" }}, subscribe: "eyeline.v1.>" }} }}
  ]
}}
no_auth_user: local
"""
