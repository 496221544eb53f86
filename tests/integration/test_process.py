"""Children that are supervised, and that never outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from eyeline.errors import ServerFailed
from eyeline.process import Child
from eyeline.supervise import Supervisor
from tests.support.eventually import eventually

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
DEAF = [
    sys.executable,
    "-c",
    (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    ),
]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_child_runs_says_and_stops(tmp_path: Path) -> None:
    child = Child(SLEEP, name="sleeper", log=tmp_path / "log")
    pid = await child.start()
    await eventually(lambda: child.last_words() == "up")
    assert child.pid == pid
    with pytest.raises(ServerFailed, match="already running"):
        await child.start()
    assert await child.stop() == -signal.SIGTERM
    assert child.pid is None
    assert gone(pid)
    assert await child.stop() == -signal.SIGTERM


async def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    child = Child(DEAF, name="deaf", log=tmp_path / "log")
    await child.start()
    await eventually(lambda: child.last_words() == "up")
    assert await child.stop(grace_s=0.1) == -signal.SIGKILL


async def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    child = Child(["/nonexistent/program"], name="absent", log=tmp_path / "log")
    await child.start()
    assert await child.wait() == 1
    assert child.last_words() == "/nonexistent/program: No such file or directory"
    with pytest.raises(ServerFailed):
        await Child(SLEEP, name="x", log=tmp_path / "no" / "log").start()
    with pytest.raises(ServerFailed, match="not started"):
        await Child(SLEEP, name="x").wait()


async def test_children_die_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from eyeline.process import Child\n"
        "async def main():\n"
        f"    child = Child({SLEEP!r}, name='sleeper', log=Path({str(log)!r}))\n"
        "    print(await child.start(), flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    # Only once it is up: before, it is still asking the kernel to be told.
    await eventually(lambda: log.exists() and log.read_text() == "up\n")
    parent.kill()
    await parent.wait()
    await eventually(lambda: gone(pid))


async def test_a_service_that_dies_is_started_again_and_all_are_stopped_in_the_end(tmp_path: Path) -> None:
    children = [Child(SLEEP, name=name, log=tmp_path / name) for name in ("one", "two")]
    async with Supervisor() as supervisor:
        await supervisor.start(*children)
        first = children[0].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.restarts["one"] == 1)
        pids = [child.pid for child in children]
        assert None not in pids
        assert first not in pids
        assert supervisor.restarts["two"] == 0
    assert all(pid is not None and gone(pid) for pid in pids)


async def test_nothing_is_left_when_one_of_several_does_not_start(tmp_path: Path) -> None:
    good = Child(SLEEP, name="good", log=tmp_path / "log")
    bad = Child(SLEEP, name="bad", log=tmp_path / "no" / "log")
    with pytest.raises(ServerFailed, match="bad cannot be started"):
        async with Supervisor() as supervisor:
            await supervisor.start(good, bad)
    assert good.pid is None
