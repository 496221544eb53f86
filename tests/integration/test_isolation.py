"""The isolation matrix: nobody reads, writes, lists, hears or learns of what is another's.

Tenants `acme` (site `yard`) and `globex` (site `plant`), over gRPC, NATS and metrics; then tokens that cover
only some cameras of a tenant; then credentials that are no longer good.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import nats.errors
import prometheus_client
import pytest
from nats.js.errors import NotFoundError
from prometheus_client import generate_latest

import cloud_inference.metrics  # noqa: F401  # registers the worker's
from cloud_inference import audit, hub_admin, nats_jwt, streams
from cloud_inference.api.server import Serving
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub, device_file
from edge_agent.link import Link
from eyeline import bus, creds, subjects
from eyeline.errors import BusError
from eyeline.nkey import Kind, NKey
from eyeline.v1 import (
    device_pb2,
    device_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    result_pb2,
    result_pb2_grpc,
)
from tests.support.access import Issuer, sign
from tests.support.api import bearer, channel, result, running_api, store
from tests.support.eventually import eventually
from tests.support.servers import SITE, cloud_client, device_client

THEIRS = ("globex", "plant", "press", "robot")


@dataclass
class World:
    """Both tenants with results, devices and wishes, and the API."""

    serving: Serving
    channel: grpc.aio.Channel
    issuer: Issuer

    def js(self, tenant: str) -> Any:
        return self.serving.tenants.hubs[tenant].js

    @property
    def results(self) -> Any:
        return result_pb2_grpc.ResultsStub(self.channel)

    @property
    def devices(self) -> Any:
        return device_pb2_grpc.DevicesStub(self.channel)

    def token(self, tenant: str = "acme", *cameras: str, **options: Any) -> Any:
        return bearer(self.issuer.token(tenant, cameras or ("*/*",), **options))


@pytest.fixture
async def world(hub: LocalHub, tmp_path: Path) -> AsyncIterator[World]:
    issuer = Issuer(tmp_path / "keys")
    async with (
        running_api(hub, token_keys=[str(issuer.public)]) as serving,
        channel(serving) as opened,
    ):
        made = World(serving, opened, issuer)
        ours = {"yard": {"box1": ("gate",), "box2": ("door", "roof")}, "depot": {"box9": ("ramp",)}}
        theirs = {"plant": {"robot": ("press",)}}
        for tenant, sites in (("acme", ours), ("globex", theirs)):
            js = made.js(tenant)
            for site, devices in sites.items():
                for device, cameras in devices.items():
                    status = device_pb2.DeviceStatus(schema_major=1, site=site, device=device)
                    status.cameras.extend(device_pb2.CameraStatus(camera=camera) for camera in cameras)
                    await js.publish(subjects.status_subject(site, device), status.SerializeToString())
                    wanted = device_pb2.DesiredConfig()
                    wanted.cameras.extend(device_pb2.DesiredCamera(camera=it, crf=30) for it in cameras)
                    bucket = await js.key_value(subjects.DESIRED)
                    await bucket.put(subjects.desired_key(site, device), wanted.SerializeToString())
                    for camera in cameras:
                        found = [result(number, camera=camera) for number in (1, 2)]
                        for one in found:
                            one.key.tenant, one.key.site, one.device = tenant, site, device
                        await store(js, found)
        yield made


def cameras_of(results: Any) -> set[str]:
    return {f"{one.key.site}/{one.key.camera}" for one in results}


async def heard(
    world: World, metadata: Any, count: int, *cameras: tuple[str, str]
) -> list[result_pb2.Result]:
    """What a subscription from the beginning gives first."""
    request = result_pb2.SubscribeRequest(from_time_ns=1, cameras=refs(*cameras))
    call = world.results.Subscribe(request, metadata=metadata)
    found: list[result_pb2.Result] = []
    async with asyncio.timeout(10):
        async for response in call:
            found.extend(response.results)
            if len(found) >= count:
                break
    call.cancel()
    return found


def refs(*cameras: tuple[str, str]) -> list[result_pb2.CameraRef]:
    return [result_pb2.CameraRef(site=site, camera=camera) for site, camera in cameras]


async def said(awaitable: Any) -> tuple[str, str]:
    """Status and message of a call, or its answer."""
    try:
        answer = await awaitable
    except grpc.aio.AioRpcError as problem:
        return problem.code().name, problem.details() or ""
    return "OK", str(answer)


async def first(world: World, metadata: Any, **request: Any) -> tuple[str, str]:
    call = world.results.Subscribe(result_pb2.SubscribeRequest(**request), metadata=metadata)
    outcome = await said(call.read())
    call.cancel()
    return outcome


# gRPC


async def test_a_tenant_hears_reads_and_lists_only_its_own(world: World) -> None:
    token = world.token("acme")
    everything = {"yard/gate", "yard/door", "yard/roof", "depot/ramp"}
    assert cameras_of(await heard(world, token, 8)) == everything
    latest = await world.results.GetLatest(result_pb2.GetLatestRequest(), metadata=token)
    assert cameras_of(latest.results) == everything
    listed = await world.devices.ListDevices(device_pb2.ListDevicesRequest(), metadata=token)
    assert [one.status.device for one in listed.devices] == ["box9", "box1", "box2"]
    assert not any(word in str(latest) + str(listed) for word in THEIRS)


async def test_another_s_names_are_answered_like_names_of_nobody(world: World) -> None:
    token = world.token("acme")

    async def answers(site: str, camera: str, device: str) -> list[tuple[str, str]]:
        (ref,) = refs((site, camera))
        desired = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera=camera, crf=1)])
        set_ = device_pb2.SetDesiredConfigRequest(
            site=site, device=device, desired=desired, expected_revision=1
        )
        found = [
            await first(world, token, cameras=[ref]),
            await said(world.results.GetLatest(result_pb2.GetLatestRequest(cameras=[ref]), metadata=token)),
            await said(world.results.ListResults(result_pb2.ListResultsRequest(camera=ref), metadata=token)),
            await said(
                world.devices.GetDevice(device_pb2.GetDeviceRequest(site=site, device=device), metadata=token)
            ),
            await said(world.devices.SetDesiredConfig(set_, metadata=token)),
        ]
        # A resume token names a moment.
        return [
            (code, "token" if "resume_token" in text else text.replace(site, "S").replace(device, "D"))
            for code, text in found
        ]

    assert await answers("plant", "press", "robot") == await answers("nowhere", "none", "nobody")
    bucket = await world.js("globex").key_value(subjects.DESIRED)
    kept = device_pb2.DesiredConfig.FromString((await bucket.get("plant.robot")).value)
    assert [(camera.camera, camera.crf) for camera in kept.cameras] == [("press", 30)]


async def test_writing_under_another_s_name_stays_at_home(world: World) -> None:
    desired = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera="press", crf=1)])
    request = device_pb2.SetDesiredConfigRequest(site="plant", device="robot", desired=desired)
    await world.devices.SetDesiredConfig(request, metadata=world.token("acme"))
    seen = await world.devices.GetDevice(
        device_pb2.GetDeviceRequest(site="plant", device="robot"), metadata=world.token("globex")
    )
    assert seen.device.desired.cameras[0].crf == 30


async def test_another_s_resume_and_page_tokens_are_like_forged_ones(world: World) -> None:
    theirs = (await heard(world, world.token("globex"), 2))[0].resume_token
    code, text = await first(world, world.token("acme"), resume_token=theirs)
    assert (code, "another results stream" in text) == ("INVALID_ARGUMENT", True)
    camera = result_pb2.CameraRef(site="plant", camera="press")
    page = await world.results.ListResults(
        result_pb2.ListResultsRequest(camera=camera, page_size=1), metadata=world.token("globex")
    )
    request = result_pb2.ListResultsRequest(camera=camera, page_size=1, page_token=page.next_page_token)
    code, text = await said(world.results.ListResults(request, metadata=world.token("acme")))
    assert (code, "press" in text) == ("INVALID_ARGUMENT", False)


async def test_metrics_name_no_camera_site_or_device(world: World) -> None:
    """They are for operators all the same: the worker's count by tenant."""
    await heard(world, world.token("acme"), 8)
    await said(world.results.GetLatest(result_pb2.GetLatestRequest(), metadata=bearer("wrong")))
    page = generate_latest().decode()
    names = ("plant", "press", "robot", "gate", "ramp", "depot", "box9")
    ours = [line for line in page.splitlines() if "eyeline_cloud_" in line and not line.startswith("#")]
    assert ours
    assert not [line for line in ours if any(f'"{name}"' in line for name in names)]
    assert not [line for line in ours if "eyeline_cloud_api" in line and "acme" in line]
    labels = {
        label
        for metric in prometheus_client.REGISTRY.collect()
        if metric.name.startswith("eyeline_cloud_")
        for sample in metric.samples
        for label in sample.labels
    }
    bounded = {"tenant", "provenance", "reason", "status", "le", "kind", "stage", "lane", "outcome"}
    assert labels <= bounded | {"decision", "feature"}


# Tokens that cover some cameras


async def test_a_scoped_token_sees_only_its_cameras(world: World) -> None:
    gate = world.token("acme", "yard/gate")
    assert cameras_of(await heard(world, gate, 2)) == {"yard/gate"}
    site = world.token("acme", "yard/*")
    assert cameras_of(await heard(world, site, 6)) == {"yard/gate", "yard/door", "yard/roof"}
    crossing = world.token("acme", "*/ramp", "yard/*")
    assert len(cameras_of(await heard(world, crossing, 8))) == 4
    crossing = world.token("acme", "*/gate", "yard/door", "depot/*")
    assert cameras_of(await heard(world, crossing, 6)) == {"yard/gate", "yard/door", "depot/ramp"}
    for token, seen in ((gate, {"yard/gate"}), (site, {"yard/gate", "yard/door", "yard/roof"})):
        latest = await world.results.GetLatest(result_pb2.GetLatestRequest(), metadata=token)
        assert cameras_of(latest.results) == seen


async def test_a_scoped_token_gets_the_same_refusal_for_what_is_and_what_is_not(world: World) -> None:
    token = world.token("acme", "yard/gate")
    for camera in ("door", "nowhere"):
        (ref,) = refs(("yard", camera))
        for outcome in (
            await first(world, token, cameras=[ref, *refs(("yard", "gate"))]),
            await said(world.results.GetLatest(result_pb2.GetLatestRequest(cameras=[ref]), metadata=token)),
            await said(world.results.ListResults(result_pb2.ListResultsRequest(camera=ref), metadata=token)),
        ):
            assert outcome == (
                "PERMISSION_DENIED",
                f"your credentials do not cover camera yard/{camera}",
            )
    ours = result_pb2.ListResultsRequest(camera=refs(("yard", "gate"))[0])
    assert len((await world.results.ListResults(ours, metadata=token)).results) == 2


async def test_a_scoped_token_sees_devices_as_far_as_its_cameras(world: World) -> None:
    door = world.token("acme", "yard/door")
    listed = await world.devices.ListDevices(device_pb2.ListDevicesRequest(page_size=1), metadata=door)
    assert not listed.next_page_token
    (device,) = listed.devices
    assert device.status.device == "box2"
    assert [camera.camera for camera in device.status.cameras] == ["door"]
    assert [camera.camera for camera in device.desired.cameras] == ["door"]
    for site, name in (("yard", "box1"), ("depot", "box9"), ("yard", "none")):
        request = device_pb2.GetDeviceRequest(site=site, device=name)
        assert await said(world.devices.GetDevice(request, metadata=door)) == (
            "NOT_FOUND",
            f"no device {site}/{name} has reported",
        )
    paged = []
    page = device_pb2.ListDevicesRequest(page_size=1)
    while True:
        answer = await world.devices.ListDevices(page, metadata=world.token("acme", "yard/*"))
        paged += [one.status.device for one in answer.devices]
        if not answer.next_page_token:
            break
        page.page_token = answer.next_page_token
    assert paged == ["box1", "box2"]


async def test_a_scoped_token_writes_only_its_cameras_and_leaves_the_others(world: World) -> None:
    def wish(device: str, camera: str, crf: int = 5) -> device_pb2.SetDesiredConfigRequest:
        desired = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera=camera, crf=crf)])
        return device_pb2.SetDesiredConfigRequest(site="yard", device=device, desired=desired)

    read_only = world.token("acme", methods=["read", "detect"])
    code, text = await said(world.devices.SetDesiredConfig(wish("box2", "door"), metadata=read_only))
    assert (code, "'write'" in text) == ("PERMISSION_DENIED", True)
    door = world.token("acme", "yard/door", methods=["write"])
    answer = await world.devices.SetDesiredConfig(wish("box2", "door"), metadata=door)
    assert [(camera.camera, camera.crf) for camera in answer.desired.cameras] == [("door", 5)]
    whole = await world.devices.GetDevice(
        device_pb2.GetDeviceRequest(site="yard", device="box2"), metadata=world.token("acme")
    )
    stored = {camera.camera: camera.crf for camera in whole.device.desired.cameras}
    assert stored == {"roof": 30, "door": 5}
    assert (await said(world.devices.SetDesiredConfig(wish("box2", "roof"), metadata=door)))[0] == (
        "PERMISSION_DENIED"
    )
    # Not a way to find out which devices there are.
    for other in ("box1", "none"):
        outcome = await said(world.devices.SetDesiredConfig(wish(other, "door"), metadata=door))
        assert outcome == ("NOT_FOUND", f"no device yard/{other} has reported")
    code, _ = await said(
        world.devices.GetDevice(device_pb2.GetDeviceRequest(site="yard", device="box2"), metadata=door)
    )
    assert code == "PERMISSION_DENIED"


async def test_methods(world: World) -> None:
    stub = inference_pb2_grpc.InferenceStub(world.channel)
    request = inference_pb2.DetectRequest(image=b"")
    assert (await said(stub.Detect(request, metadata=world.token(methods=["read"]))))[0] == (
        "PERMISSION_DENIED"
    )
    assert (await said(stub.Detect(request, metadata=world.token(methods=["detect"]))))[0] == (
        "INVALID_ARGUMENT"
    )
    detect = world.token(methods=["detect"])
    assert (await first(world, detect))[0] == "PERMISSION_DENIED"


# Credentials of the API that are no good


async def test_bad_tokens(world: World, tmp_path: Path) -> None:
    other = Issuer(tmp_path / "other")
    issuer = world.issuer
    for token, why in (
        (issuer.token(expires_s=-60), "expired"),
        (issuer.token(audience="elsewhere"), "it is not for 'eyeline'"),
        (sign(None, None), "signature"),
        (other.token(), "signature"),
        (sign(b"k" * 32, "HS256"), "signature"),
        (issuer.token("umbrella"), "tenant not served here"),
        (issuer.signed(tenant="globex", cameras=None), "it has no 'cameras'"),
    ):
        for outcome in (
            await first(world, bearer(token)),
            await said(world.results.GetLatest(result_pb2.GetLatestRequest(), metadata=bearer(token))),
            await said(world.devices.ListDevices(device_pb2.ListDevicesRequest(), metadata=bearer(token))),
        ):
            assert outcome[0] == "UNAUTHENTICATED", outcome
            assert why in outcome[1]


async def test_a_subscription_ends_with_its_token(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_inference.access._LEEWAY_S", 0)
    request = result_pb2.SubscribeRequest()
    call = world.results.Subscribe(request, metadata=world.token("acme", expires_s=2))
    assert not (await call.read()).results
    began = time.monotonic()
    async with asyncio.timeout(10):
        assert await said(call.read()) == ("UNAUTHENTICATED", "this token has expired")
    assert time.monotonic() - began < 6


# NATS


async def ready(hub: LocalHub) -> None:
    for tenant in ("acme", "globex"):
        client = await cloud_client(hub, tenant)
        await streams.ensure(client.jetstream(), StreamSettings())
        await client.close()


async def test_not_even_the_cloud_s_user_of_a_tenant_reaches_another(hub: LocalHub) -> None:
    await ready(hub)
    acme, globex = await cloud_client(hub, "acme"), await cloud_client(hub, "globex")
    everything = await acme.subscribe(">")
    await acme.flush()
    box = await device_client(hub, "globex")
    frame = subjects.frame_subject(SITE, "box1", "gate")
    await box.jetstream().publish(frame, b"theirs")
    await globex.publish("secret.topic", b"theirs")
    await (await globex.jetstream().key_value(subjects.DESIRED)).put("plant.robot", b"theirs")
    answering = await globex.subscribe("ask.me")
    await globex.flush()
    # Requests find nobody, streams and buckets are one's own, writes stay at home.
    with pytest.raises(TimeoutError):  # its own `everything` listens there
        await acme.request("ask.me", b"", timeout=0.3)
    await acme.jetstream().publish(subjects.result_subject("plant", "press"), b"forged")
    with pytest.raises(NotFoundError):
        await acme.jetstream().get_last_msg(subjects.FRAMES, frame)
    assert (await globex.jetstream().stream_info(subjects.RESULTS)).state.messages == 0
    assert (await acme.jetstream().stream_info(subjects.FRAMES)).state.messages == 0
    assert (await acme.jetstream().account_info()).streams == 13
    # The system's subjects are not a tenant's.
    for subject in ("$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.LIST"):
        with pytest.raises((nats.errors.NoRespondersError, TimeoutError)):
            await acme.request(subject, b"", timeout=0.3)
    await acme.flush()
    seen = []
    with contextlib.suppress(TimeoutError):
        while True:
            seen.append(await everything.next_msg(timeout=0.3))
    assert not [message for message in seen if message.data == b"theirs"]
    assert answering.pending_msgs == 0
    for client in (acme, globex, box):
        await client.close()


async def test_a_device_signs_nobody_else_in(hub: LocalHub, tmp_path: Path) -> None:
    """Keys in the wrong place: a device's as an account's, one tenant's for another's, for more rights."""
    folder = tmp_path / "hub" / "trust" / "tenants"
    acme, globex = (json.loads((folder / f"{name}.json").read_text()) for name in ("acme", "globex"))
    device_key = NKey.from_seed(acme["devices"]["yard/box1"]["signer"])
    devices = [
        record["devices"][f"yard/{box}"] for record, box in ((acme, "box1"), (acme, "box2"), (globex, "box1"))
    ]
    accounts = [NKey.from_seed(record["account"]).public for record in (*devices, acme, globex)]
    held = creds.read(hub.tenant("acme").device(SITE, "box1").creds).key
    new = NKey.generate(Kind.USER)

    async def refused(jwt: str, key: NKey = new) -> None:
        path = tmp_path / "forged.creds"
        creds.write_private(path, creds.Creds(jwt, key).text())
        with pytest.raises(BusError) as caught:
            await bus.connect(hub.url, name="forger", creds_file=path, wait=False)
        assert not caught.value.retryable

    # Another device's account, or a tenant's, by a key that is not its own.
    for account in accounts[1:]:
        await refused(nats_jwt.device(new.public, "x", signed_by=device_key, account_key=account))
    # By a device's own key, and by a key of nobody.
    for signer in (held, NKey.generate(Kind.ACCOUNT)):
        for account in accounts:
            await refused(nats_jwt.device(new.public, "x", signed_by=signer, account_key=account))
    # Somebody's JWT without their key.
    jwt = creds.read(hub.tenant("globex").device(SITE, "box1").creds).jwt
    await refused(jwt)
    # A device key gives a device's rights only.
    claims = {"type": "user", "issuer_account": accounts[0], "pub": {"allow": [">"]}, "sub": {}}
    await refused(nats_jwt._encode(device_key, new.public, "x", claims))


async def closed(client: Any) -> None:
    await eventually(lambda: not client.is_connected, within_s=5, what="the connection was cut")


async def test_a_revoked_device_is_cut_at_once_and_stays_out(hub: LocalHub, tmp_path: Path) -> None:
    await ready(hub)
    state = tmp_path / "hub"
    box1, box2 = await device_client(hub), await device_client(hub, device="box2")
    namesake = await device_client(hub, "globex")
    device = hub_admin.Device.parse("acme/yard/box1")
    assert await hub_admin.revoke(state, device) == (1, True)
    await closed(box1)
    await box1.close()
    with pytest.raises(BusError, match="no longer, valid"):
        await device_client(hub)
    # Nobody else, and work goes on.
    for other in (box2, namesake):
        assert other.is_connected
        await other.flush()
        await other.close()
    path = hub.tenant("acme").device(SITE, "box1").creds
    await hub.stop(0)
    await hub.start()
    with pytest.raises(KeyError):  # a restart does not let it in again, nor make it new credentials
        hub.tenant("acme").device(SITE, "box1")
    with pytest.raises(BusError, match="no longer, valid"):
        await bus.connect(hub.url, name="box1", creds_file=path, wait=False)
    # Only a person does.
    again, told = await hub_admin.enroll(state, device)
    assert told
    await (await bus.connect(hub.url, name="box1", creds_file=again, wait=False)).close()


async def test_rotation_without_downtime(hub: LocalHub, tmp_path: Path) -> None:
    state, device = tmp_path / "hub", hub_admin.Device.parse("acme/yard/box1")
    held = tmp_path / "device.creds"  # on the device
    creds.write_private(held, device_file(state, "acme", SITE, "box1").read_text())

    async def connect(changed: Any = None) -> Any:
        return await bus.connect(
            hub.url,
            name="box1",
            creds_file=held,
            inbox_prefix=subjects.device_inbox(SITE, "box1"),
            wait=False,
            on_change=changed,
        )

    link = Link("hub", connect)  # as the agent has it
    running = asyncio.create_task(link.run())
    try:
        before = await link.ready()
        new, _ = await hub_admin.enroll(state, device, out=tmp_path / "new.creds")
        assert not before.closed.is_set()
        creds.write_private(held, new.read_text())
        assert await hub_admin.revoke(state, device, keep_newest=True) == (1, True)
        # Cut off, and back with the new key without a restart.
        await eventually(before.closed.is_set, within_s=5)
        after = await asyncio.wait_for(link.ready(), 5)
        await after.client.flush()
        assert (after is not before, link.problem) == (True, "")
        assert await hub_admin.revoke(state, device, keep_newest=True) == (0, True)
        await after.client.flush()
        # The end of the device itself: its status says why.
        await hub_admin.revoke(state, device)
        await eventually(lambda: "no longer, valid" in link.problem, within_s=5)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_credentials_that_expire(hub: LocalHub, tmp_path: Path) -> None:
    path, _ = await hub_admin.enroll(
        tmp_path / "hub", hub_admin.Device.parse("acme/yard/box3"), expires_s=2, out=tmp_path / "short.creds"
    )
    client = await bus.connect(hub.url, name="box3", creds_file=path, wait=False)
    await closed(client)
    await client.close()


async def test_a_new_tenant_on_a_running_hub(hub: LocalHub, tmp_path: Path) -> None:
    path, _ = await hub_admin.enroll(
        tmp_path / "hub",
        hub_admin.Device.parse("umbrella/lab/box1"),
        new_tenant=True,
        out=tmp_path / "lab.creds",
    )
    await (await bus.connect(hub.url, name="box1", creds_file=path, wait=False)).close()


async def test_a_device_reads_what_is_released_for_it_and_writes_none_of_it(hub: LocalHub) -> None:
    await ready(hub)
    acme, globex = await cloud_client(hub), await cloud_client(hub, "globex")
    kinds = ("config", "model", "agent")
    for client, mark in ((acme, b"ours"), (globex, b"theirs")):
        bucket = await client.jetstream().key_value(subjects.RELEASES)
        for kind in kinds:
            for whom in ("all", f"site.{SITE}", f"device.{SITE}.box1", f"device.{SITE}.box2", "site.depot"):
                await bucket.put(f"{kind}.{whom}", mark + b" " + whom.encode())
        await (await client.jetstream().object_store(subjects.ARTEFACTS)).put("thing", mark * 100)
    box = await device_client(hub)
    entry = f"$JS.API.DIRECT.GET.KV_{subjects.RELEASES}.$KV.{subjects.RELEASES}"
    for kind in kinds:
        for whom in ("all", f"site.{SITE}", f"device.{SITE}.box1"):
            assert (
                await box.request(f"{entry}.{kind}.{whom}", b"", timeout=2)
            ).data == b"ours " + whom.encode()
    chunk = json.dumps({"seq": 1, "next_by_subj": f"$O.{subjects.ARTEFACTS}.C.>"}).encode()
    objects = f"OBJ_{subjects.ARTEFACTS}"
    assert (await box.request(f"$JS.API.DIRECT.GET.{objects}", chunk, timeout=2)).data == b"ours" * 100
    # Nobody else's, not the bucket as a whole, and nothing to write or to change.
    release, store = f"KV_{subjects.RELEASES}", objects
    for subject in (
        f"{entry}.config.device.{SITE}.box2",
        f"{entry}.agent.site.depot",
        f"{entry}.>",
        f"$JS.API.DIRECT.GET.{release}",
        f"$JS.API.STREAM.MSG.GET.{release}",
        f"$JS.API.STREAM.MSG.GET.{store}",
        f"$JS.API.STREAM.INFO.{release}",
        f"$JS.API.STREAM.PURGE.{release}",
        f"$JS.API.STREAM.DELETE.{store}",
        f"$JS.API.CONSUMER.CREATE.{store}",
        f"$JS.API.CONSUMER.CREATE.{release}",
        f"$KV.{subjects.RELEASES}.config.device.{SITE}.box1",
        f"$O.{subjects.ARTEFACTS}.C.forged",
        f"$O.{subjects.ARTEFACTS}.M.forged",
        f"$KV.{subjects.DESIRED}.{SITE}.box1",
        subjects.erased_subject(SITE, "gate"),
    ):
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await box.request(subject, chunk, timeout=0.2)
    assert (
        await (await acme.jetstream().object_store(subjects.ARTEFACTS)).get("thing")
    ).data == b"ours" * 100
    for client in (acme, globex, box):
        await client.close()


async def test_an_answer_that_a_device_sends_elsewhere_reaches_nobody(hub: LocalHub) -> None:
    """Whoever asks says where the answer goes, and a server's answer needs no permission to get there."""
    await ready(hub)
    acme, box1, box2 = (
        await cloud_client(hub),
        await device_client(hub),
        await device_client(hub, device="box2"),
    )
    js = acme.jetstream()
    before = {info.config.name for info in await js.streams_info()}
    heard = await box2.subscribe(subjects.control_subject(SITE, "box2"))
    await box2.flush()
    wishes = await js.key_value(subjects.DESIRED)
    kept = await wishes.put(subjects.desired_key(SITE, "box2"), b"masks")
    result_, frame = subjects.result_subject(SITE, "door"), subjects.frame_subject(SITE, "box2", "door")
    await js.publish(result_, b"an answer")
    # What it asks for gives what it wrote itself, nothing at all, or that something was stored.
    own = f"$KV.{subjects.CLAIMS}.{SITE}.gate"
    await box1.request(own, b"forged", timeout=2)
    said = f"$JS.API.DIRECT.GET.KV_{subjects.CLAIMS}.{own}"
    nothing = f"$JS.API.DIRECT.GET.KV_{subjects.RELEASES}.$KV.{subjects.RELEASES}.model.all"
    stored = subjects.frame_subject(SITE, "box1", "gate")
    targets = [
        *(
            f"$JS.{domain}API.STREAM.{call}.{stream}"
            for domain in ("", f"{subjects.HUB_DOMAIN}.")
            for call in ("DELETE", "PURGE", "MSG.DELETE")
            for stream in (subjects.RESULTS, subjects.AUDIT, subjects.FRAMES)
        ),
        *(result_, frame, subjects.status_subject(SITE, "box2"), subjects.AUDIT_SUBJECT),
        *(f"$KV.{subjects.DESIRED}.{SITE}.box2", f"$KV.{subjects.LEASES}.{SITE}.door"),
        *(f"$KV.{subjects.RELEASES}.config.all", subjects.control_subject(SITE, "box2")),
        *(f"{subjects.device_inbox(SITE, 'box2')}.x", subjects.erased_subject(SITE, "door")),
    ]
    everything = await acme.subscribe(">")
    await acme.flush()
    for target in targets:
        for asked in (said, nothing, stored):
            await box1.publish(asked, b"", reply=target)
    await box1.request(said, b"", timeout=2)  # they were all answered
    await acme.flush()
    assert {info.config.name for info in await js.streams_info()} == before
    assert (await js.get_last_msg(subjects.RESULTS, result_)).data == b"an answer"
    assert (await wishes.get(subjects.desired_key(SITE, "box2"))).revision == kept
    for stream, count in ((subjects.RESULTS, 1), (subjects.STATUS, 0)):
        assert (await js.stream_info(stream)).state.messages == count
    assert not [entry async for entry in audit.read(js)]
    found = set()
    with contextlib.suppress(TimeoutError):
        while True:
            found.add((await everything.next_msg(timeout=0.3)).subject)
    assert not found & set(targets)
    assert heard.pending_msgs == 0
    for client in (acme, box1, box2):
        await client.close()
