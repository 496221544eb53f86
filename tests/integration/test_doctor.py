"""`eyeline status` and `doctor` against the real API and hub, broken in one way after the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_inference import pki
from cloud_inference.hub import LocalHub
from cloud_inference.ownership import Ownership
from eyeline import Client, doctor, overview
from eyeline.subjects import status_subject
from eyeline.v1 import device_pb2, frame_pb2, result_pb2
from tests.support.access import Issuer
from tests.support.api import result, running_api, store
from tests.support.eventually import eventually
from tests.support.eyeline_command import Done, run_eyeline
from tests.support.simulated import Device, publish
from tests.support.working import worker_bus, working


async def diagnosed(
    server: str, *arguments: str, **environment: str
) -> tuple[Done, dict[str, dict[str, str]]]:
    """How the doctor ended, and its findings by code."""
    done = await run_eyeline("doctor", "--json", *arguments, server=server, **environment)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert all(it["mend"] for it in found if it["level"] != "fine"), "every trouble says what to do"
    wrong = any(it["level"] == "wrong" for it in found)
    assert done.status == (5 if wrong else 0), done.err
    return done, {it["code"]: it for it in found}


def device_status(**changed: Any) -> device_pb2.DeviceStatus:
    """A device that is well, with these changes."""
    camera = {
        "camera": "gate", "state": device_pb2.CAMERA_STATE_LIVE, "message": "1280x720", "rung": "h264 416px",
        "frames_captured": 100, "frames_sent": 20, "capture_fps": 10.0, **changed.pop("camera", {}),
    }  # fmt: skip
    fields = {
        "schema_major": 1, "site": "yard", "device": "box", "agent_version": "0.1.0", "hub_connected": True,
        "reported_ns": time.time_ns(), "cameras": [device_pb2.CameraStatus(**camera)],
        "spool": device_pb2.SpoolStatus(limit_bytes=1000), **changed,
    }  # fmt: skip
    return device_pb2.DeviceStatus(**fields)


async def report_status(js: Any, **changed: Any) -> None:
    await js.publish(status_subject("yard", "box"), device_status(**changed).SerializeToString())


@contextlib.asynccontextmanager
async def a_worker(connection: Any) -> AsyncIterator[None]:
    """Announced, and with the real ownership."""

    async def idle(site: str, camera: str) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(Ownership(worker_bus(connection), "w1", lease_s=2.0, work=idle).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_all_is_well_and_then_each_part_breaks(hub: LocalHub) -> None:
    async with running_api(hub) as serving:
        tenant = serving.tenants.hubs["acme"]
        env = {"EYELINE_TOKEN": "for-acme"}
        _, found = await diagnosed(serving.address, **env)
        assert {"reached", "no_tls", "no_worker", "no_devices"} <= set(found)
        device = Device()
        async with a_worker(tenant.connection), working(tenant.connection):
            now_ns = time.time_ns()
            await store(tenant.js, [result(1, captured_ns=now_ns)])
            await report_status(tenant.js)
            async with Client(serving.address, "for-acme") as client:
                await eventually(lambda: alive(client), within_s=10)
            _, found = await diagnosed(serving.address, **env)
            assert {it["level"] for it in found.values()} == {"fine"}, found
            done = await run_eyeline("status", server=serving.address, **env)
            assert done.status == 0, done.err
            assert "workers 1" in done.out
            assert "yard/gate  box     live" in done.out
            assert "doctor" not in done.out
            # Each part broken.
            await report_status(
                tenant.js,
                agent_version="9.9.9",
                clock=frame_pb2.ClockEstimate(offset_ns=60_000_000_000, uncertainty_ns=1000),
                spool=device_pb2.SpoolStatus(
                    messages=9, bytes=950, limit_bytes=1000, oldest_age_ns=120_000_000_000
                ),
                camera={
                    "state": device_pb2.CAMERA_STATE_FAILED,
                    "message": "rtsp://192.0.2.1: wrong password",
                    "frames_dropped": {"spool_full": 7},
                },
            )
            lost = result(2, last=5, captured_ns=now_ns)
            lost.provenance, lost.reason = result_pb2.PROVENANCE_DEGRADED, "spool_full"
            await store(tenant.js, [lost])
            _, found = await diagnosed(serving.address, **env)
            assert found["agent_version"]["level"] == "warning"
            assert found["device_clock"]["what"] == "the clock of yard/box is off by 60.0 s"
            assert found["spool_fills"]["level"] == "wrong"
            assert "wrong password" in found["camera_failed"]["what"]
            assert found["spool_full"]["what"].startswith(
                "4 of the last 5 frames of yard/gate have no answer"
            )
            done = await run_eyeline("status", server=serving.address, **env)
            assert "dropped since start: 7 spool_full" in done.out
            assert "eyeline doctor says more" in done.out
            await report_status(
                tenant.js, camera={"message": "no pixels leave, they cannot be redacted: no model"}
            )
            _, found = await diagnosed(serving.address, "--stale", "1ms", **env)
            assert found["redaction_failed"]["level"] == "wrong"
            assert {"device_silent", "camera_stale"} <= set(found)
            await publish(tenant.js, device.frames(1))
        assert (await run_eyeline("status", "--json", server=serving.address, **env)).status == 0


async def alive(client: Client) -> bool:
    return (await overview.gather(client, window_s=60, timeout_s=5)).workers_alive() == 1


async def test_who_may_not_and_who_no_longer_may(hub: LocalHub, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "keys")
    async with running_api(hub, token_keys=[str(issuer.public)]) as serving:
        _, found = await diagnosed(serving.address)
        assert found["token_missing"]["level"] == "wrong"
        _, found = await diagnosed(serving.address, EYELINE_TOKEN=issuer.token(expires_s=-60))
        assert found["token_expired"]["what"].startswith("the token expired on 20")
        _, found = await diagnosed(serving.address, EYELINE_TOKEN=issuer.token(audience="other"))
        assert found["token_refused"]["level"] == "wrong"
        _, found = await diagnosed(serving.address, EYELINE_TOKEN=issuer.token(methods=["detect"]))
        assert found["token_scope"]["level"] == "wrong"
        _, found = await diagnosed(serving.address, EYELINE_TOKEN=issuer.token(expires_s=3000))
        assert found["token_expires"]["level"] == "warning"


async def test_encryption_that_does_not_fit(hub: LocalHub, tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "tls", ["127.0.0.1"])
    other = pki.ensure(tmp_path / "other", ["127.0.0.1"])
    secure = {"tls_cert": str(made.certificate), "tls_key": str(made.key)}
    env = {"EYELINE_TOKEN": "for-acme"}
    async with running_api(hub, **secure) as serving:
        _, found = await diagnosed(serving.address, **env)
        assert found["tls_needed"]["level"] == "wrong"
        _, found = await diagnosed(serving.address, "--ca", str(other.ca), **env)
        assert found["certificate_untrusted"]["level"] == "wrong"
        _, found = await diagnosed(serving.address, "--ca", str(made.ca), **env)
        assert found["tls"]["level"] == "fine"
        _, found = await diagnosed(
            serving.address.replace("127.0.0.1", "localhost"), "--ca", str(made.ca), **env
        )
        assert "localhost" in found["certificate_untrusted"]["what"]
    async with running_api(hub) as serving:
        _, found = await diagnosed(serving.address, "--ca", str(made.ca), **env)
        assert found["tls_refused"]["level"] == "wrong"


async def test_a_server_that_is_not_there_and_a_hub_that_went(hub: LocalHub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _, found = await diagnosed(f"127.0.0.1:{port}")
    assert set(found) == {"not_listening"}
    _, found = await diagnosed("no-such-host.invalid:1")
    assert set(found) == {"name_unknown"}
    async with running_api(hub) as serving:
        await hub.stop()
        done, found = await diagnosed(serving.address, "--timeout", "3", EYELINE_TOKEN="for-acme")
        assert "hub_away" in found, done


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (
            lambda it: it.system.inference.CopyFrom(type(it.system.inference)(problem="no answer")),
            "model_away",
        ),
        (lambda it: setattr(it.system, "version", "9.9"), "version_skew"),
        (lambda it: setattr(it.system, "now_ns", it.system.now_ns + 10**10), "clock_skew"),
        (lambda it: setattr(it.system.hub.dead, "messages", 3), "set_aside"),
        (lambda it: setattr(it.system.hub.frames, "bytes", it.system.hub.frames.limit_bytes), "hub_full"),
        (lambda it: setattr(it.devices[0].desired, "revision", 7), "config_pending"),
        (lambda it: it.devices[0].status.ClearField("cameras"), "no_cameras"),
        (
            lambda it: setattr(
                it.devices[0].status.cameras[0], "state", device_pb2.CAMERA_STATE_RECONNECTING
            ),
            "camera_away",
        ),
    ],
)
async def test_what_takes_long_to_break(hub: LocalHub, change: Any, code: str) -> None:
    """What the real API told, changed as it would be: a full hub, a model that went, a clock ahead."""
    async with running_api(hub) as serving, Client(serving.address, "for-acme") as client:
        tenant = serving.tenants.hubs["acme"]
        await report_status(tenant.js)
        await store(tenant.js, [result(1)])
        seen = await overview.gather(client, window_s=60, timeout_s=5)
        assert code not in {it.code for it in doctor.findings(seen, stale_s=30)}
        change(seen)
        (found,) = [it for it in doctor.findings(seen, stale_s=30) if it.code == code]
        assert found.mend
        older = replace(seen, system=None)
        assert "server_old" in {it.code for it in doctor.findings(older, stale_s=30)}


@pytest.mark.parametrize("columns", ["80", "120"])
async def test_status_fits_the_terminal(hub: LocalHub, columns: str) -> None:
    async with running_api(hub) as serving:
        tenant = serving.tenants.hubs["acme"]
        await report_status(tenant.js)
        await store(tenant.js, [result(1)])
        done = await run_eyeline("status", server=serving.address, EYELINE_TOKEN="for-acme", COLUMNS=columns)
        table = [line for line in done.out.splitlines() if not line.startswith(serving.address)]
        assert max(map(len, table)) <= int(columns)
        assert "yard/gate" in done.out
        assert "\x1b" not in done.out


@pytest.mark.long
async def test_a_real_agent_whose_camera_is_missing_and_that_is_killed(hub: LocalHub, tmp_path: Path) -> None:
    device = hub.tenant("acme").device("yard", "box1")
    (tmp_path / "agent.yaml").write_text(
        yaml.safe_dump(
            {
                "tenant": "acme",
                "site": "yard",
                "device": "box1",
                "state_dir": str(tmp_path / "state"),
                "hub": {"url": hub.url, "creds_file": str(device.creds)},
                "http": {"port": 0},
                "detect": {"enabled": False},
                "cameras": [
                    {"name": "gate", "source": "pattern:64x48@10"},
                    {"name": "gone", "source": "/nowhere/clip.mp4"},
                ],
            }
        )
    )
    async with running_api(hub) as serving, Client(serving.address, "for-acme") as client:
        tenant = serving.tenants.hubs["acme"]
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_agent", "run", "--config", str(tmp_path / "agent.yaml"),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with a_worker(tenant.connection), working(tenant.connection):

                async def answers() -> bool:
                    return bool(await client.latest("yard/gate")) and await alive(client)

                await eventually(answers, within_s=40)
                env = {"EYELINE_TOKEN": "for-acme"}
                _, found = await diagnosed(serving.address, **env)
                assert "/nowhere/clip.mp4" in found["camera_failed"]["what"]
                assert "device_silent" not in found
                done = await run_eyeline("status", server=serving.address, **env)
                gate, gone = (line for line in done.out.splitlines() if line.startswith("yard/"))
                assert "live" in gate
                # Between two attempts it is not "failed" but on its way.
                assert "live" not in gone
                assert "/nowhere/clip.mp4" in done.out
                agent.kill()
                await agent.wait()

                async def silent() -> bool:
                    _, found = await diagnosed(serving.address, "--stale", "3s", **env)
                    return {"device_silent", "camera_stale"} <= set(found)

                await eventually(silent, within_s=40)
        finally:
            if agent.returncode is None:
                agent.kill()
                await agent.wait()
