"""Connecting to a hub that is not there."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from eyeline import bus
from eyeline.errors import BusError


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as it is in use
@pytest.mark.parametrize("url", ["ws://127.0.0.1:9", "nats://127.0.0.1:9"])
async def test_an_attempt_in_vain_leaves_nothing_open(url: str) -> None:
    """A device whose hub is away for days would log each one otherwise."""
    left: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: left.append(context["message"]))
    with pytest.raises(BusError, match="cannot be reached"):
        await bus.connect(url, name="box1", wait=False)
    await asyncio.sleep(0)  # or its task holds it
    gc.collect()
    assert left == []
