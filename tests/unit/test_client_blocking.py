"""The blocking twin: the same calls for threads, against scripted services over real gRPC."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
from grpc import StatusCode

from eyeline import Backoff, BlockingClient, BlockingSubscription, Client, Subscription, errors
from eyeline.v1 import device_pb2
from tests.support.eventually import eventually
from tests.support.fake_api import FakeApi, Fault, made_result, running_fake_api

QUICK = Backoff(first_s=0.01, most_s=0.05)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with running_fake_api(batch=3) as running:
        yield running


async def test_calls(api: FakeApi) -> None:
    api.store(*(made_result(i) for i in range(1, 6)))
    api.devices = {
        ("yard", "box1"): device_pb2.Device(status=device_pb2.DeviceStatus(site="yard", device="box1"))
    }

    def work() -> None:
        with BlockingClient(api.address) as client:
            assert [r.sequence for r in client.latest()] == [5]
            assert [r.sequence for r in client.history("yard", "gate", page_size=2)] == [1, 2, 3, 4, 5]
            assert len(client.detect(np.zeros((8, 8, 3), np.uint8)).detections) == 0
            assert [d.status.device for d in client.devices()] == ["box1"]
            assert client.device("yard", "box1").status.site == "yard"
            assert client.set_desired("yard", "box1", []).revision == 1
            with pytest.raises(errors.NotFound):
                client.device("yard", "box2")

    await asyncio.to_thread(work)


async def test_subscription_over_a_broken_connection(api: FakeApi) -> None:
    api.fail("Subscribe", Fault(StatusCode.UNAVAILABLE, after=2))

    def work() -> list[int]:
        with (
            BlockingClient(api.address, backoff=QUICK) as client,
            client.subscribe(since_ns=1) as subscription,
        ):
            subscription.ready()
            found = []
            for result in subscription:
                found.append(result.sequence)
                assert subscription.resume_token == result.resume_token
                if len(found) == 7:
                    break
            assert subscription.reconnects == 1
            assert subscription.gaps == []
            return found

    waiting = asyncio.create_task(asyncio.to_thread(work))
    await eventually(lambda: api.subscribers == 1)
    api.store(*(made_result(i) for i in range(1, 8)))
    assert await waiting == [1, 2, 3, 4, 5, 6, 7]
    await eventually(lambda: api.subscribers == 0)


async def test_closing_from_another_thread_ends_the_iteration(api: FakeApi) -> None:
    client = BlockingClient(api.address)
    subscription = client.subscribe()
    waiting = asyncio.create_task(asyncio.to_thread(list, subscription))
    await eventually(lambda: api.subscribers == 1)
    await asyncio.to_thread(client.close)
    assert await waiting == []
    assert not [thread for thread in threading.enumerate() if thread.name == "eyeline-client"]
    client.close()
    with pytest.raises(errors.InvalidRequest, match="closed"):
        client.latest()


async def test_dropped_subscription_ends(api: FakeApi) -> None:
    api.store(made_result(1))

    def read_one(client: BlockingClient) -> int:
        return next(iter(client.subscribe(since_ns=1))).sequence

    with BlockingClient(api.address) as client:
        assert await asyncio.to_thread(read_one, client) == 1
        await eventually(lambda: len(api.asked("Subscribe")) == 1 and api.subscribers == 0)
        await asyncio.to_thread(client.close)


def test_unreachable_server() -> None:
    with BlockingClient("127.0.0.1:1") as client:
        with pytest.raises(errors.Unavailable):
            client.latest()
        with pytest.raises(errors.Unavailable):
            next(client.subscribe(connect_within_s=0.1))


def test_twins_have_the_same_calls() -> None:
    for twin, original in ((BlockingClient, Client), (BlockingSubscription, Subscription)):
        names = {name for name in vars(original) if not name.startswith("_")} - {"batch", "aclose"}
        assert names <= {name for name in dir(twin) if not name.startswith("_")}
        for name in names:
            if not inspect.isfunction(vars(original)[name]):
                continue
            ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (twin, original))
            assert ours.parameters == theirs.parameters, name
    assert inspect.signature(BlockingClient).parameters == inspect.signature(Client).parameters
