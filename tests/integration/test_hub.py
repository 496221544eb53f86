"""The hub keeps tenants and devices apart (a real nats-server)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from cloud_inference.trust import Trust
from eyeline import bus, creds, subjects
from eyeline.errors import BusError, ServerFailed
from eyeline.nats_server import NatsServer
from tests.support.eventually import eventually
from tests.support.programs import some_free_ports
from tests.support.servers import SITE, cloud_client, device_client


async def ensured(hub: LocalHub, tenant: str) -> Client:
    cloud = await cloud_client(hub, tenant)
    await streams.ensure(cloud.jetstream(), StreamSettings())
    return cloud


async def test_tenants_see_only_their_own_streams(hub: LocalHub) -> None:
    acme, globex = await ensured(hub, "acme"), await ensured(hub, "globex")
    device = await device_client(hub, "acme")
    subject = subjects.frame_subject(SITE, "box1", "gate")
    answer = await device.jetstream().publish(subject, b"frame")
    assert (answer.stream, answer.seq, answer.domain) == (subjects.FRAMES, 1, subjects.HUB_DOMAIN)
    assert (await acme.jetstream().stream_info(subjects.FRAMES)).state.messages == 1
    assert (await globex.jetstream().stream_info(subjects.FRAMES)).state.messages == 0
    for client in (acme, globex, device):
        await client.close()


@pytest.mark.parametrize(
    "subject",
    [
        subjects.frame_subject(SITE, "box2", "gate"),
        subjects.frame_subject("other", "box1", "gate"),
        subjects.sample_subject(SITE, "box2", "gate"),
        subjects.status_subject(SITE, "box2"),
        subjects.result_subject(SITE, "gate"),
        subjects.control_subject(SITE, "box2"),
        "$KV.CLAIMS.other.gate",
        f"$KV.DESIRED.{SITE}.box1",
        f"$KV.PROFILES.{SITE}.box1.gate",
        "$JS.API.STREAM.DELETE.FRAMES",
        "$JS.API.STREAM.PURGE.FRAMES",
        "$JS.API.STREAM.MSG.GET.FRAMES",
        "$JS.API.CONSUMER.CREATE.FRAMES",
        "$JS.API.DIRECT.GET.KV_DESIRED.$KV.DESIRED.yard.box2",
        "$JS.API.DIRECT.GET.KV_PROFILES.$KV.PROFILES.yard.box2.gate",
        "$JS.API.STREAM.MSG.GET.SAMPLES",
        "$JS.API.CONSUMER.CREATE.SAMPLES",
        # What is told of these names sites, devices and cameras.
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.INFO.FRAMES",
        "$JS.API.STREAM.INFO.STATUS",
        "$JS.API.STREAM.INFO.KV_CLAIMS",
        "$JS.API.STREAM.INFO.KV_DESIRED",
    ],
)
async def test_a_device_cannot_publish_outside_its_own(hub: LocalHub, subject: str) -> None:
    cloud = await ensured(hub, "acme")
    device = await device_client(hub)
    with pytest.raises((TimeoutError, nats.errors.NoRespondersError)):
        await device.request(subject, b"", timeout=0.2)
    await eventually(lambda: "permissions violation for publish" in str(device.last_error).lower())
    await device.close()
    await cloud.close()


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "eyeline.v1.frame.>",
        "eyeline.v1.sample.>",
        subjects.control_subject(SITE, "box2"),
        f"{subjects.device_inbox(SITE, 'box2')}.>",
        "_INBOX.>",
        "$KV.DESIRED.>",
    ],
)
async def test_a_device_cannot_listen_outside_its_own(hub: LocalHub, subject: str) -> None:
    device = await device_client(hub)
    await device.subscribe(subject)
    await eventually(lambda: "permissions violation for subscription" in str(device.last_error).lower())
    await device.close()


async def test_a_device_does_its_work(hub: LocalHub) -> None:
    """Status, claims, desired configuration and control requests, with its own permissions."""
    cloud = await ensured(hub, "acme")
    device = await device_client(hub)
    js = device.jetstream()
    await js.publish(subjects.status_subject(SITE, "box1"), b"status")
    assert (await js.stream_info(subjects.ASKED)).config.name == subjects.ASKED

    async def value(bucket: str, key: str) -> Msg:
        return await device.request(f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{key}", b"")

    key = subjects.camera_key(SITE, "gate")
    claim = f"$KV.{subjects.CLAIMS}.{key}"
    last = "Nats-Expected-Last-Subject-Sequence"
    revision = (await js.publish(claim, b"mine", headers={last: "0"})).seq
    assert (await value(subjects.CLAIMS, key)).data == b"mine"
    assert (await js.publish(claim, b"still mine", headers={last: str(revision)})).seq > revision
    await js.publish(claim, b"", headers={"KV-Operation": "DEL"})
    assert ((await value(subjects.CLAIMS, key)).headers or {})["KV-Operation"] == "DEL"

    desired = await cloud.jetstream().key_value(subjects.DESIRED)
    await desired.put(subjects.desired_key(SITE, "box1"), b"config")
    assert (await value(subjects.DESIRED, subjects.desired_key(SITE, "box1"))).data == b"config"

    sample = subjects.sample_subject(SITE, "box1", "gate")
    assert (await js.publish(sample, b"part")).stream == subjects.SAMPLES
    profiles = await cloud.jetstream().key_value(subjects.PROFILES)
    own_key = subjects.profile_key(SITE, "box1", "gate")
    await profiles.put(own_key, b"profile")
    assert (await value(subjects.PROFILES, own_key)).data == b"profile"

    control = await device.subscribe(subjects.control_subject(SITE, "box1"))
    await device.flush()

    async def heard() -> bytes | None:
        # What is said in the first milliseconds of a subscription to another account may be missed (2.15.1).
        await cloud.publish(subjects.control_subject(SITE, "box1"), b"keyframe")
        with contextlib.suppress(TimeoutError):
            return (await control.next_msg(timeout=1)).data
        return None

    assert await eventually(heard) == b"keyframe"
    await device.close()
    await cloud.close()


async def test_foreign_credentials_are_refused_at_once(hub: LocalHub, tmp_path: Path) -> None:
    stranger = Trust(tmp_path / "stranger")
    stranger.add_tenant("acme")
    path = tmp_path / "stranger.creds"
    creds.write_private(path, stranger.cloud_creds("acme").text())
    with pytest.raises(BusError, match=r"stranger\.creds are not, or no longer, valid there") as caught:
        await bus.connect(hub.url, name="x", creds_file=path)
    assert not caught.value.retryable
    for user in (None, "acme.cloud"):
        with pytest.raises(BusError):
            await bus.connect(hub.url, name="x", user=user, password=user, wait=False)


async def test_a_killed_hub_comes_back_at_the_same_address_with_what_it_had(hub: LocalHub) -> None:
    cloud = await ensured(hub, "acme")
    await cloud.jetstream().publish(subjects.frame_subject(SITE, "box1", "gate"), b"frame")
    await cloud.close()
    url, pid = hub.url, hub.server.pid
    assert pid is not None
    await hub.stop(grace_s=0)
    assert hub.server.pid is None
    assert await hub.start() == url
    again = await cloud_client(hub)
    assert (await again.jetstream().stream_info(subjects.FRAMES)).state.messages == 1
    await again.close()


async def test_a_port_in_use_and_a_wrong_configuration_are_one_line(hub: LocalHub, tmp_path: Path) -> None:
    busy = NatsServer("", work_dir=tmp_path / "busy", name="busy", port=hub.server.port)
    with pytest.raises(ServerFailed, match="address already in use"):
        await busy.start()
    wrong = NatsServer("nonsense_key: 1", work_dir=tmp_path / "wrong", name="wrong")
    with pytest.raises(ServerFailed, match="nonsense_key"):
        await wrong.start()


async def test_a_hub_without_the_account_of_the_audit_log_is_one_line(tmp_path: Path) -> None:
    """One that was configured for an older version, say."""
    server = NatsServer(f'jetstream {{store_dir: "{tmp_path}"}}', work_dir=tmp_path, name="bare")
    client = await bus.connect(await server.start(), name="cloud", wait=False)
    try:
        with pytest.raises(BusError, match=r"AUDIT.*`cloud-inference tell`"):
            await streams.ensure(client.jetstream(), StreamSettings())
    finally:
        await client.close()
        await server.stop()


async def test_only_the_addresses_that_were_given_are_ever_tried(tmp_path: Path) -> None:
    """A server of a cluster tells where it and its neighbours are, inside its own network."""
    web, *cluster = some_free_ports(3)
    servers = [
        NatsServer(
            f'websocket: {{listen: "0.0.0.0:{web if own == cluster[0] else -1}", no_tls: true}}\n'
            f'cluster: {{name: "c", listen: "127.0.0.1:{own}", routes: ["nats://127.0.0.1:{other}"]}}',
            work_dir=tmp_path,
            name=f"hub-{own}",
            host="0.0.0.0",  # noqa: S104
        )
        for own, other in (cluster, cluster[::-1])
    ]
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await server.start()
            stack.push_async_callback(server.stop)
        neighbours = "Route connection created"
        await eventually(lambda: all(neighbours in it.log.read_text() for it in servers))
        for url in (f"nats://127.0.0.1:{servers[0].port}", f"ws://127.0.0.1:{web}"):
            client = await bus.connect(url, name="box1", wait=False)
            await client.flush()
            assert [known.geturl() for known in client.servers] == [url]
            await client.close()


async def test_servers_may_share_a_folder(tmp_path: Path) -> None:
    servers = [NatsServer("", work_dir=tmp_path, name=f"server{i}") for i in range(3)]
    urls = await asyncio.gather(*(server.start() for server in servers))
    assert len(set(urls)) == 3
    await asyncio.gather(*(server.stop() for server in servers))


async def test_credentials_are_private_and_kept(hub: LocalHub) -> None:
    files = [hub.tenant("acme").cloud, hub.tenant("acme").device(SITE, "box1").creds]
    before = [path.read_text() for path in files]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    await hub.stop()
    await hub.start()
    assert [path.read_text() for path in files] == before
