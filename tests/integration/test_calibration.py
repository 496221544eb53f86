"""Calibration as a whole: a real agent's sample, scored by a real worker with Triton, and what it gives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client

from cloud_inference import streams, worker
from cloud_inference.config import CloudSettings, StreamSettings
from cloud_inference.hub import LocalHub
from eyeline import subjects
from eyeline.ladder import from_proto
from eyeline.v1 import calibration_pb2, device_pb2
from tests.integration.test_agent import Process, status_of
from tests.support.eventually import eventually
from tests.support.servers import SITE, RunningTriton, cloud_client, running_hub

pytestmark = [pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="session")]

STREET = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"
KEY = subjects.profile_key(SITE, "box1", "gate")


@contextlib.asynccontextmanager
async def running_worker(hub: LocalHub, triton: RunningTriton, **more: Any) -> AsyncIterator[None]:
    settings = CloudSettings.model_validate(
        {
            "hub": {
                "url": hub.url,
                "tenants": [{"name": "acme", "creds_file": str(hub.tenant("acme").cloud)}],
            },
            "triton": {"url": triton.url, "model": triton.card.name},
            "http": {"worker_port": 0},
            "worker": more,
        }
    )
    task = asyncio.create_task(worker.run(settings))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest_asyncio.fixture(loop_scope="session")
async def hub(tmp_path: Path) -> AsyncIterator[LocalHub]:
    """As everybody's, in the loop that Triton's client lives in."""
    async with running_hub(tmp_path / "hub") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def cloud(hub: LocalHub) -> AsyncIterator[Client]:
    client = await cloud_client(hub)
    await streams.ensure(client.jetstream(), StreamSettings())
    yield client
    await client.close()


def street(**settings: Any) -> dict[str, Any]:
    """An agent's sections: the street in real time, and samples of five seconds."""
    camera = {"name": "gate", "source": str(STREET), "loop": True, **settings.pop("camera", {})}
    return {
        "cameras": [camera],
        "gate": {},
        "calibration": {"seconds": 5, "kbit_s": 2000, "crfs": [30, 42], **settings.pop("calibration", {})},
        **settings,
    }


async def camera_of(cloud: Client) -> device_pb2.CameraStatus:
    return (await status_of(cloud)).cameras[0]


async def profile_in(cloud: Client) -> calibration_pb2.Profile | None:
    bucket = await cloud.jetstream().key_value(subjects.PROFILES)
    with contextlib.suppress(Exception):
        return calibration_pb2.Profile.FromString((await bucket.get(KEY)).value or b"")
    return None


async def test_a_camera_calibrates_itself(
    hub: LocalHub, triton: RunningTriton, cloud: Client, tmp_path: Path
) -> None:
    agent = Process(
        hub, tmp_path / "edge", **street(camera={"calibrate": "auto", "target": {"accuracy": 0.9}})
    )
    async with running_worker(hub, triton):
        await agent.start()
        try:
            profile = await eventually(lambda: profile_in(cloud), within_s=120)
            assert not profile.problem
            assert profile.model.sha256 == triton.card.sha256
            assert len(profile.frontier) >= 2
            sizes = [point.bytes_per_s for point in profile.frontier]
            assert sizes == sorted(sizes)

            async def moved() -> bool:
                camera = await camera_of(cloud)
                return "F1" in camera.rung_reason and camera.calibration.startswith("profile by")

            await eventually(moved, within_s=10)
            camera = await camera_of(cloud)
            assert camera.rung in {from_proto(point.rung).name for point in profile.frontier}

            async def forgotten() -> bool:
                info = await cloud.jetstream().stream_info(subjects.SAMPLES)
                return bool(info.state.messages == 0)

            await eventually(forgotten, within_s=10)
            # As if another model had made it: the worker says so, and the camera stays where it is.
            profile.model.sha256, profile.made_ns = "0" * 64, profile.made_ns + 1
            bucket = await cloud.jetstream().key_value(subjects.PROFILES)
            await bucket.put(KEY, profile.SerializeToString())

            async def stale() -> bool:
                text = (await camera_of(cloud)).calibration
                return "no longer holds: the cloud's model is now centernet" in text and "earliest" in text

            await eventually(stale, within_s=30)
            assert (await camera_of(cloud)).rung == camera.rung
        finally:
            assert await agent.end() == 0, agent.log
        # Without a hub, it starts where it sat.
        command = [sys.executable, "-m", "edge_agent", "calibrate", "--show", "--json"]
        shown = await asyncio.create_subprocess_exec(
            *command, "--config", str(agent.config), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await shown.communicate()
        found = json.loads(out)["gate"]
        assert found["rung"] == camera.rung
        assert found["why"] == camera.rung_reason


@pytest.mark.long
async def test_a_sample_outlives_agent_and_hub(
    hub: LocalHub, triton: RunningTriton, cloud: Client, tmp_path: Path
) -> None:
    """Asked for by the command; while it is sent the agent is killed, then the hub stopped."""
    # Slow enough to be interrupted: some twenty seconds.
    agent = Process(hub, tmp_path / "edge", **street(calibration={"kbit_s": 24}))
    await agent.start()
    command = [sys.executable, "-m", "edge_agent", "calibrate", "gate", "--json", "--timeout", "150"]
    asked: asyncio.subprocess.Process | None = None

    async def calibration(text: str) -> bool:
        with contextlib.suppress(Exception):
            return text in (await camera_of(cloud)).calibration
        return False

    try:
        await eventually(lambda: calibration(""), within_s=30)
        asked = await asyncio.create_subprocess_exec(
            *command, "--config", str(agent.config), stdout=asyncio.subprocess.PIPE
        )
        await eventually(lambda: calibration("parts"), within_s=60)
        assert agent.process is not None
        agent.process.kill()
        await agent.process.wait()
        await agent.start()
        await eventually(lambda: agent.events("sample_taken") and calibration("parts"), within_s=60)
        await hub.stop()
        await hub.start()
        await eventually(lambda: agent.events("sample_sent"), within_s=90)
        assert len(agent.events("sample_taken")) == 1, "the sample on the disk went on"
        async with running_worker(hub, triton):
            out, _ = await asyncio.wait_for(asked.communicate(), 120)
        assert asked.returncode == 0
        found = json.loads(out)["gate"]
        assert found["sample"]["pictures"] == 20
        assert found["rung"]
    finally:
        if asked is not None and asked.returncode is None:
            asked.kill()
        await agent.end()


async def test_a_camera_cannot_be_calibrated_without_an_agent(hub: LocalHub, tmp_path: Path) -> None:
    agent = Process(hub, tmp_path / "edge", **street())
    for camera, says in (("gate", "no agent runs with state_dir"), ("door", "no camera is named 'door'")):
        command = [sys.executable, "-m", "edge_agent", "calibrate", camera, "--config", str(agent.config)]
        done = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, err = await done.communicate()
        assert done.returncode == 2
        assert says in err.decode()
        assert len(err.decode().splitlines()) == 1
