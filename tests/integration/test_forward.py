"""Spool and forwarder against a real hub: nothing lost, nothing reordered, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig

from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from edge_agent.config import AgentSettings, CameraSettings, EncodeSettings, HubSettings
from edge_agent.delivery import Delivery
from edge_agent.epoch import next_epoch
from eyeline import bus, subjects
from eyeline.nats_server import NatsServer
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch
from tests.support.deliveries import SITE, Camera, frames_of, settings, stored_envelopes
from tests.support.eventually import eventually
from tests.support.servers import cloud_client

pytestmark = pytest.mark.timeout(90)

# What waits for it meanwhile is still young then.
_HUB_STARTS_WITHIN_S = 4.0


@contextlib.asynccontextmanager
async def delivering(chosen: AgentSettings) -> AsyncIterator[tuple[Delivery, Epoch]]:
    delivery = Delivery(chosen)
    highest = await delivery.open_spool()
    epoch = next_epoch(chosen.state_dir, at_least=highest)
    delivery.start(epoch)
    try:
        yield delivery, epoch
    finally:
        await delivery.stop()


@pytest.fixture
async def cloud(hub: LocalHub) -> AsyncIterator[Client]:
    client = await cloud_client(hub)
    await streams.ensure(client.jetstream(), StreamSettings())
    yield client
    await client.close()


async def restart(hub: LocalHub) -> None:
    """Kill the hub and start it again."""
    assert hub.server.pid is not None
    os.kill(hub.server.pid, signal.SIGKILL)
    await hub.wait()
    await hub.start()


async def all_stored(cloud: Client, last: int, within_s: float = 20) -> list[pb.FrameEnvelope]:
    async def complete() -> list[pb.FrameEnvelope] | None:
        found = await stored_envelopes(cloud)
        return found if set(frames_of(found)) == set(range(1, last + 1)) else None

    return await eventually(complete, within_s=within_s, what=f"frames 1 to {last} in the hub")


async def test_live_envelope_reaches_the_hub_at_once(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    async with delivering(settings(hub, tmp_path / "edge")) as (delivery, epoch):
        camera = Camera("gate", epoch)
        await delivery.publish(camera.frame(keyframe=True))
        await eventually(lambda: delivery.idle)
        took, round_trips = [], []
        inbox = await cloud.subscribe("eyeline.v1.frame.>")
        for _ in range(40):
            start = time.monotonic()
            await delivery.publish(camera.frame())
            await inbox.next_msg(timeout=5)
            took.append(time.monotonic() - start)
            start = time.monotonic()
            await cloud.flush()
            round_trips.append(time.monotonic() - start)
        found = await all_stored(cloud, 41)
        assert frames_of(found) == list(range(1, 42))
        assert {envelope.lane for envelope in found} == {pb.LANE_LIVE}
        assert [envelope.previous_sequence for envelope in found] == list(range(41))
        # Beside the shortest way there is to the hub and back, on a machine that may be busy.
        within = 0.01 + 15 * statistics.median(round_trips)
        assert statistics.median(took) < within, f"median {statistics.median(took):.4f} s, not {within:.4f} s"
        await eventually(lambda: delivery.idle)

        async def spool_is_empty() -> bool:
            assert delivery.spool.session is not None
            info = await delivery.spool.session.api("STREAM.INFO.SPOOL")
            return int(info["state"]["messages"]) == 0

        await eventually(spool_is_empty)


async def test_hub_killed_mid_stream(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    async with delivering(settings(hub, tmp_path / "edge", cameras=("gate", "door"))) as (delivery, epoch):
        cameras = [Camera("gate", epoch), Camera("door", epoch)]

        async def play() -> None:
            for step in range(150):
                for camera in cameras:
                    assert await delivery.publish(camera.frame(keyframe=step % 40 == 0))
                await asyncio.sleep(0.01)

        playing = asyncio.create_task(play())
        for _ in range(2):
            await eventually(
                lambda: delivery.forwarder is not None and delivery.forwarder.sent("gate")[0] > 5
            )
            await restart(hub)
        await playing
        await eventually(lambda: delivery.idle, within_s=30)
    found = await stored_envelopes(cloud)
    for camera in cameras:
        mine = [envelope for envelope in found if envelope.camera == camera.name]
        assert frames_of(mine) == list(range(1, 151))


async def test_broker_of_the_device_killed(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    async with delivering(settings(hub, tmp_path / "edge")) as (delivery, epoch):
        camera = Camera("gate", epoch)
        for step in range(120):
            assert await delivery.publish(camera.frame(keyframe=step % 40 == 0))
            if step in {30, 80}:
                assert delivery.spool.pid is not None
                os.kill(delivery.spool.pid, signal.SIGKILL)
        await eventually(lambda: delivery.idle, within_s=30)
    assert frames_of(await stored_envelopes(cloud)) == list(range(1, 121))


def all_late(delivery: Delivery) -> bool:
    """Whether everything in the spool waited long enough for the backlog lane."""
    newest = delivery.spool.index("gate").segments[-1].last_stored_s
    return time.monotonic() - newest > delivery.settings.spool.late_after_s


async def test_live_first_after_an_outage(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    chosen = settings(hub, tmp_path / "edge", late_after_s=_HUB_STARTS_WITHIN_S)
    async with delivering(chosen) as (delivery, epoch):
        camera = Camera("gate", epoch)
        for step in range(10):
            await delivery.publish(camera.frame(keyframe=step == 0))
        await eventually(lambda: delivery.idle)
        await hub.stop()
        breaks = delivery.keeper.breaks("gate")
        # The chain that straddles the cut, until the agent asks for a new one.
        for _ in range(5):
            await delivery.publish(camera.frame())
        await eventually(lambda: delivery.keeper.breaks("gate") > breaks)
        for step in range(60):
            await delivery.publish(camera.frame(keyframe=step % 20 == 0))
        await eventually(lambda: all_late(delivery))
        live_from = camera.sequence + 1
        await delivery.publish(camera.frame(keyframe=True))
        await hub.start()
        for _ in range(10):
            await delivery.publish(camera.frame())
            await asyncio.sleep(0.02)
        found = await all_stored(cloud, camera.sequence)
        await eventually(lambda: delivery.idle)
    live, backlog = frames_of(found, pb.LANE_LIVE), frames_of(found, pb.LANE_BACKLOG)
    assert live == [*range(1, 16), *range(live_from, camera.sequence + 1)]
    assert backlog == list(range(16, live_from))
    lanes = [envelope.lane for envelope in found if frames_of([envelope])[0] > 15]
    assert lanes[0] == pb.LANE_LIVE, "the live picture comes first"
    check_chains(found)


@pytest.mark.long
async def test_what_waited_in_an_outage_stays_inside_the_byte_budget(
    hub: LocalHub, cloud: Client, tmp_path: Path
) -> None:
    await hub.stop()
    # Half a megabyte in ten seconds; late messages take half of what is left of it at most.
    chosen = settings(hub, tmp_path / "edge").model_copy(update={"encode": EncodeSettings(budget_kbit_s=400)})
    async with delivering(chosen) as (delivery, epoch):
        camera = Camera("gate", epoch, size=4000)
        for step in range(80):
            await delivery.publish(camera.frame(keyframe=step % 20 == 0))
        await eventually(lambda: all_late(delivery))
        await hub.start()
        seen: list[tuple[float, int]] = []
        while not delivery.idle:
            seen.append((time.monotonic(), delivery.hub.wire.total))
            assert seen[-1][0] - seen[0][0] < 60
            await asyncio.sleep(0.1)
        assert frames_of(await all_stored(cloud, camera.sequence)) == list(range(1, 81))
    windows = [max(more for at, more in seen if at <= start + 10) - count for start, count in seen]
    assert 150_000 < max(windows) <= 1.1 * 500_000
    assert seen[-1][0] - seen[0][0] > 9, "320 KB do not go at once"


def check_chains(found: list[pb.FrameEnvelope]) -> None:
    """Every chain is in one lane, whole and in order; previous_sequence tells of no loss where none is."""
    lanes: dict[tuple[bytes, int], set[int]] = {}
    reached: dict[tuple[int, bytes], int] = {}
    state: dict[int, tuple[int, int]] = {}
    for envelope in found:
        key = (envelope.lane, envelope.epoch.random_id)
        assert envelope.previous_sequence <= reached.get(key, 0)
        for item in envelope.items:
            if item.HasField("access_unit"):
                unit = item.access_unit
                lanes.setdefault((envelope.epoch.random_id, unit.chain_id), set()).add(envelope.lane)
                if unit.chain_index:
                    assert state[envelope.lane] == (unit.chain_id, unit.chain_index - 1)
                state[envelope.lane] = (unit.chain_id, unit.chain_index)
        reached[key] = max(reached.get(key, 0), frames_of([envelope])[-1])
    assert all(len(found) == 1 for found in lanes.values())


@pytest.mark.parametrize("order", ["backlog-first", "live-only"])
async def test_other_orders_after_an_outage(hub: LocalHub, cloud: Client, tmp_path: Path, order: str) -> None:
    await hub.stop()
    chosen = settings(hub, tmp_path / "edge", order=order, late_after_s=_HUB_STARTS_WITHIN_S)
    async with delivering(chosen) as (delivery, epoch):
        camera = Camera("gate", epoch)
        for step in range(60):
            await delivery.publish(camera.frame(keyframe=step % 20 == 0))
        await eventually(lambda: all_late(delivery))
        live_from = camera.sequence + 1
        await delivery.publish(camera.frame(keyframe=True))
        await hub.start()
        for _ in range(10):
            await delivery.publish(camera.frame())
            await asyncio.sleep(0.02)
        found = await all_stored(cloud, camera.sequence)
        await eventually(lambda: delivery.idle)
        dropped = delivery.keeper.dropped("gate")
    late = frames_of(found, pb.LANE_BACKLOG)
    assert late[:60] == list(range(1, live_from))
    if order == "live-only":
        assert dropped == {"live_only": 60}
        items = [item for envelope in found if envelope.lane == pb.LANE_BACKLOG for item in envelope.items]
        assert {item.range.reason for item in items} == {"live_only"}
    else:
        assert dropped == {}
        assert frames_of(found) == list(range(1, camera.sequence + 1))


async def test_restart_with_a_backlog(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    """What an earlier run kept is delivered by the next, behind its live picture."""
    await hub.stop()
    chosen = settings(hub, tmp_path / "edge")
    async with delivering(chosen) as (delivery, first):
        camera = Camera("gate", first)
        for step in range(60):
            await delivery.publish(camera.frame(keyframe=step % 20 == 0))
        await delivery.publish(camera.idle(40))
    await hub.start()
    async with delivering(chosen) as (delivery, second):
        assert second.counter == first.counter + 1
        assert delivery.spool.messages == 61
        again = Camera("gate", second)
        await delivery.publish(again.frame(keyframe=True))
        await eventually(lambda: delivery.idle, within_s=20)
    found = await stored_envelopes(cloud)
    old = [envelope for envelope in found if Epoch.from_proto(envelope.epoch) == first]
    assert frames_of(old) == list(range(1, 101))
    assert {envelope.lane for envelope in old} == {pb.LANE_BACKLOG}
    new = [envelope for envelope in found if Epoch.from_proto(envelope.epoch) == second]
    assert [(envelope.lane, frames_of([envelope])) for envelope in new] == [(pb.LANE_LIVE, [1])]
    check_chains(old)


async def test_what_is_kept_is_handed_over_at_the_end(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    """A backlog spares the live picture; where none follows any more, it goes at once."""
    await hub.stop()
    async with delivering(settings(hub, tmp_path / "edge")) as (delivery, epoch):
        camera = Camera("gate", epoch)
        for step in range(80):
            await delivery.publish(camera.frame(keyframe=step % 20 == 0))
        await eventually(lambda: all_late(delivery))
        delivery.pressure("gate").heard_backlog(1.0)
        await hub.start()
        await eventually(lambda: delivery.forwarder is not None and delivery.forwarder.sent("gate")[0])
        assert delivery.spool.messages > 60
        await delivery.finish(within_s=2)
        assert delivery.idle
        found = await stored_envelopes(cloud)
    assert frames_of(found, pb.LANE_BACKLOG) == list(range(1, 81))
    check_chains(found)


async def test_message_under_way_when_the_link_is_cut(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    """Its chain is ended during the outage all the same, and it arrives once."""
    chosen = settings(hub, tmp_path / "edge", late_after_s=0.3)
    async with delivering(chosen) as (delivery, epoch):
        camera = Camera("gate", epoch)
        for step in range(5):
            await delivery.publish(camera.frame(keyframe=step == 0))
        await eventually(lambda: delivery.idle)
        assert hub.server.pid is not None
        os.kill(hub.server.pid, signal.SIGSTOP)
        breaks = delivery.keeper.breaks("gate")
        for _ in range(5):
            await delivery.publish(camera.frame())
        os.kill(hub.server.pid, signal.SIGKILL)
        await hub.wait()
        await eventually(lambda: delivery.keeper.breaks("gate") > breaks)
        for step in range(20):
            await delivery.publish(camera.frame(keyframe=step % 10 == 0))
        await hub.start()
        await delivery.publish(camera.frame(keyframe=True))
        found = await all_stored(cloud, camera.sequence)
        await eventually(lambda: delivery.idle)
    assert sorted(frames_of(found)) == list(range(1, camera.sequence + 1))
    check_chains(found)


async def test_flapping_link(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    async with delivering(settings(hub, tmp_path / "edge")) as (delivery, epoch):
        camera = Camera("gate", epoch)
        for step in range(120):
            await delivery.publish(camera.frame(keyframe=step % 40 == 0))
            session = delivery.hub.session
            if step % 7 == 0 and session is not None:
                await session.client.close()
        await eventually(lambda: delivery.idle, within_s=20)
    assert frames_of(await stored_envelopes(cloud)) == list(range(1, 121))


async def test_hub_without_its_streams_is_waited_for(hub: LocalHub, tmp_path: Path) -> None:
    client = await cloud_client(hub)
    await streams.ensure(client.jetstream(), StreamSettings())
    async with delivering(settings(hub, tmp_path / "edge")) as (delivery, epoch):
        camera = Camera("gate", epoch)
        await delivery.publish(camera.frame(keyframe=True))
        await eventually(lambda: delivery.idle)
        await client.jetstream().delete_stream("FRAMES")
        for _ in range(10):
            await delivery.publish(camera.frame())
        await eventually(lambda: delivery.forwarder is not None and delivery.forwarder.problem)
        await streams.ensure(client.jetstream(), StreamSettings())
        await eventually(lambda: delivery.idle, within_s=20)
        assert delivery.forwarder is not None
        assert delivery.forwarder.problem == ""
    assert frames_of(await stored_envelopes(client)) == list(range(2, 12))
    await client.close()


async def test_too_large_for_the_hub_is_set_aside_and_told(tmp_path: Path) -> None:
    config = f'max_payload: 65536\njetstream {{ store_dir: "{tmp_path / "js"}" }}\n'
    server = NatsServer(config, work_dir=tmp_path / "hub", name="hub")
    url = await server.start()
    client = await bus.connect(url, name="cloud", wait=False)
    for stream in streams.configs(StreamSettings()):
        await bus.ensure_stream(client.jetstream(), stream)
    await bus.ensure_bucket(client.jetstream(), KeyValueConfig(bucket=subjects.CLAIMS, direct=True))
    chosen = AgentSettings(
        tenant="acme",
        site=SITE,
        device="box1",
        state_dir=tmp_path / "edge",
        hub=HubSettings(url=url),
        cameras=(CameraSettings(name="gate", source="pattern:64x48@5"),),
    )
    try:
        async with delivering(chosen) as (delivery, epoch):
            camera = Camera("gate", epoch)
            for step in range(30):
                size = 100_000 if step == 10 else 9_000
                await delivery.publish(camera.frame(keyframe=step % 10 == 0, size=size))
            await eventually(lambda: delivery.idle, within_s=20)
            assert delivery.forwarder is not None
            assert delivery.forwarder.too_large == {"gate": 1}
        found = await stored_envelopes(client)
        assert frames_of(found) == list(range(1, 31))
        ranges = [item.range for it in found for item in it.items if item.HasField("range")]
        assert [(it.first_sequence, it.last_sequence, it.reason) for it in ranges] == [(11, 11, "too_large")]
    finally:
        await client.close()
        await server.stop()


async def test_full_hub_keeps_everything_in_order(hub: LocalHub, tmp_path: Path) -> None:
    client = await cloud_client(hub)
    js = client.jetstream()
    await streams.ensure(js, StreamSettings(frames_max_bytes=1 << 20))
    async with delivering(settings(hub, tmp_path / "edge")) as (delivery, epoch):
        camera = Camera("gate", epoch, size=10_000)
        for step in range(200):
            # Smaller ones would fit where a larger one does not, and must not slip past it.
            size = 40_000 if step % 20 == 0 else 2_000 if step % 3 else 10_000
            await delivery.publish(camera.frame(keyframe=step % 20 == 0, size=size))
        assert delivery.forwarder is not None
        await eventually(lambda: delivery.forwarder is not None and delivery.forwarder.problem)
        assert "maximum bytes" in delivery.forwarder.problem
        got: list[int] = []
        taken = 0

        async def drained() -> bool:
            nonlocal taken
            info = await js.stream_info("FRAMES")
            for sequence in range(taken + 1, info.state.last_seq + 1):
                message = await js.get_msg("FRAMES", sequence)
                got.extend(frames_of([pb.FrameEnvelope.FromString(message.data or b"")]))
                taken = sequence
            await js.purge_stream("FRAMES", seq=taken + 1)
            return delivery.idle and len(got) >= 200

        await eventually(drained, within_s=30)
        assert got == list(range(1, 201))
        assert delivery.forwarder.problem == ""
    await client.close()
