"""The version before and this one, as real processes: old agent and new cloud, and the other way round."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults_record import record
from benchmarks.system import DEVICE, SITE, Agent, Cloud
from cloud_inference.triton_server import HOME_VARIABLE, find_triton
from eyeline import Client, Result
from eyeline.process import Child
from tests.support.eventually import eventually

pytestmark = [pytest.mark.long, pytest.mark.history, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# The version before this one; it moves on with each release.
BEFORE = "26a00e4"
FRAMES, FPS = 60, 10


@pytest.fixture
def before(tmp_path: Path) -> list[str]:
    """The start of a command line that runs the version before, from its own files."""
    folder = tmp_path / "before"
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True, check=False)
    if archive.returncode:
        pytest.fail(f"{BEFORE} is not in this clone: fetch the history (git fetch --unshallow)")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    path = os.pathsep.join(str(folder / part) for part in (".", "protos", "models"))
    home = find_triton()
    # In its own folder: `python -m` looks in the current one first.
    return ["env", "-C", str(folder), f"PYTHONPATH={path}", f"{HOME_VARIABLE}={home}", sys.executable]


async def answers(api: str, since_ns: int) -> list[Result]:
    """Every final result, as soon as each frame has one."""
    found: list[Result] = []

    async def listen(client: Client) -> None:
        async for result in client.subscribe(since_ns=since_ns, final_only=True):
            found.append(result)  # noqa: PERF401  # looked at while it grows

    async with Client(api) as client:
        listening = asyncio.create_task(listen(client))
        try:
            await eventually(
                lambda: sum(it.frames for it in found) >= FRAMES, within_s=90, what="an answer for each frame"
            )
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    return found


def check(found: list[Result]) -> None:
    sequences = [n for it in found for n in range(it.sequence, it.last_sequence + 1)]
    assert sorted(sequences) == list(range(1, FRAMES + 1))
    assert sum(bool(it.detections) and it.provenance.name == "CLOUD" for it in found) > 2
    assert not any(it.late for it in found)


def source(tmp_path: Path) -> dict[str, dict[str, Any]]:
    recording = record(tmp_path / "camera.mp4", FRAMES, FPS)
    return {"cam1": {"source": str(recording.path), "realtime": True}}


async def test_an_agent_of_the_version_before(tmp_path: Path, before: list[str]) -> None:
    began_ns = time.time_ns()
    async with Cloud(tmp_path / "cloud") as cloud:
        program = [*before, "-m", "edge_agent"]
        async with Agent(cloud, tmp_path / "agent", source(tmp_path), program=program):
            check(await answers(cloud.api, began_ns))


async def test_a_cloud_of_the_version_before(tmp_path: Path, before: list[str]) -> None:
    began_ns = time.time_ns()
    state = tmp_path / "cloud"
    cloud = Child(
        [*before, "-m", "cloud_inference", "local", "--state", str(state), "--device", f"{SITE}/{DEVICE}",
         "--hub-port", "0", "--api-port", "0"],
        name="cloud",
        log=tmp_path / "cloud.log",
    )  # fmt: skip
    await cloud.start()
    try:
        await eventually(
            lambda: (state / "endpoints.json").exists() or cloud.returncode is not None, within_s=60
        )
        assert cloud.returncode is None, cloud.last_words(5)
        older = _Running(json.loads((state / "endpoints.json").read_text()))
        async with Agent(older, tmp_path / "agent", source(tmp_path)):  # type: ignore[arg-type]
            check(await answers(older.api, began_ns))
    finally:
        await cloud.stop()


class _Running:
    """A cloud side that is not ours to start: what `Agent` wants to know of one."""

    def __init__(self, endpoints: dict[str, Any]) -> None:
        self.endpoints = endpoints
        self.api = str(endpoints["api"])

    def device(self, name: str) -> dict[str, str]:
        (tenant,) = self.endpoints["tenants"].values()
        found: dict[str, str] = next(it for it in tenant["devices"] if it["device"] == name)
        return found
