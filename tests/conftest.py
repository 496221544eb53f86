"""Fixtures for everyone: real servers on free ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings
from nats.js import JetStreamContext

from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from tests.support.servers import RunningTriton, cloud_client, running_hub, running_triton

# How long an example takes is the machine's matter.
settings.register_profile("eyeline", deadline=None)
settings.load_profile("eyeline")


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[LocalHub]:
    """A running hub: tenants `acme` and `globex`, each with devices `box1` and `box2` at site `yard`."""
    async with running_hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
async def js(hub: LocalHub) -> AsyncIterator[JetStreamContext]:
    """JetStream of `acme` on the hub, with its streams."""
    client = await cloud_client(hub)
    made = client.jetstream(timeout=5)
    await streams.ensure(made, StreamSettings())
    yield made
    await client.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningTriton]:
    """A running tritonserver, one a session, with the default model of the catalogue."""
    async with running_triton(tmp_path_factory.mktemp("triton")) as running:
        yield running
