"""The agent as a process, from pictures to the hub."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
import yaml
from nats.aio.client import Client

from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from edge_agent.seen import NOT_KEPT, left_behind
from eyeline import creds
from eyeline.subjects import DESIRED, control_subject, status_subject
from eyeline.v1 import device_pb2
from eyeline.v1 import frame_pb2 as pb
from tests.support.deliveries import SITE, frames_of, stored_envelopes
from tests.support.eventually import eventually
from tests.support.servers import cloud_client

pytestmark = pytest.mark.timeout(90)


class Process:
    """`python -m edge_agent run`."""

    def __init__(self, hub: LocalHub, folder: Path, **settings: Any) -> None:
        device = hub.tenant("acme").device(SITE, "box1")
        folder.mkdir(exist_ok=True)
        self.config = folder / "agent.yaml"
        base = {
            "tenant": "acme",
            "site": SITE,
            "device": "box1",
            "state_dir": str(folder / "state"),
            "hub": {"url": hub.url, "creds_file": str(device.creds)},
            "http": {"port": 0},
            "detect": {"enabled": False},
            "gate": {"enabled": False},
            "cameras": [{"name": "gate", "source": "pattern:64x48@10"}],
        }
        self.config.write_text(yaml.safe_dump({**base, **settings}))
        self._log = folder / "agent.log"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *more: str) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_agent", "run", "--config", str(self.config), *more,
                stderr=log,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [event for event in found if event["event"] == name]

    async def get(self, path: str) -> bytes:
        """Ask its HTTP server."""
        url = f"http://127.0.0.1:{self.events('http_listening')[-1]['port']}/{path}"

        def ask() -> bytes:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())

        return await asyncio.to_thread(ask)

    async def spooled(self, messages: int) -> bool:
        """Whether at least so many messages wait in its spool."""
        for line in (await self.get("metrics")).decode().splitlines():
            if line.startswith("eyeline_edge_spool_messages_count "):
                return float(line.split()[1]) >= messages
        return False

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)


@pytest.fixture
async def cloud(hub: LocalHub) -> Any:
    client = await cloud_client(hub)
    await streams.ensure(client.jetstream(), StreamSettings())
    yield client
    await client.close()


async def status_of(cloud: Client) -> device_pb2.DeviceStatus:
    message = await cloud.jetstream().get_last_msg("STATUS", status_subject(SITE, "box1"))
    return device_pb2.DeviceStatus.FromString(message.data or b"")


async def has_frames(cloud: Client, count: int) -> bool:
    return len(frames_of(await stored_envelopes(cloud))) >= count


async def test_run_control_desired_status_and_clean_stop(
    hub: LocalHub, cloud: Client, tmp_path: Path
) -> None:
    agent = Process(hub, tmp_path / "edge")
    await agent.start()
    try:
        await eventually(lambda: has_frames(cloud, 10), within_s=20)
        before = await stored_envelopes(cloud)
        chains = {item.access_unit.chain_id for it in before for item in it.items}
        request = device_pb2.ControlRequest(camera="gate", keyframe=True)
        await cloud.publish(control_subject(SITE, "box1"), request.SerializeToString())
        behind = device_pb2.ControlRequest(camera="gate", lag_ns=3_000_000_000)
        await cloud.publish(control_subject(SITE, "box1"), behind.SerializeToString())

        async def eases_off() -> bool:
            return "the cloud is behind" in (await status_of(cloud)).cameras[0].message

        await eventually(eases_off, within_s=5)

        async def new_chain() -> bool:
            found = await stored_envelopes(cloud)
            return max(item.access_unit.chain_id for it in found for item in it.items) > max(chains)

        await eventually(new_chain)
        bucket = await cloud.jetstream().key_value(DESIRED)
        wanted = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera="gate", crf=40)])
        revision = await bucket.put(f"{SITE}.box1", wanted.SerializeToString())

        async def follows() -> bool:
            status = await status_of(cloud)
            return status.config_revision == revision and "crf40" in status.cameras[0].rung

        await eventually(follows)
        status = await status_of(cloud)
        assert status.hub_connected
        assert status.cameras[0].state == device_pb2.CAMERA_STATE_LIVE
        assert status.clock.uncertainty_ns > 0
        assert abs(status.clock.offset_ns) <= status.clock.uncertainty_ns + 1_000_000
        assert 30 << 20 < status.resident_bytes < 300 << 20
        assert await agent.get("healthz") == b"ok\n"
        assert await agent.get("readyz") == b"ok\n"
        assert b"eyeline_edge_spool_bytes" in await agent.get("metrics")
    finally:
        code = await agent.end()
    assert code == 0
    found = await stored_envelopes(cloud)
    sequences = frames_of(found)
    assert sequences == list(range(1, sequences[-1] + 1))
    assert (await status_of(cloud)).cameras[0].last_sequence == sequences[-1], "everything captured got out"
    assert not [p for p in psutil.process_iter() if str(tmp_path / "edge") in " ".join(_cmdline(p))]
    assert creds.read(hub.tenant("acme").device(SITE, "box1").creds).key.seed not in agent.log


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


async def test_agent_and_its_broker_killed(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    """The next run delivers what the killed one had kept, once, and reports what it had not."""
    agent = Process(hub, tmp_path / "edge")
    await agent.start()
    await eventually(lambda: has_frames(cloud, 5), within_s=20)
    await hub.stop()
    await eventually(lambda: agent.spooled(6), within_s=20)
    broker = int((tmp_path / "edge" / "state" / "spool" / "broker.pid").read_text())
    assert agent.process is not None
    os.kill(agent.process.pid, signal.SIGKILL)
    os.kill(broker, signal.SIGKILL)
    await agent.process.wait()
    state = tmp_path / "edge" / "state"
    progress = left_behind(state)["gate"]
    await hub.start()
    await agent.start()
    try:

        async def second_run_is_there() -> bool:
            found = await stored_envelopes(cloud)
            return {it.epoch.counter for it in found} == {1, 2}

        await eventually(second_run_is_there, within_s=20)
        (recovered,) = agent.events("spool_recovered")
        assert recovered["messages"] >= 6

        async def spool_is_empty() -> bool:
            return (await status_of(cloud)).spool.messages <= 1

        await eventually(spool_is_empty, within_s=20)
    finally:
        assert await agent.end() == 0
    first = [it for it in await stored_envelopes(cloud) if it.epoch.counter == 1]
    sequences = frames_of(first)
    assert sequences == list(range(1, sequences[-1] + 1))
    assert sequences[-1] >= 11
    assert sequences[-1] == progress.seen
    reported = [
        sequence
        for envelope in first
        for item in envelope.items
        if item.range.reason == NOT_KEPT
        for sequence in range(item.range.first_sequence, item.range.last_sequence + 1)
    ]
    assert reported == list(range(progress.kept + 1, progress.seen + 1))
    (camera,) = (await status_of(cloud)).cameras
    assert camera.frames_dropped.get(NOT_KEPT, 0) == len(reported)
    assert not left_behind(state)


async def test_exit_when_done(hub: LocalHub, cloud: Client, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as file:
        stream = file.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([(40 + number * 5) % 256]) * plane.buffer_size)
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    cameras = [{"name": "gate", "source": str(clip), "realtime": False}]
    agent = Process(hub, tmp_path / "edge", cameras=cameras)
    await agent.start("--exit-when-done")
    assert agent.process is not None
    assert await asyncio.wait_for(agent.process.wait(), 40) == 0, agent.log
    found = await stored_envelopes(cloud)
    assert frames_of(found) == list(range(1, 31))
    assert {it.lane for it in found} == {pb.LANE_LIVE}
    missing = Process(
        hub, tmp_path / "other", cameras=[{"name": "door", "source": str(tmp_path / "none.mp4")}]
    )
    await missing.start()
    try:

        async def told() -> bool:
            status = await status_of(cloud)
            return any("none.mp4" in camera.message for camera in status.cameras if camera.camera == "door")

        await eventually(told, within_s=20)
    finally:
        assert await missing.end() == 0
