"""Erasure: everywhere, shown to be so, and the cameras' work goes on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_inference import audit
from cloud_inference.hub import LocalHub
from cloud_inference.operate import connect, erase
from cloud_inference.operate.connect import Account
from cloud_inference.operate.erase import Order
from edge_agent.config import SpoolSettings
from edge_agent.erase import Eraser
from edge_agent.keep import Keeper
from edge_agent.spool import Spool
from eyeline import subjects
from eyeline.envelope import encode_envelope
from eyeline.errors import ConfigError
from eyeline.v1 import device_pb2, frame_pb2, result_pb2
from tests.support.api import EPOCH, result, store
from tests.support.commands import run
from tests.support.eventually import eventually
from tests.support.servers import cloud_client
from tests.support.updates import cloud_settings

SECOND_NS = 1_000_000_000
START_NS = time.time_ns() // SECOND_NS * SECOND_NS - 3600 * SECOND_NS


def at(second: float) -> int:
    return START_NS + int(second * SECOND_NS)


def envelope(second: int, *, camera: str = "gate", chain: int | None = None, mark: bytes = b"") -> Any:
    """One keyframe, captured at that second; its sequence is the second."""
    return frame_pb2.FrameEnvelope(
        schema_major=1,
        tenant="acme",
        site="yard",
        device="box1",
        camera=camera,
        epoch=EPOCH,
        clock=frame_pb2.ClockEstimate(offset_ns=5, uncertainty_ns=1000),
        format=frame_pb2.PictureFormat(
            codec=frame_pb2.CODEC_H264,
            coded_width_px=64,
            coded_height_px=64,
            source_width_px=64,
            source_height_px=64,
            scale_x=1,
            scale_y=1,
        ),
        items=[
            frame_pb2.FrameItem(
                access_unit=frame_pb2.AccessUnit(
                    sequence=second,
                    chain_id=chain or second,
                    keyframe=True,
                    data=mark + b"pixels of second %d" % second,
                    capture=frame_pb2.CaptureTime(monotonic_ns=at(second) - START_NS + 1, wall_ns=0),
                )
            )
        ],
        published=frame_pb2.CaptureTime(monotonic_ns=at(second) - START_NS + 1, wall_ns=at(second)),
        previous_sequence=second - 1,
    )


@pytest.fixture
async def account(hub: LocalHub) -> AsyncIterator[Account]:
    async with connect.account(cloud_settings(hub), "acme") as opened:
        yield opened


async def filled(account: Account) -> None:
    """Ten seconds of two cameras: pixels, results, dead letters, samples; the device reported."""
    js = account.js
    for camera in ("gate", "door"):
        for second in range(1, 11):
            data = encode_envelope(envelope(second, camera=camera))
            await js.publish(subjects.frame_subject("yard", "box1", camera), data)
            one = result(second, camera=camera, captured_ns=at(second))
            batch = result_pb2.ResultBatch(schema_major=1, results=[one])
            batch.checkpoint.frame_stream_sequence = second
            await js.publish(subjects.result_subject("yard", camera), batch.SerializeToString())
            await js.publish(subjects.dead_subject("yard", "box1", camera), data)
        await js.publish(subjects.dead_subject("yard", "box1", camera), b"rubbish")
        await js.publish(subjects.sample_subject("yard", "box1", camera), b"sample")


async def report(account: Account, *done: str) -> None:
    status = device_pb2.DeviceStatus(schema_major=1, site="yard", device="box1")
    status.erasures.extend(device_pb2.ErasureStatus(id=one, done=True) for one in done)
    await account.js.publish(subjects.status_subject("yard", "box1"), status.SerializeToString())


async def count(account: Account, stream: str) -> dict[str, int]:
    info = await account.js.stream_info(stream, subjects_filter=">")
    return {subject.rsplit(".", 1)[1]: number for subject, number in (info.state.subjects or {}).items()}


async def test_everything_of_the_time_goes_and_nothing_else(account: Account) -> None:
    await filled(account)
    order = Order("yard", "gate", at(3), at(8))
    done = await erase.erase(account, order, wait_s=0)
    # Seconds 3 to 7; for pixels a second of slack at either end, and the uncertainty of the clock.
    found = {place.name: (place.erased, place.left) for place in done.places}
    assert found == {"pixels": (8, 0), "results": (5, 0), "dead letters": (9, 0), "samples": (1, 0)}
    assert done.complete
    assert await count(account, subjects.FRAMES) == {"gate": 2, "door": 10}
    assert await count(account, subjects.RESULTS) == {"gate": 5, "door": 10}
    assert await count(account, subjects.DEAD) == {"gate": 2, "door": 11}
    assert await count(account, subjects.SAMPLES) == {"door": 1}
    told = [entry async for entry in audit.read(account.js)]
    assert [(entry.what, entry.cameras) for entry in told] == [
        ("erase", ("yard/gate",)),
        ("erased", ("yard/gate",)),
    ]
    assert told[1].detail["complete"] is True
    assert told[1].detail["erased_left"]["results"] == [5, 0]
    # Again: nothing is there.
    again = await erase.erase(account, order, wait_s=0)
    assert [(place.erased, place.left) for place in again.places] == [(0, 0)] * 4


async def test_the_newest_checkpoint_survives_without_its_results(account: Account) -> None:
    await filled(account)
    subject = subjects.result_subject("yard", "gate")
    before = await account.js.get_last_msg(subjects.RESULTS, subject)
    await erase.erase(account, Order("yard", "gate", at(5), at(3000)), wait_s=0)
    after = await account.js.get_last_msg(subjects.RESULTS, subject)
    assert (after.seq or 0) > (before.seq or 0)
    batch = result_pb2.ResultBatch.FromString(after.data or b"")
    assert not batch.results
    assert batch.checkpoint.frame_stream_sequence == 10


async def test_what_a_worker_stores_meanwhile_goes_too(account: Account) -> None:
    """A worker that had frames of the time in hand writes their results behind our back."""
    await filled(account)

    async def late() -> None:
        await eventually(
            lambda: _few(account, subjects.RESULTS, 7), within_s=20, what="the first pass was through"
        )
        await store(account.js, [result(4, captured_ns=at(4))])

    async with asyncio.TaskGroup() as group:
        group.create_task(late())
        done = await erase.erase(account, Order("yard", "gate", at(3), at(8)), wait_s=0)
    assert {place.name: place.left for place in done.places}["results"] == 0
    assert done.places[1].erased == 6


async def _few(account: Account, stream: str, most: int) -> bool:
    return (await count(account, stream)).get("gate", 0) < most


async def test_a_device_that_is_away_is_told_of_and_waited_for(account: Account) -> None:
    await report(account)
    done = await erase.erase(account, Order("yard", "gate", at(3), at(8)), wait_s=0)
    assert (done.devices, done.pending, done.complete) == (["yard/box1"], ["yard/box1"], False)
    bucket = await account.js.key_value(subjects.DESIRED)
    wanted = device_pb2.DesiredConfig.FromString((await bucket.get("yard.box1")).value or b"")
    assert [(one.id, one.camera, one.from_ns) for one in wanted.erasures] == [(done.id, "gate", at(3))]

    async def answer() -> None:
        async def asked() -> Any:
            wanted.ParseFromString((await bucket.get("yard.box1")).value or b"")
            return len(wanted.erasures) == 2

        await eventually(asked)
        await report(account, wanted.erasures[1].id)

    async with asyncio.TaskGroup() as group:
        group.create_task(answer())
        again = await erase.erase(account, Order("yard", "gate", at(3), at(8)), wait_s=20)
    assert again.complete


@pytest.mark.parametrize(("first", "last"), [(8, 3), (3, 400_000)])
def test_impossible_times(first: int, last: int) -> None:
    with pytest.raises(ConfigError):
        Order("yard", "gate", at(first), at(last))


async def test_the_device_s_own_spool(tmp_path: Path) -> None:
    """Chains of the time go, overwritten on the disk; their frames are told as dropped."""
    spool = Spool(SpoolSettings(), tmp_path)
    await spool.start()
    keeper = Keeper(spool)
    eraser = Eraser(
        spool, keeper, hub_now_ns=time.time_ns, clock_at=lambda *_: frame_pb2.ClockEstimate(), every_s=0.05
    )
    working = asyncio.create_task(eraser.run())
    try:
        for second in range(1, 11):
            assert await keeper.publish(envelope(second, mark=b"MARK%02d-" % second))
        eraser.want([device_pb2.Erasure(id="e1", camera="gate", from_ns=at(4), to_ns=at(6))])
        await eventually(lambda: [it.done for it in eraser.status()] == [True], within_s=20)
        # 4 and 5, and a second of slack at either end.
        assert [it.messages for it in eraser.status()] == [4]
        left = [segment.next_frame for segment in spool.index("gate").waiting()]
        assert left == [1, 2, 7, 8, 9, 10]
        (reported,) = spool.reports["gate"]
        (item,) = reported[1].items
        assert (item.range.first_sequence, item.range.last_sequence) == (3, 6)
        assert (item.range.reason, keeper.dropped("gate")) == ("erased", {"erased": 4})
        eraser.want([])
        assert eraser.status() == []
    finally:
        working.cancel()
        await spool.stop()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"MARK02-" in kept
    assert b"MARK07-" in kept
    assert b"MARK04-" not in kept
    assert b"MARK05-" not in kept


async def test_the_command(hub: LocalHub, account: Account, tmp_path: Path) -> None:
    await filled(account)
    config = tmp_path / "cloud.yaml"
    config.write_text(yaml.safe_dump(cloud_settings(hub).model_dump(mode="json", exclude_unset=True)))
    options = ["--config", config, "--tenant", "acme", "--camera", "yard/gate", "--wait", "0"]
    done = await run("cloud_inference", "erase", *options, "--from", "2h", "--to", "10m", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["complete"] is True
    bad = await run("cloud_inference", "erase", *options, "--from", "2h", "--to", "yesterday")
    assert (bad.status, "is no time" in bad.err) == (2, True)
    client = await cloud_client(hub)
    assert "gate" not in await count(account, subjects.FRAMES)
    await client.close()
