"""Two agents and one camera: only one publishes, and the other says whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from edge_agent.claim import Claims
from edge_agent.clock import HubClock
from edge_agent.delivery import Delivery
from edge_agent.epoch import next_epoch
from edge_agent.link import Link
from eyeline import bus
from eyeline.subjects import CLAIMS, device_inbox
from tests.support.deliveries import SITE, Camera, frames_of, settings, stored_envelopes
from tests.support.eventually import eventually
from tests.support.servers import cloud_client


@pytest.fixture
async def cloud(hub: LocalHub) -> AsyncIterator[Client]:
    client = await cloud_client(hub)
    await streams.ensure(client.jetstream(), StreamSettings())
    yield client
    await client.close()


@contextlib.asynccontextmanager
async def claiming(
    hub: LocalHub, device: str, random_id: bytes, *, stale_s: float = 60.0
) -> AsyncIterator[Claims]:
    link = Link(
        "hub",
        lambda changed: bus.connect(
            hub.url,
            name=device,
            creds_file=hub.tenant("acme").device(SITE, device).creds,
            inbox_prefix=device_inbox(SITE, device),
            on_change=changed,
        ),
    )
    claims = Claims(
        link,
        site=SITE,
        device=device,
        random_id=random_id,
        cameras=["gate"],
        hub_now_ns=HubClock().hub_now_ns,
        refresh_s=0.2,
        stale_s=stale_s,
    )
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(claims.run())]
    try:
        yield claims
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_second_device_is_told_and_takes_over_a_stale_claim(hub: LocalHub, cloud: Client) -> None:
    async with claiming(hub, "box2", b"22222222", stale_s=2) as second:
        async with claiming(hub, "box1", b"11111111", stale_s=2) as first:
            holder, other = await _one_holds(first, second)
            name = "box1" if holder is first else "box2"
            await eventually(lambda: other.problem("gate"))
            assert f"published by device {name}" in other.problem("gate")
            assert not other.may_publish("gate")
            if holder is second:
                return
        await eventually(lambda: second.may_publish("gate"), what="the stale claim is taken over")
        assert second.problem("gate") == ""


async def _one_holds(first: Claims, second: Claims) -> tuple[Claims, Claims]:
    await eventually(lambda: first.may_publish("gate") or second.may_publish("gate"))
    return (first, second) if first.may_publish("gate") else (second, first)


async def test_newest_of_two_clones_takes_over(hub: LocalHub, cloud: Client) -> None:
    async with claiming(hub, "box1", b"11111111") as older:
        await eventually(lambda: older.may_publish("gate"))
        async with claiming(hub, "box1", b"22222222") as newer:
            await eventually(lambda: newer.may_publish("gate"))
            await eventually(lambda: older.problem("gate"))
            assert older.problem("gate") == "another agent named box1 took this camera over"
            assert not older.may_publish("gate")
        js = cloud.jetstream()
        bucket = await js.key_value(CLAIMS)
        value = json.loads((await bucket.get(f"{SITE}.gate")).value or b"{}")
        assert value["random_id"] == b"22222222".hex()
        assert value["device"] == "box1"


async def test_frames_of_a_camera_claimed_elsewhere_stay_in_the_spool(
    hub: LocalHub, cloud: Client, tmp_path: Path
) -> None:
    async with claiming(hub, "box1", b"11111111") as first:
        await eventually(lambda: first.may_publish("gate"))
        chosen = settings(hub, tmp_path / "edge", device="box2")
        delivery = Delivery(chosen)
        await delivery.open_spool()
        epoch = next_epoch(chosen.state_dir)
        delivery.start(epoch)
        try:
            camera = Camera("gate", epoch, device="box2")
            for _ in range(5):
                assert await delivery.publish(camera.frame())
            assert delivery.claims is not None
            await eventually(lambda: delivery.claims is not None and delivery.claims.problem("gate"))
            assert "device box1" in delivery.claims.problem("gate")
            assert delivery.spool.messages == 5
            assert frames_of(await stored_envelopes(cloud)) == []
        finally:
            await delivery.stop()
