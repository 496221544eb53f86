"""Ctrl-C ends a command of `eyeline`, whatever its work makes of it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, contextlib
from eyeline import terminal

async def polite() -> int:
    print("up", flush=True)
    await asyncio.sleep(60)
    return 0

async def deaf() -> int:
    with contextlib.suppress(asyncio.CancelledError):
        await polite()
    await asyncio.sleep(60)
    return 0

async def quick() -> int:
    print("up", flush=True)
    return 5

terminal._END_WITHIN_S = 0.3
"""


@pytest.mark.parametrize("work", ["polite", "deaf"])
def test_it_ends_as_interrupted(work: str) -> None:
    with start(work) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_the_status_is_that_of_the_work() -> None:
    with start("quick") as process:
        assert process.wait(20) == 5


def start(work: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", f"{PROGRAM}terminal.run({work}())"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process
