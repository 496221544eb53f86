"""The `eyeline` command as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int | None
    out: str
    err: str


async def start_eyeline(*arguments: str, server: str = "", **environment: str) -> asyncio.subprocess.Process:
    """Start it, with the server in its environment."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("EYELINE_")}
    if server:
        inherited["EYELINE_SERVER"] = server
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "eyeline", *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, **environment},
    )  # fmt: skip


async def finish(process: asyncio.subprocess.Process, within_s: float = 60.0) -> Done:
    """Its end; one that hangs is a failure, and so is a traceback."""
    async with asyncio.timeout(within_s):
        out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode, out.decode(), err.decode())


async def run_eyeline(*arguments: str, server: str = "", **environment: str) -> Done:
    """Run it to its end."""
    return await finish(await start_eyeline(*arguments, server=server, **environment))
