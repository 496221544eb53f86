"""What the API tells about the cloud side, over the real hub and worker code."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from cloud_inference.hub import LocalHub
from cloud_inference.ownership import Ownership
from eyeline import Client
from eyeline.errors import Unauthenticated
from tests.support.access import Issuer
from tests.support.api import running_api
from tests.support.eventually import eventually
from tests.support.simulated import Device, publish
from tests.support.working import worker_bus


async def idle(site: str, camera: str) -> None:
    """A worker's work on a camera: none."""
    await asyncio.Event().wait()


async def test_workers_streams_and_what_the_caller_may(hub: LocalHub, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "keys")
    async with running_api(hub, token_keys=[str(issuer.public)]) as serving:
        tenant = serving.tenants.hubs["acme"]
        await publish(tenant.js, Device().frames(2))
        await publish(tenant.js, Device(camera="door").frames(1))
        ownership = Ownership(worker_bus(tenant.connection), "w1", lease_s=2.0, work=idle)
        task = asyncio.create_task(ownership.run())
        try:
            async with Client(serving.address, issuer.token(methods=["read"])) as client:

                async def both() -> bool:
                    return any(len(it.cameras) == 2 for it in (await client.system()).workers)

                await eventually(both, within_s=10)
                told = await client.system()
                assert [it.worker for it in told.workers] == ["w1"]
                assert abs(told.workers[0].heard_ns - time.time_ns()) < 5e9
                assert abs(told.now_ns - time.time_ns()) < 5e9
                assert (told.hub.frames.messages, told.hub.results.messages) == (3, 0)
                assert told.hub.frames.limit_bytes > told.hub.frames.bytes > 0
                assert abs(told.hub.frames.oldest_ns - time.time_ns()) < 60e9
                assert told.inference.ready
                assert told.inference.model.name == "square"
                assert list(told.caller.methods) == ["read"]
                assert told.caller.expires_ns > time.time_ns()
            async with Client(serving.address, issuer.token(cameras=["yard/gate"])) as scoped:
                told = await scoped.system()
                assert [(it.site, it.camera) for it in told.workers[0].cameras] == [("yard", "gate")]
                assert not told.HasField("hub")
                assert list(told.caller.cameras) == ["yard/gate"]
            async with Client(serving.address, issuer.token("globex")) as other:
                assert not (await other.system()).workers
            async with Client(serving.address) as nobody:
                with pytest.raises(Unauthenticated):
                    await nobody.system()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
