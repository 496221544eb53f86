"""Real servers for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from cloud_inference import triton_repository
from cloud_inference.config import TritonSettings
from cloud_inference.hub import HubOptions, LocalHub
from cloud_inference.triton_repository import Served, Serving
from cloud_inference.triton_server import TritonServer
from eyeline import bus, subjects
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard

SITE = "yard"
DEVICES = ((SITE, "box1"), (SITE, "box2"))
TENANTS = {"acme": DEVICES, "globex": DEVICES}


@contextlib.asynccontextmanager
async def running_hub(state_dir: Path, *, port: int = 0, **options: Any) -> AsyncIterator[LocalHub]:
    """A hub with the tenants `acme` and `globex`, each with two devices."""
    state_dir.mkdir(parents=True, exist_ok=True)
    hub = LocalHub(TENANTS, state_dir, HubOptions(port=port, **options))
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()


async def cloud_client(hub: LocalHub, tenant: str = "acme") -> Client:
    """A connection as the cloud's user of a tenant, who may do everything in its account."""
    return await bus.connect(hub.url, name="test-cloud", creds_file=hub.tenant(tenant).cloud, wait=False)


async def device_client(
    hub: LocalHub, tenant: str = "acme", site: str = SITE, device: str = "box1"
) -> Client:
    """A connection as a device, with its own inbox and its own subjects only."""
    return await bus.connect(
        hub.url,
        name="test-device",
        creds_file=hub.tenant(tenant).device(site, device).creds,
        inbox_prefix=subjects.device_inbox(site, device),
        wait=False,
    )


@dataclass(frozen=True, slots=True)
class RunningTriton:
    """A tritonserver and the card of the model it serves."""

    server: TritonServer
    card: ModelCard

    @property
    def url(self) -> str:
        """`host:port` for gRPC."""
        return self.server.url


@contextlib.asynccontextmanager
async def serving(
    models: Sequence[Served], work_dir: Path, *, how: Serving | None = None
) -> AsyncIterator[TritonServer]:
    """A tritonserver with these models."""
    server = TritonServer(models, work_dir=work_dir, serving=how or Serving(), exit_timeout_s=2)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def running_triton(work_dir: Path) -> AsyncIterator[RunningTriton]:
    """A tritonserver with the catalogue's default model."""
    card = catalogue.load(TritonSettings().model)
    async with serving([triton_repository.inspect(card.name, card.path)], work_dir) as server:
        yield RunningTriton(server, card)
