"""How the `eyeline` command behaves on a terminal, in a pipe, and towards the shell."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support.eyeline_command import run_eyeline
from tests.support.fake_api import FakeApi, made_result, running_fake_api


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with running_fake_api() as running:
        running.store(*(made_result(i) for i in range(1, 1300)))
        running.page = 1000
        yield running


async def on_a_terminal(*arguments: str, server: str, **environment: str) -> str:
    """What it writes to a terminal, both streams."""
    ours, theirs = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "COLUMNS"}}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "eyeline", *arguments,
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**kept, "EYELINE_SERVER": server, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    read = asyncio.create_task(asyncio.to_thread(_read, ours))
    async with asyncio.timeout(60):
        await process.wait()
        written = await read
    os.close(ours)
    assert process.returncode == 0, written
    return written


def _read(descriptor: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


async def test_colours_only_where_they_are_wanted(api: FakeApi) -> None:
    coloured = await on_a_terminal("latest", server=api.address)
    assert "\x1b[32m" in coloured
    plain = await on_a_terminal("latest", server=api.address, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)
    piped = await run_eyeline("latest", server=api.address)
    assert "\x1b" not in piped.out


async def test_long_work_shows_a_bar_on_a_terminal_alone(api: FakeApi, tmp_path: object) -> None:
    out = ("--out", f"{tmp_path}/x.jsonl")
    seen = await on_a_terminal("export", "jsonl", *out, server=api.address)
    assert "export jsonl" in seen
    assert "1000 results" in seen
    piped = await run_eyeline("export", "jsonl", *out, server=api.address)
    assert (piped.out, piped.err) == (f"{tmp_path}/x.jsonl: 1299 results\n", "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("eyeline st", {"status"}),
        ("eyeline sink ", {"mqtt", "webhook"}),
        ("eyeline grab yard/", {"yard/gate"}),
    ],
)
async def test_the_shell_completes(api: FakeApi, words: str, found: set[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        f"{os.path.dirname(sys.executable)}/eyeline",  # noqa: PTH120
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "EYELINE_SERVER": api.address,
            "_EYELINE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
    )
    out, _ = await process.communicate()
    assert set(out.decode().split()) == found


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("latest",), 0),
        (("history", "yard/none"), 1),
        (("latest", "nowhere"), 2),
        (("report", "--since", "2 o'clock"), 2),
        (("status", "--stale", "never"), 2),
        (("grab", "yard/gate", "--timeout", "5"), 4),  # the scripted API has no pictures
    ],
)
async def test_exit_statuses(api: FakeApi, arguments: tuple[str, ...], status: int, tmp_path: object) -> None:
    done = await run_eyeline(*arguments, server=api.address)
    assert done.status == status, done.err
    assert len(done.err.splitlines()) == (status != 0)


async def test_help_names_the_exit_statuses() -> None:
    done = await run_eyeline("--help", COLUMNS="300")
    assert "Exit status: 0 fine; 1 nothing found; 2 wrong usage" in done.out
    for name in ("status", "doctor", "report", "export", "grab", "sink"):
        assert f"  {name} " in done.out
    done = await run_eyeline("latest", "--json", server="127.0.0.1:1")
    assert done.status == 3
    assert not done.out
    assert json.dumps(done.err).count("eyeline") == 1
