"""The client SDK and the `eyeline` command against the real API on a real hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_inference.api.server import Serving
from cloud_inference.hub import LocalHub
from eyeline import Backoff, BlockingClient, Client, Subscription, errors, subjects
from eyeline.v1 import device_pb2
from tests.support.api import result, running_api, store
from tests.support.eventually import eventually

QUICK = Backoff(first_s=0.02, most_s=0.2)
README = Path(__file__).parents[2] / "README.md"


def js_of(serving: Serving) -> Any:
    """JetStream of the tenant `acme`."""
    return serving.tenants.hubs["acme"].js


def client_of(serving: Serving, **options: Any) -> Client:
    """A client of the tenant `acme`."""
    return Client(serving.address, "for-acme", backoff=QUICK, **options)


async def take(subscription: Subscription, count: int) -> list[int]:
    """Sequences of the next results."""
    async with asyncio.timeout(30):
        return [(await anext(subscription)).sequence for _ in range(count)]


async def test_subscription_survives_restarts_of_the_api(hub: LocalHub) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running_api(hub) as serving:
            port = int(serving.address.rpartition(":")[2])
            client = await stack.enter_async_context(client_of(serving))
            subscription = client.subscribe("yard/gate")
            await subscription.ready()
            await store(js_of(serving), [result(1), result(2), result(3)])
            # One of a batch is taken when the server goes away.
            assert await take(subscription, 1) == [1]
        waiting = asyncio.create_task(take(subscription, 4))
        async with running_api(hub, port=port) as serving:
            await store(js_of(serving), [result(4)])
            await store(js_of(serving), [result(5)])
            assert await waiting == [2, 3, 4, 5]
        async with running_api(hub, port=port) as serving:
            await store(js_of(serving), [result(6)])
            assert await take(subscription, 1) == [6]
        assert subscription.reconnects >= 2
        assert subscription.gaps == []


async def test_restart_before_the_first_result_loses_nothing(hub: LocalHub) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running_api(hub) as serving:
            port = int(serving.address.rpartition(":")[2])
            await store(js_of(serving), [result(1)])
            client = await stack.enter_async_context(client_of(serving))
            subscription = client.subscribe()
            await subscription.ready()
            waiting = asyncio.create_task(take(subscription, 2))
        async with running_api(hub, port=port) as serving:
            await store(js_of(serving), [result(2), result(3)])
            assert await waiting == [2, 3]


async def test_restart_of_the_hub(hub: LocalHub) -> None:
    async with running_api(hub) as serving, client_of(serving) as client:
        subscription = client.subscribe()
        await subscription.ready()
        await store(js_of(serving), [result(1)])
        assert await take(subscription, 1) == [1]
        await hub.stop(0)
        with pytest.raises(errors.Unavailable) as caught:
            await client.latest(timeout_s=30)
        assert caught.value.retryable
        await hub.start()

        async def stored() -> bool:
            try:
                await store(js_of(serving), [result(2)])
            except Exception:  # noqa: BLE001  # the hub is coming up
                return False
            return True

        await eventually(stored)
        assert await take(subscription, 1) == [2]


async def test_tokens_times_and_gaps(hub: LocalHub) -> None:
    async with running_api(hub) as serving, client_of(serving) as client:
        for sequence in range(1, 7):
            await store(js_of(serving), [result(sequence)])
        async with client.subscribe(since_ns=1) as subscription:
            assert await take(subscription, 2) == [1, 2]
            token = subscription.resume_token
        async with client.subscribe(resume=token) as subscription:
            assert await take(subscription, 4) == [3, 4, 5, 6]
        await js_of(serving).purge_stream(subjects.RESULTS, seq=5)
        with pytest.raises(errors.ResumeGapError) as caught:
            await anext(client.subscribe(resume=token))
        assert caught.value.missing_messages == 2
        assert 0 < caught.value.token_ns < caught.value.oldest_ns <= time.time_ns()
        async with client.subscribe(resume=token, on_gap="continue") as subscription:
            assert await take(subscription, 2) == [5, 6]
            assert len(subscription.gaps) == 1


async def test_latest_history_and_detect(hub: LocalHub) -> None:
    start_ns = time.time_ns()
    async with running_api(hub) as serving, client_of(serving) as client:
        assert await client.latest() == []
        for i in range(1, 8):
            await store(js_of(serving), [result(i, captured_ns=start_ns + i * 1_000_000)])
        await store(js_of(serving), [result(1, camera="door", objects=0)])
        assert {(r.camera, r.sequence) for r in await client.latest()} == {("gate", 7), ("door", 1)}
        found = [r.sequence async for r in client.history("yard", "gate", page_size=2)]
        assert found == list(range(1, 8))
        part = client.history("yard", "gate", start_ns + 3_000_000, start_ns + 6_000_000)
        assert [r.sequence async for r in part] == [3, 4, 5]
        answer = await client.detect(np.zeros((60, 80, 3), np.uint8))
        assert answer.image_size == (80, 60)
        assert answer.detections.boxes.shape[1] == 4
        with pytest.raises(errors.NotFound, match="is not served here"):
            await client.detect(np.zeros((60, 80, 3), np.uint8), "other")
        with pytest.raises(errors.InvalidRequest, match="damaged"):
            await client.detect(b"no image")


async def test_devices_and_what_is_wanted_of_them(hub: LocalHub) -> None:
    async with running_api(hub) as serving, client_of(serving) as client:
        assert await client.devices() == []
        with pytest.raises(errors.NotFound, match="yard/box1"):
            await client.device("yard", "box1")
        status = device_pb2.DeviceStatus(schema_major=1, site="yard", device="box1")
        await js_of(serving).publish(subjects.status_subject("yard", "box1"), status.SerializeToString())
        assert [found.status.device for found in await client.devices()] == ["box1"]
        wanted = [device_pb2.DesiredCamera(camera="gate", max_fps=5)]
        first = await client.set_desired("yard", "box1", wanted)
        second = await client.set_desired("yard", "box1", wanted, expected_revision=first.revision)
        assert second.revision > first.revision
        with pytest.raises(errors.Conflict):
            await client.set_desired("yard", "box1", wanted, expected_revision=first.revision)
        assert (await client.device("yard", "box1")).desired == second


async def test_tenants_are_apart(hub: LocalHub) -> None:
    async with running_api(hub) as serving:
        await store(js_of(serving), [result(1)])
        async with Client(serving.address, "for-globex") as stranger:
            assert await stranger.latest() == []
        async with Client(serving.address, "for-nobody") as unknown:
            with pytest.raises(errors.Unauthenticated):
                await unknown.latest()
            with pytest.raises(errors.Unauthenticated):
                await anext(unknown.subscribe())


async def test_blocking_client(hub: LocalHub) -> None:
    async with running_api(hub) as serving:

        def work() -> list[int]:
            with BlockingClient(serving.address, "for-acme") as client, client.subscribe() as subscription:
                subscription.ready()
                asyncio.run_coroutine_threadsafe(store(js_of(serving), [result(1), result(2)]), loop).result(
                    10
                )
                found = [next(subscription).sequence, next(subscription).sequence]
                assert [r.sequence for r in client.history("yard", "gate")] == found
                return found

        loop = asyncio.get_running_loop()
        assert await asyncio.to_thread(work) == [1, 2]


async def test_command(hub: LocalHub) -> None:
    async with running_api(hub) as serving:
        await store(js_of(serving), [result(1), result(2), result(3)])

        async def run(*arguments: str) -> tuple[int | None, list[Any], str]:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "eyeline", *arguments, "--json", "--server", serving.address),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "EYELINE_TOKEN": "for-acme"},
            )
            async with asyncio.timeout(30):
                out, err = await process.communicate()
            return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()

        status, lines, err = await run("watch", "--since", "1h", "--count", "2")
        assert (status, [line["sequence"] for line in lines]) == (0, [1, 2])
        token = err.split()[-1]
        assert [line["sequence"] for line in (await run("watch", "--resume", token, "--count", "1"))[1]] == [
            3
        ]
        assert [line["sequence"] for line in (await run("latest"))[1]] == [3]
        assert len((await run("history", "yard/gate", "--from", "10m"))[1]) == 3
        assert (await run("devices"))[0] == 1


async def test_example_of_the_readme(hub: LocalHub) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "from eyeline import Client" in block]
    assert len(example.strip().splitlines()) <= 12
    # A hub whose only tenant is open to everyone, as `make demo` and `cloud-inference local` have it.
    async with running_api(hub) as serving:
        code = example.replace('"127.0.0.1:50051"', f'"{serving.address}", "for-acme"')
        assert code != example
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-W", "error", "-c", code),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            await eventually(lambda: _subscribed(serving), within_s=20)
            await store(js_of(serving), [result(1), result(2)])
            async with asyncio.timeout(20):
                printed = [(await process.stdout.readline()).decode() for _ in range(2)]
        finally:
            process.terminate()
            _, err = await process.communicate()
    assert ["1" in printed[0], "2" in printed[1]] == [True, True], err
    assert "square" in printed[0]


async def _subscribed(serving: Serving) -> bool:
    info = await js_of(serving).stream_info(subjects.RESULTS)
    return bool(info.state.consumer_count)
