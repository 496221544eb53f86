"""Two versions side by side: real Triton, real hub, real worker parts; the system rolls a bad one back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from cloud_inference import streams, triton_repository
from cloud_inference.camera import Camera
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from cloud_inference.infer import Inference
from cloud_inference.ownership import Ownership
from cloud_inference.rollout import plan
from cloud_inference.rollout.plan import Rollout
from cloud_inference.rollout.router import Arm, Router
from cloud_inference.shares import Bus, Shared
from cloud_inference.track import Tracks
from cloud_inference.triton import TritonModel
from cloud_inference.triton_pool import TritonPool
from cloud_inference.triton_server import TritonServer
from eyeline import subjects
from eyeline.v1 import result_pb2
from eyeline_models import catalogue
from tests.support.eventually import eventually
from tests.support.served_cards import tiny_card
from tests.support.servers import cloud_client
from tests.support.simulated import Device, publish

POLICY = {"least_compared": 10, "least_agreement": 0.8, "most_slower": 1000.0}


@dataclass
class System:
    """A worker on a hub with a Triton, and the command line that an operator has."""

    hub: LocalHub
    bus: Bus
    router: Router
    config: Path
    environ: dict[str, str]

    async def command(self, *words: str, status: int = 0) -> str:
        """What `cloud-inference models ...` says."""
        argv = [sys.executable, "-m", "cloud_inference", "models", *words]
        argv += ["--config", str(self.config), "--tenant", "acme"]
        process = await asyncio.create_subprocess_exec(
            *argv, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        said, problem = await process.communicate()
        assert process.returncode == status, problem.decode()
        return (said or problem).decode()

    async def now(self) -> Rollout:
        bucket = await self.bus.js.key_value(subjects.MODELS)
        return Rollout.from_json((await bucket.get(plan.KEY)).value or b"")

    async def models_of(self, device: Device) -> list[str]:
        """Which model answered each frame."""
        info = await self.bus.js.stream_info(subjects.RESULTS)
        subject = subjects.result_subject(device.site, device.camera)
        found: list[str] = []
        for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
            message = await self.bus.js.get_msg(subjects.RESULTS, sequence)
            if message.subject == subject:
                batch = result_pb2.ResultBatch.FromString(message.data or b"")
                assert all(it.provenance == result_pb2.PROVENANCE_CLOUD for it in batch.results)
                found += [it.model.name for it in batch.results]
        return found

    async def play(self, device: Device, frames: int) -> list[str]:
        """So many more frames, answered; which model answered each."""
        before = device.sequence
        await publish(self.bus.js, device.frames(frames))

        async def answered() -> list[str] | None:
            models = await self.models_of(device)
            return models[before:] if len(models) == before + frames else None

        models: list[str] = await eventually(answered, within_s=30, what=f"{frames} more answers")
        return models


@pytest.fixture
async def system(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    folder = tmp_path / "catalogue"
    cards = [
        tiny_card(folder, "good"),
        tiny_card(folder, "better", scale=1.05, version="2"),
        tiny_card(folder, "blind", scale=0.0, version="3"),
    ]
    tiny_card(folder, "unserved", version="4")
    monkeypatch.setenv(catalogue.SEARCH_VARIABLE, str(folder))
    monkeypatch.setattr("cloud_inference.rollout.router._LOOK_EVERY_S", 0.1)
    config = tmp_path / "cloud.yaml"
    tenants = [{"name": "acme", "creds_file": str(hub.tenant("acme").cloud)}]
    config.write_text(
        yaml.safe_dump({"hub": {"url": hub.url, "tenants": tenants}, "triton": {"model": "good"}})
    )
    server = TritonServer(
        [triton_repository.of_card(card) for card in cards], work_dir=tmp_path / "triton", exit_timeout_s=2
    )
    await server.start()
    connection = await cloud_client(hub)
    try:
        bus = Bus("acme", connection, connection.jetstream(timeout=2))
        await streams.ensure(bus.js, StreamSettings())
        async with TritonModel(server.url, cards[0]) as model:
            await model.wait_ready()
            with ThreadPoolExecutor(2) as executor:
                parts = Shared("w1", Inference(model, most=32), cards[0], Tracks(), executor, 8, "smooth")
                router = Router(
                    bus, "w1", Arm.of(cards[0], parts.inference), lambda it: TritonPool(server.url, it)
                )
                parts.routers["acme"] = router
                ownership = Ownership(
                    bus, "w1", lease_s=1.0, work=lambda site, name: Camera(parts, bus, site, name).run()
                )
                tasks = [asyncio.create_task(router.run()), asyncio.create_task(ownership.run())]
                yield System(hub, bus, router, config, dict(os.environ))
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
    finally:
        await connection.close()
        await server.stop()


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"tenant": "acme", **labels}) or 0.0


async def test_a_bad_model_pushed_as_canary_is_rolled_back_by_the_system(
    system: System, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(POLICY))
    canary, other = Device(camera="gate"), Device(camera="door")
    assert set(await system.play(canary, 5) + await system.play(other, 5)) == {"good"}
    decided = metric("eyeline_cloud_rollout_decisions_total", decision="rollback")

    said = await system.command(
        "canary",
        "blind",
        "--share",
        "1",
        "--cameras",
        "yard/gate",
        "--policy",
        str(policy),
        "--compare-every",
        "1",
    )
    assert said == "blind answers for 100% of yard/gate, the settings' model for the rest\n"
    await eventually(lambda: system.router.candidate is not None)
    assert metric("eyeline_cloud_rollout_share_ratio") == 1
    # It answers for its camera, and for no other.
    assert set(await system.play(canary, 8)) == {"blind"}
    assert set(await system.play(other, 4)) == {"good"}
    models = await system.play(canary, 30)
    await eventually(lambda: not system.router.plan.running, what="the rollback")

    now = await system.now()
    assert (now.candidate, now.mode, now.stable) == (None, "off", None)
    assert now.history[-1].by == "policy"
    assert "agreement 0.000" in now.history[-1].why
    assert metric("eyeline_cloud_rollout_decisions_total", decision="rollback") == decided + 1
    assert metric("eyeline_cloud_rollout_agreement_ratio") == 0
    # No frame was lost to it, and the stable model answers again.
    assert set(models) <= {"blind", "good"}
    assert set(await system.play(canary, 5)) == {"good"}
    assert "rollback blind, by policy: agreement 0.000" in await system.command("rollout")


async def test_a_candidate_that_triton_does_not_serve_is_rolled_back_at_once(system: System) -> None:
    device = Device()
    await system.play(device, 3)
    await system.command("canary", "unserved", "--share", "1")

    async def over() -> bool:
        return not (await system.now()).running

    await eventually(over, what="the rollback")
    assert "does not serve model unserved" in (await system.now()).history[-1].why
    assert set(await system.play(device, 3)) == {"good"}


async def test_a_shadow_answers_nothing_and_a_promotion_is_one_command_both_ways(system: System) -> None:
    device = Device()
    await system.play(device, 3)
    assert "no candidate is running" in await system.command("promote", status=2)
    said = await system.command("shadow", "better", "--share", "0.5", "--no-policy")
    assert "better is asked too about 50% of */*" in said
    await eventually(lambda: system.router.candidate is not None)
    assert set(await system.play(device, 20)) == {"good"}
    await eventually(lambda: system.router.seen.compared >= 9)
    seen = system.router.seen
    assert (seen.agreement, seen.errors) == (1.0, 0)
    assert 0.005 < seen.score_shift < 0.05
    await eventually(lambda: metric("eyeline_cloud_rollout_compared_frames_count") >= 9)

    assert await system.command("promote") == "better answers for every camera\n"
    await eventually(lambda: system.router.stable.card.name == "better")
    assert set(await system.play(device, 4)) == {"better"}
    assert await system.command("rollback") == "the settings' model answers for every camera\n"
    await eventually(lambda: system.router.stable.card.name == "good")
    assert set(await system.play(device, 4)) == {"good"}


async def test_a_command_changes_nothing_that_the_hub_keeps(system: System) -> None:
    """The settings at hand may say less than those of the workers: nothing is shortened."""
    before = await system.bus.js.stream_info(subjects.RESULTS)
    await streams.ensure(system.bus.js, StreamSettings(results_max_bytes=32 << 30, results_max_age_s=9e6))
    await system.command("rollout")
    after = await system.bus.js.stream_info(subjects.RESULTS)
    assert before.config.max_bytes == StreamSettings().results_max_bytes
    assert (after.config.max_bytes, after.config.max_age) == (32 << 30, 9e6)
