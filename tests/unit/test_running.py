"""A command that is asked to stop stops, though its cancellation gets lost."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, contextlib
from cloud_inference import running

async def deaf() -> None:
    print("up", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    print("lost", flush=True)
    await asyncio.sleep(60)

async def grouped() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(deaf())

running._AGAIN_S = 0.2
"""


@pytest.mark.parametrize("main", ["deaf", "grouped"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_is_asked_again_until_it_ends(number: signal.Signals, status: int, main: str) -> None:
    program = [sys.executable, "-c", f"{PROGRAM}running.run({main}())"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(10) == status
        assert process.stdout.read() == "lost\n"
