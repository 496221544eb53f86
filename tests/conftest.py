"""Fixtures for everyone: real servers on free ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_inference.hub import LocalHub
from tests.support.servers import running_hub


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[LocalHub]:
    """A running hub: tenants `acme` and `globex`, each with devices `box1` and `box2` at site `yard`."""
    async with running_hub(tmp_path / "hub") as running:
        yield running
