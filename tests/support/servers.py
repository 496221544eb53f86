"""Real servers for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from nats.aio.client import Client

from cloud_inference import hub as hubs
from cloud_inference.hub import LocalHub
from eyeline import bus, subjects

SITE = "yard"
DEVICES = ((SITE, "box1"), (SITE, "box2"))
TENANTS = {"acme": DEVICES, "globex": DEVICES}


@contextlib.asynccontextmanager
async def running_hub(state_dir: Path, *, port: int = 0) -> AsyncIterator[LocalHub]:
    """A hub with the tenants `acme` and `globex`, each with two devices."""
    state_dir.mkdir(parents=True, exist_ok=True)
    hub = LocalHub(hubs.generate(TENANTS, state_dir), work_dir=state_dir, port=port)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()


async def cloud_client(hub: LocalHub, tenant: str = "acme") -> Client:
    """A connection as the cloud's user of a tenant, who may do everything in its account."""
    user = hub.tenant(tenant).cloud
    return await bus.connect(hub.url, name="test-cloud", user=user.name, password=user.password, wait=False)


async def device_client(
    hub: LocalHub, tenant: str = "acme", site: str = SITE, device: str = "box1"
) -> Client:
    """A connection as a device, with its own inbox and its own subjects only."""
    user = hub.tenant(tenant).device(site, device).user
    return await bus.connect(
        hub.url,
        name="test-device",
        user=user.name,
        password=user.password,
        inbox_prefix=subjects.device_inbox(site, device),
        wait=False,
    )
