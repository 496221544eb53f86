"""The spool against a real broker: what is kept stays kept, and what cannot be kept is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import spool as spools
from edge_agent.config import SpoolSettings
from edge_agent.keep import Keeper
from edge_agent.spool import Spool
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch
from tests.support.deliveries import Camera, frames_of
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(90)

EPOCH = Epoch(3, b"12345678")


@contextlib.asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[tuple[Spool, Keeper]]:
    spool = Spool(SpoolSettings(**settings), folder)
    await spool.start()
    keeper = Keeper(spool)
    try:
        yield spool, keeper
    finally:
        await spool.stop()


async def kept(spool: Spool, camera: str) -> list[pb.FrameEnvelope]:
    """What is in the spool, by its index, reports of losses first."""
    found = [envelope for _, envelope in spool.reports.get(camera, [])]
    for segment in spool.index(camera).waiting():
        cursor = segment.cursor
        while segment.cursor <= segment.last_seq:
            parts = await spool.read(camera, segment)
            if not parts:
                break
            found += [pb.FrameEnvelope.FromString(data) for _, data in parts]
            segment.cursor = parts[-1][0] + 1
        segment.cursor = cursor
    return found


async def test_put_read_acknowledge(tmp_path: Path) -> None:
    async with running(tmp_path) as (spool, keeper):
        camera = Camera("gate", EPOCH)
        for step in range(10):
            assert await keeper.publish(camera.frame(keyframe=step == 5))
        first, second = spool.index("gate").waiting()
        assert (first.chain, first.messages, second.chain, second.messages) == (1, 5, 2, 5)
        parts = await spool.read("gate", first, max_messages=3)
        assert frames_of([pb.FrameEnvelope.FromString(data) for _, data in parts]) == [1, 2, 3]
        spool.acknowledged("gate", first, parts, 3)
        assert spool.messages == 7

        async def stored() -> int:
            assert spool.session is not None
            return int((await spool.session.api("STREAM.INFO.SPOOL"))["state"]["messages"])

        async def only_the_rest() -> bool:
            return await stored() == 7

        await eventually(only_the_rest)
        assert frames_of(await kept(spool, "gate")) == list(range(4, 11))


async def test_index_is_rebuilt(tmp_path: Path) -> None:
    async with running(tmp_path) as (spool, keeper):
        for name in ("gate", "door"):
            camera = Camera(name, EPOCH)
            for step in range(700):
                await keeper.publish(camera.frame(keyframe=step % 50 == 0))
        before = [(it.chain, it.first_seq, it.last_seq, it.size) for it in spool.index("gate").segments]
    async with running(tmp_path) as (spool, _):
        assert spool.messages == 1400
        assert spool.highest_epoch == 3
        after = [(it.chain, it.first_seq, it.last_seq, it.size) for it in spool.index("gate").segments]
        assert [it[:3] for it in after] == [it[:3] for it in before]
        assert frames_of(await kept(spool, "door")) == list(range(1, 701))


async def test_full_spool_purges_whole_chains_and_reports(tmp_path: Path) -> None:
    async with running(tmp_path, max_bytes=1 << 20) as (spool, keeper):
        busy, quiet = Camera("busy", EPOCH, size=20_000), Camera("quiet", EPOCH, size=1000)
        for step in range(20):
            assert await keeper.publish(quiet.frame(keyframe=step == 0))
        for step in range(200):
            assert await keeper.publish(busy.frame(keyframe=step % 10 == 0))
        found = await kept(spool, "busy")
        assert frames_of(found) == list(range(1, 201)), "every frame is kept or reported"
        report, rest = found[0], found[1:]
        assert len(report.items) == 1, "adjacent losses are one report"
        lost = report.items[0].range
        assert (lost.kind, lost.reason) == (pb.RANGE_KIND_DROPPED, "spool_full")
        assert lost.first_capture.wall_ns
        assert lost.last_capture.wall_ns >= lost.first_capture.wall_ns
        assert rest[0].items[0].access_unit.keyframe, "purged to a chain boundary"
        assert keeper.dropped("busy") == {"spool_full": lost.last_sequence}
        assert keeper.dropped("quiet") == {}
        assert frames_of(await kept(spool, "quiet")) == list(range(1, 21))
    async with running(tmp_path, max_bytes=1 << 20) as (spool, _):
        assert frames_of(await kept(spool, "busy")) == list(range(1, 201)), "reports survive a restart"


async def test_old_chains_are_purged(tmp_path: Path) -> None:
    async with running(tmp_path, max_age_s=1, late_after_s=0.1) as (spool, keeper):
        camera = Camera("gate", EPOCH)
        for step in range(20):
            await keeper.publish(camera.frame(keyframe=step % 10 == 0))
        aging = asyncio.create_task(keeper.purge_aged())
        await eventually(lambda: keeper.dropped("gate") == {"spool_age": 20} and spool.reports.get("gate"))
        aging.cancel()
        (report,) = await kept(spool, "gate")
        assert report.items[0].range.reason == "spool_age"
        assert frames_of([report]) == list(range(1, 21))
        # What depends on a purged frame is told too, until the camera starts a new chain.
        assert not await keeper.publish(camera.frame())
        assert keeper.breaks("gate") == 1
        assert await keeper.publish(camera.frame(keyframe=True))
        assert frames_of(await kept(spool, "gate")) == list(range(1, 23))


async def test_broker_killed_while_writing(tmp_path: Path) -> None:
    async with running(tmp_path) as (spool, keeper):
        camera = Camera("gate", EPOCH)
        for step in range(90):
            assert await keeper.publish(camera.frame(keyframe=step % 30 == 0))
            if step % 40 == 20:
                assert spool.pid is not None
                os.kill(spool.pid, signal.SIGKILL)
        assert frames_of(await kept(spool, "gate")) == list(range(1, 91))


async def test_memory_spool_forgets_with_its_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "_CACHE_BYTES", 0)
    async with running(tmp_path, storage="memory", max_bytes=4 << 20) as (spool, keeper):
        camera = Camera("gate", EPOCH)
        for _ in range(10):
            assert await keeper.publish(camera.frame())
        assert spool.pid is not None
        os.kill(spool.pid, signal.SIGKILL)
        await eventually(lambda: keeper.dropped("gate") == {"spool_lost": 10})
        assert not await keeper.publish(camera.frame()), "its keyframe is gone"
        assert await keeper.publish(camera.frame(keyframe=True))
        found = await kept(spool, "gate")
        assert frames_of(found) == list(range(1, 13))
        assert found[0].items[0].range.reason == "spool_lost"


async def test_what_the_agent_still_has_is_stored_again(tmp_path: Path) -> None:
    async with running(tmp_path, storage="memory", max_bytes=4 << 20) as (spool, keeper):
        camera = Camera("gate", EPOCH)
        for _ in range(10):
            assert await keeper.publish(camera.frame())
        assert spool.pid is not None
        os.kill(spool.pid, signal.SIGKILL)
        for _ in range(10):
            assert await keeper.publish(camera.frame())
        assert keeper.dropped("gate") == {}
        assert frames_of(await kept(spool, "gate")) == list(range(1, 21))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.fail("run as root, or allow mounting: the full disk is a real one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("reserve", [spools.DISK_RESERVE_BYTES, 0], ids=["noticed", "hit"])
async def test_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch, reserve: int) -> None:
    """Whether the agent sees it coming, or the broker runs into it: told once, and all well afterwards."""
    monkeypatch.setattr(spools, "DISK_RESERVE_BYTES", reserve)
    monkeypatch.setattr(spools, "_PUT_TIMEOUT_S", 0.5)
    async with running(small_disk) as (spool, keeper):
        camera = Camera("gate", EPOCH, size=4000)
        for step in range(20):
            assert await keeper.publish(camera.frame(keyframe=step % 10 == 0))
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        outcomes = [await keeper.publish(camera.frame()) for _ in range(30)]
        assert not outcomes[-1]
        assert keeper.dropped("gate")["spool_error"] >= 1
        assert spool.problem
        breaks = keeper.breaks("gate")
        assert breaks == 1
        filler.unlink()

        async def recovers() -> bool:
            return await keeper.publish(camera.frame(keyframe=True))

        await eventually(recovers, within_s=40, what="the spool takes frames again")
        assert spool.problem == ""
        for _ in range(5):
            assert await keeper.publish(camera.frame())
        found = await kept(spool, "gate")
        assert frames_of(found) == list(range(1, camera.sequence + 1)), "each frame is kept or reported"
        reasons = {item.range.reason for it in found for item in it.items if item.HasField("range")}
        assert reasons == {"spool_error"}


_KEEPER_PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.integration.test_spool import EPOCH, running
from tests.support.deliveries import Camera

async def main():
    async with running(Path(sys.argv[1])) as (spool, keeper):
        camera = Camera("gate", EPOCH)
        while True:
            await keeper.publish(camera.frame(keyframe=camera.sequence % 50 == 0))
            print(camera.sequence, flush=True)

asyncio.run(main())
"""


async def test_agent_killed(tmp_path: Path) -> None:
    """What the spool acknowledged is there when the agent comes back."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _KEEPER_PROGRAM, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    last = 0
    async for line in process.stdout:
        with contextlib.suppress(ValueError):
            last = int(line)
        if last >= 200:
            process.kill()
            break
    rest, _ = await process.communicate()
    last = max([last, *(int(line) for line in rest.split() if line.isdigit())])
    async with running(tmp_path) as (spool, _):
        found = frames_of(await kept(spool, "gate"))
        assert found[:last] == list(range(1, last + 1))
        assert len(found) <= last + 1
