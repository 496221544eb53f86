"""The containers of the overlay `dev`, as processes, against each other: frames in, answers out, restarts."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import defaultdict
from pathlib import Path

import aiohttp
import pytest
import yaml

from cloud_inference import cluster, streams
from cloud_inference.config import StreamSettings
from cloud_inference.hub import cloud_file
from eyeline import bus
from eyeline.blocking import BlockingClient
from eyeline.errors import BusError
from eyeline.values import Provenance, Result
from tests.support import dev_cluster
from tests.support.cameras import wait_for
from tests.support.eventually import eventually
from tests.support.manifests import K8S, find, kustomize
from tests.support.pods import Cluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

RESTARTED = (
    "eyeline-worker",
    "eyeline-api",
    "eyeline-web",
    "eyeline-triton",
    "eyeline-edge-agent",
    "eyeline-nats",
)


class Answers:
    """Results by epoch, each frame once."""

    def __init__(self) -> None:
        self.results: defaultdict[object, list[Result]] = defaultdict(list)

    def add(self, result: Result) -> None:
        self.results[result.epoch].append(result)

    @property
    def all(self) -> list[Result]:
        return [result for results in self.results.values() for result in results]

    def gaps(self) -> list[str]:
        """Frames, from the first of each epoch on, that are missing or answered twice."""
        found = []
        for epoch, results in self.results.items():
            expected = 1
            # The live picture overtakes what waited in a restart.
            for result in sorted(results, key=lambda it: it.sequence):
                if result.sequence != expected:
                    found.append(f"{epoch}: {result.sequence} where {expected} should be")
                expected = result.last_sequence + 1
        return found

    def lost(self) -> list[tuple[int, str]]:
        """Frames without an answer, and why."""
        return [(it.sequence, it.reason) for it in self.all if it.provenance is Provenance.DEGRADED]


async def logged_in(address: str, token: str) -> str:
    """Log in at the page as a browser does that came through the gateway; its cookie."""
    origin = {"Host": "web.eyeline.example", "Origin": "https://web.eyeline.example"}
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.post(f"http://{address}:8080/login", json={"token": token}, headers=origin) as answer,
    ):
        assert answer.status == 204, await answer.text()
        cookie, _, attributes = answer.headers["Set-Cookie"].partition("; ")
        assert cookie.startswith("__Host-eyeline=")
        assert "Secure" in attributes
        return cookie


async def page_shows(address: str, cookie: str) -> None:
    """Who is logged in, and the camera, live."""
    seen = {"Host": "web.eyeline.example", "Origin": "https://web.eyeline.example", "Cookie": cookie}
    async with (
        asyncio.timeout(30),
        aiohttp.ClientSession(f"http://{address}:8080", cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        async with session.get("/api/me") as answer:
            assert answer.status == 401
        async with session.get("/api/me", headers=seen) as answer:
            assert (await answer.json())["tenant"] == "default"
        async with session.ws_connect("/live", headers=seen) as socket:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT and '"camera":"dev/pattern"' in message.data:
                    return
        raise AssertionError("the connection ended")


def test_the_manifests_run_and_restarts_lose_nothing(tmp_path: Path) -> None:
    with dev_cluster.running(tmp_path) as (started, token):
        for pod in started.pods:
            assert pod.probed == {"startupProbe", "readinessProbe", "livenessProbe"}
        page = started.addresses["eyeline-web"]
        cookie = asyncio.run(logged_in(page, token))
        with BlockingClient(f"{started.addresses['eyeline-api']}:50051", token) as client:
            answers = Answers()
            with client.subscribe(["dev/pattern"], since_ns=1, final_only=True) as results:

                def take(count: int) -> None:
                    for _ in range(count):
                        answers.add(next(results))

                take(30)
                assert any(it.provenance is Provenance.CLOUD for it in answers.all)
                asyncio.run(page_shows(page, cookie))
                for workload in RESTARTED:
                    started.restart(workload)
                    take(30)
                # What was on its way in the last restart: until an answer is newer than it.
                restarted_ns = time.time_ns()
                end = time.monotonic() + 60
                while max(it.captured_ns for it in answers.all) < restarted_ns or answers.gaps():
                    take(1)
                    assert time.monotonic() < end, answers.gaps()
            assert answers.lost() == []
            # Everything has been restarted; whoever was logged in still is.
            asyncio.run(page_shows(page, cookie))
            # One epoch for each start of the agent.
            assert len(answers.results) == 2


def test_an_agent_that_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    with dev_cluster.running(tmp_path) as (started, token):
        with BlockingClient(f"{started.addresses['eyeline-api']}:50051", token) as client:
            wait_for(lambda: bool(client.latest()), 30, "an answer")
        agent = started.pod_of("eyeline-edge-agent")
        agent.stop()
        events = [json.loads(line) for line in agent.said().splitlines()]
        (stopped,) = [event for event in events if event["event"] == "agent_stopped"]
        assert stopped["kept_messages"] == 0


async def test_three_servers_of_the_hub_survive_the_loss_of_one(tmp_path: Path) -> None:
    """The base's own cluster: a stream of three replicas takes writes while one server is gone."""
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"namespace": "eyeline", "resources": [os.path.relpath(K8S / "base", tmp_path)]})
    )
    resources = list(yaml.safe_load_all(kustomize(tmp_path)))
    nats = find(resources, "StatefulSet", "eyeline-nats")
    made = cluster.secrets(tmp_path / "state", ["default"], hub="nats://eyeline-nats:4222")
    secrets = {it["metadata"]["name"]: it["stringData"] for it in made}
    with Cluster(resources, tmp_path / "cluster", secrets) as running:
        servers = await asyncio.to_thread(running.start_each, nats)
        for server in servers:
            await asyncio.to_thread(server.wait_ready)
        client = await bus.connect(
            f"nats://{running.addresses['eyeline-nats']}:4222",
            name="test",
            creds_file=cloud_file(tmp_path / "state", "default"),
        )
        try:
            js = client.jetstream(timeout=5)

            async def made_streams() -> bool:
                try:
                    await streams.ensure(js, StreamSettings(replicas=3))
                except BusError:
                    return False
                return True

            await eventually(made_streams, within_s=30)
            leader = (await js.stream_info("RESULTS")).cluster
            assert leader is not None
            lost = next(it for it in servers if it.name == leader.leader)
            await asyncio.to_thread(lost.kill)

            async def written() -> bool:
                try:
                    await js.publish("eyeline.v1.result.yard.gate", b"x", timeout=2)
                except Exception:  # noqa: BLE001  # a new leader is being chosen
                    return False
                return True

            await eventually(written, within_s=30)
            back = await asyncio.to_thread(running.start, nats, lost.name)
            await asyncio.to_thread(back.wait_ready)

            async def whole() -> bool:
                found = (await js.stream_info("RESULTS")).cluster
                replicas = found.replicas if found is not None and found.replicas else []
                return len(replicas) == 2 and all(it.current for it in replicas)

            await eventually(whole, within_s=30)
        finally:
            await client.close()
