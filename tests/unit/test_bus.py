"""Connecting to a hub that is not there."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
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


@pytest.mark.parametrize("outcome", ["answer", "failure"])
async def test_a_cancellation_as_the_wait_ends_is_heard(outcome: str) -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(bus.heeding_cancellation(asyncio.wait_for(answer, 5)))
    await asyncio.sleep(0.01)
    if outcome == "answer":
        answer.set_result(1)
    else:
        answer.set_exception(TimeoutError())
    waiting.cancel()
    await asyncio.wait({waiting}, timeout=5)
    assert waiting.cancelled()


async def test_a_deadline_that_meets_the_answer_stays_a_deadline() -> None:
    loop = asyncio.get_running_loop()

    def after(turns: int, then: Callable[[], object]) -> None:
        loop.call_soon(*((after, turns - 1, then) if turns else (then,)))

    async def wait(answer_after: int) -> int | None:
        answer: asyncio.Future[int] = loop.create_future()
        try:
            async with asyncio.timeout(5) as deadline:
                after(3, lambda: deadline.reschedule(0))
                after(answer_after, lambda: answer.done() or answer.set_result(1))
                return await bus.heeding_cancellation(asyncio.wait_for(answer, 5))
        except TimeoutError:
            return None

    assert {await wait(turns) for turns in range(8)} == {1, None}


async def test_without_a_cancellation_the_wait_is_what_it_was() -> None:
    """One that was heard before, as by a task that tidies up, is no reason to give up."""

    async def tidy_up() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await bus.heeding_cancellation(asyncio.wait_for(asyncio.sleep(0.01, 7), 5))
        return 0

    tidying = asyncio.create_task(tidy_up())
    await asyncio.sleep(0.01)
    tidying.cancel()
    assert await tidying == 7
