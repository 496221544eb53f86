"""Waiting for a condition with a deadline, instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def eventually(condition: Callable[[], Any], *, within_s: float = 10.0, what: str = "") -> Any:
    """Poll a function, plain or async, until it returns something true, and return that."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                outcome = condition()
                if inspect.isawaitable(outcome):
                    outcome = await outcome
                if outcome:
                    return outcome
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what or condition} did not hold within {within_s:g} s") from None
