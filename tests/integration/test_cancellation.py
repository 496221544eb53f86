"""What waits for a real hub can be cancelled, whenever that comes."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from cloud_inference.hub import LocalHub
from tests.support.servers import cloud_client


@pytest.mark.parametrize("waits_for", ["request", "flush"])
async def test_a_cancellation_that_comes_with_the_answer_is_heard(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    """A worker that stops would go on for ever otherwise, as a member of a task group that has ended."""
    client = await cloud_client(hub)
    ask, heard = {"request": ("$JS.API.INFO", "_process_msg"), "flush": (1, "_process_pong")}[waits_for]
    answers = 0

    async def ask_on() -> None:
        nonlocal answers
        while True:
            await getattr(client, waits_for)(ask)
            answers += 1

    asking = asyncio.create_task(ask_on())
    take_in = getattr(client, heard)

    async def take_in_and_cancel(*message: Any) -> None:
        await take_in(*message)
        if answers == 3:
            asking.cancel()

    monkeypatch.setattr(client, heard, take_in_and_cancel)
    done, _ = await asyncio.wait({asking}, timeout=5)
    try:
        assert done, f"went on, {answers} answers"
        assert asking.cancelled()
        assert answers == 3
    finally:
        asking.cancel()
        await client.close()


async def test_who_publishes_into_a_connection_that_takes_no_more_can_be_cancelled(hub: LocalHub) -> None:
    client = await cloud_client(hub)
    published = 0

    async def publish_on() -> None:
        nonlocal published
        while True:
            await client.publish("eyeline.v1.frame.yard.box1.gate", bytes(900_000))
            published += 1
            await asyncio.sleep(0)

    assert hub.server.pid is not None
    os.kill(hub.server.pid, signal.SIGSTOP)
    publishing = asyncio.create_task(publish_on())
    try:
        before = -1
        while published != before:
            before = published
            await asyncio.sleep(0.2)
        assert published > 8, "it waits, with its buffer full"
        publishing.cancel()
        done, _ = await asyncio.wait({publishing}, timeout=5)
        assert done, "went on"
        assert publishing.cancelled()
    finally:
        os.kill(hub.server.pid, signal.SIGCONT)
        publishing.cancel()
        await client.close()
