"""The audit log: written before what it tells of, complete, and nobody's to change."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import nats.errors
import pytest
import yaml

from cloud_inference import audit, streams
from cloud_inference.audit import AuditLog, Chain, Entry
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from eyeline import subjects
from eyeline.errors import BusError
from eyeline.v1 import device_pb2, device_pb2_grpc, result_pb2, result_pb2_grpc
from tests.support.access import Issuer
from tests.support.api import bearer, channel, result, running_api, store
from tests.support.commands import run
from tests.support.servers import cloud_client, device_client

GATE = result_pb2.CameraRef(site="yard", camera="gate")


async def entries(client: Any) -> list[Entry]:
    return [entry async for entry in audit.read(client.jetstream())]


async def test_views_exports_and_changes_are_told_before_they_happen(hub: LocalHub, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "keys")
    token = bearer(issuer.signed(sub="dashboard"))
    async with running_api(hub, token_keys=[str(issuer.public)]) as serving, channel(serving) as opened:
        hub_of = serving.tenants.hubs["acme"]
        await store(hub_of.js, [result(1)])
        results, devices = result_pb2_grpc.ResultsStub(opened), device_pb2_grpc.DevicesStub(opened)
        for _ in range(3):  # the same view is told once a minute
            await results.GetLatest(result_pb2.GetLatestRequest(), metadata=token)
        await results.GetLatest(result_pb2.GetLatestRequest(cameras=[GATE]), metadata=token)
        await results.ListResults(result_pb2.ListResultsRequest(camera=GATE), metadata=token)
        call = results.Subscribe(result_pb2.SubscribeRequest(cameras=[GATE]), metadata=bearer(issuer.token()))
        await call.read()
        call.cancel()
        camera = device_pb2.DesiredCamera(camera="gate", crf=20)
        camera.masks.add().points.extend(
            device_pb2.MaskPoint(x=x, y=y) for x, y in ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0))
        )
        for _ in range(2):
            request = device_pb2.SetDesiredConfigRequest(
                site="yard", device="box1", desired=device_pb2.DesiredConfig(cameras=[camera])
            )
            answer = await devices.SetDesiredConfig(request, metadata=token)
            assert len(answer.desired.cameras[0].masks) == 1
            camera.crf += 1
        client = hub_of.connection
        found = await entries(client)
        assert [(entry.what, entry.cameras) for entry in found] == [
            ("view", ("*/*",)),
            ("view", ("yard/gate",)),
            ("export", ("yard/gate",)),
            ("view", ("yard/gate",)),
            ("masks", ("yard/gate",)),
            ("desired", ("yard/gate",)),
            ("desired", ("yard/gate",)),
        ]
        assert found[0].who.startswith("dashboard (token ")
        assert found[3].who.startswith("token ")
        assert found[4].detail == {"device": "yard/box1", "before_after": {"gate": [0, 1]}}
        chain = Chain()
        for entry in found:
            chain.follow(entry)
        assert (chain.entries, chain.broken) == (7, [])
        # The other tenant's tells of nothing.
        assert not await entries(serving.tenants.hubs["globex"].connection)
        # No record, no view.
        other = bearer(issuer.signed(sub="somebody else"))
        hub_of.audit._js = _Broken()  # type: ignore[assignment]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await results.GetLatest(result_pb2.GetLatestRequest(), metadata=other)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "audit log" in (refused.value.details() or "")


class _Broken:
    """A hub that stores nothing."""

    async def stream_info(self, *_: Any) -> Any:
        raise TimeoutError

    async def publish(self, *_: Any, **__: Any) -> Any:
        raise TimeoutError


async def test_bad_masks_are_refused(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        stub = device_pb2_grpc.DevicesStub(opened)
        for points, why in (
            ([(0, 0), (1, 1)], "has 2 points"),
            ([(0, 0), (1, 1), (2, 0)], "outside 0 to 1"),
            ([(0, 0), (1, 1), (float("nan"), 0)], "outside 0 to 1"),
        ):
            camera = device_pb2.DesiredCamera(camera="gate")
            camera.masks.add().points.extend(device_pb2.MaskPoint(x=x, y=y) for x, y in points)
            request = device_pb2.SetDesiredConfigRequest(
                site="yard", device="box1", desired=device_pb2.DesiredConfig(cameras=[camera])
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SetDesiredConfig(request, metadata=bearer())
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert why in (refused.value.details() or "")


async def test_nobody_takes_anything_out(hub: LocalHub) -> None:
    client = await cloud_client(hub)
    js = client.jetstream(timeout=1)
    await streams.ensure(js, StreamSettings())
    log = AuditLog(js)
    for number in range(3):
        await log.record("somebody", "view", [f"yard/c{number}"])
    # Nothing but adding and reading leads there, not even a server's answer that is sent there.
    nothing = f"$JS.API.DIRECT.GET.KV_{subjects.RELEASES}.$KV.{subjects.RELEASES}.model.all"
    for domain in ("$JS.API", "$JS.hub.API", "$JS.audit.API", subjects.AUDIT_API):
        for call, body in (
            ("STREAM.DELETE", {}),
            ("STREAM.PURGE", {}),
            ("STREAM.MSG.DELETE", {"seq": 1}),
            ("STREAM.UPDATE", {"name": "AUDIT", "subjects": [subjects.AUDIT_SUBJECT], "max_msgs": 1}),
        ):
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                answer = await client.request(
                    f"{domain}.{call}.AUDIT", json.dumps(body).encode(), timeout=0.3
                )
                assert "stream not found" in answer.data.decode()  # there is none in the tenant's own
            await client.publish(nothing, b"", reply=f"{domain}.{call}.AUDIT")
    # Made again with other limits, it stays as it is.
    again = {"name": "AUDIT", "subjects": [subjects.AUDIT_SUBJECT], "max_msgs": 1}
    answer = await client.request(
        f"{subjects.AUDIT_API}.STREAM.CREATE.AUDIT", json.dumps(again).encode(), timeout=2
    )
    assert "already in use" in answer.data.decode()
    assert [entry.cameras for entry in await entries(client)] == [("yard/c0",), ("yard/c1",), ("yard/c2",)]
    # A device reads and writes none of it.
    box = await device_client(hub)
    for subject in (subjects.AUDIT_SUBJECT, "$JS.API.STREAM.INFO.AUDIT", "$JS.API.DIRECT.GET.AUDIT"):
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await box.request(subject, b"{}", timeout=0.3)
    assert len(await entries(client)) == 3
    await box.close()
    await client.close()


async def test_many_writers_make_one_chain_and_a_forged_entry_shows(hub: LocalHub) -> None:
    clients = [await cloud_client(hub) for _ in range(3)]
    await streams.ensure(clients[0].jetstream(), StreamSettings())
    logs = [AuditLog(client.jetstream()) for client in clients]
    await asyncio.gather(
        *(log.record(f"writer {n}", "view", [f"yard/c{n}"]) for n in range(10) for log in logs)
    )
    chain = Chain()
    found = await entries(clients[0])
    for entry in found:
        chain.follow(entry)
    assert (chain.entries, chain.broken) == (30, [])
    body = {"when_ns": 1, "who": "x", "what": "view", "cameras": [], "detail": {}, "previous": "0" * 64}
    await clients[0].jetstream().publish(subjects.AUDIT_SUBJECT, json.dumps(body).encode())
    assert hashlib.sha256(json.dumps(body).encode()).hexdigest()
    chain = Chain()
    for entry in await entries(clients[0]):
        chain.follow(entry)
    assert chain.broken == ["entry 31 does not follow entry 30"]
    # An entry that was left out shows as well.
    chain = Chain()
    for entry in (*found[:4], *found[5:]):
        chain.follow(entry)
    assert chain.broken == ["entries 5 to 5 are missing"]
    for client in clients:
        await client.close()


async def test_a_full_or_absent_hub_means_no_entry(hub: LocalHub) -> None:
    client = await cloud_client(hub)
    log = AuditLog(client.jetstream(timeout=0.5))  # streams were never made
    with pytest.raises(BusError, match="audit log cannot be written"):
        await log.viewed("somebody", "view", ["yard/gate"])
    await client.close()


async def test_the_command(hub: LocalHub, tmp_path: Path) -> None:
    client = await cloud_client(hub)
    await streams.ensure(client.jetstream(), StreamSettings())
    log = AuditLog(client.jetstream())
    await log.record("anna", "view", ["yard/gate"])
    await log.record("ben", "masks", ["yard/door"], device="yard/box2")
    await client.close()
    config = tmp_path / "cloud.yaml"
    tenants = [{"name": name, "creds_file": str(hub.tenant(name).cloud)} for name in ("acme", "globex")]
    config.write_text(yaml.safe_dump({"hub": {"url": hub.url, "tenants": tenants}}))
    shown = await run("cloud_inference", "audit", "--config", config, "--tenant", "acme")
    assert shown.status == 0, shown.err
    assert "view     anna: yard/gate" in shown.out
    assert "2 entries, the chain holds" in shown.out
    only = await run(
        "cloud_inference", "audit", "--config", config, "--tenant", "acme", "--camera", "yard/door", "--json"
    )
    assert [json.loads(line)["who"] for line in only.out.splitlines()] == ["ben"]
    unknown = await run("cloud_inference", "audit", "--config", config)
    assert (unknown.status, "--tenant must be one of: acme, globex" in unknown.err) == (2, True)
