"""A child process that never outlives us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eyeline.errors import ServerFailed

# How often, and how long apart, it is looked whether what a killed child had started is gone.
_LAST_ONES = 50
_LAST_ONES_EVERY_S = 0.02
_TETHER = Path(__file__).with_name("_tether.py")


class Child:
    """One program, run as a child in a session of its own.

    It gets SIGTERM when this process ends in whatever way, SIGKILL included; Ctrl-C in a terminal reaches
    only us, so that we decide in which order children stop. Start it from a thread that lives as long as the
    child should: for the kernel, the thread is the parent.

    log: file that gets its output, appended; None lets it write where we do.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.argv = list(argv)
        self.name = name
        self.log = log
        self._env = None if env is None else dict(env)
        self._cwd = cwd
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    @property
    def returncode(self) -> int | None:
        """Exit status of the last run, negative for a signal; None while it runs or before."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> int:
        """Start it; returns the process id. Raises `ServerFailed` when it cannot be run at all."""
        if self.pid is not None:
            raise ServerFailed(f"{self.name} is already running (pid {self.pid})")
        output = None
        try:
            if self.log is not None:
                output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(_TETHER),
                str(os.getpid()),
                *self.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        except OSError as problem:
            raise ServerFailed(f"{self.name} cannot be started: {problem}") from None
        finally:
            if output is not None:
                os.close(output)
        return self._process.pid

    async def wait(self) -> int:
        """Wait until it ends; returns the exit status."""
        if self._process is None:
            raise ServerFailed(f"{self.name} was not started")
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, grace_s: float = 10.0) -> int | None:
        """Ask it to end, insist after `grace_s`, and return its exit status; None if it never ran."""
        if self._process is None:
            return None
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            # Whatever it started is in its session, and so in its process group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        status = await self._process.wait()
        # These end a little later, and until then may still make or hold what the caller is about to remove.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            for _ in range(_LAST_ONES):
                os.killpg(self._process.pid, 0)
                await asyncio.sleep(_LAST_ONES_EVERY_S)
        return status

    def last_words(self, lines: int = 3) -> str:
        """The end of its log, on one line, for an error message."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                tail = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return " | ".join(line.strip() for line in tail[-lines:])
