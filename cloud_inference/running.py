"""Running a command until it ends or is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, Final

from eyeline.errors import EyelineError

# Longer than stopping takes (the API lets calls end for 5 s).
_AGAIN_S: Final = 7.0


def run(main_coroutine: Coroutine[Any, Any, None]) -> None:
    """Run until it ends or a signal asks it to; the first signal cancels it, later ones wait with us."""
    import uvloop  # noqa: PLC0415  # not for commands that run nothing

    asked: list[signal.Signals] = []

    async def guarded() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # we are in it

        def insist() -> None:
            # A cancellation gets lost where a task group ends with an error of its own at that moment, or in
            # a library that drops it; and a group passes on only the first: so each task is told.
            for one in asyncio.all_tasks(loop):
                one.cancel()
            loop.call_later(_AGAIN_S, insist)

        def ask(number: signal.Signals) -> None:
            if not asked:
                task.cancel()
                loop.call_later(_AGAIN_S, insist)
            asked.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, ask, number)
        try:
            await main_coroutine
        except BaseExceptionGroup as group:
            raise _expected(group) from None

    with contextlib.suppress(asyncio.CancelledError):
        uvloop.run(guarded())
    if asked and asked[0] == signal.SIGINT:
        raise SystemExit(130)


def _expected(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first expected failure of a group, if all are; else the group, which is a bug worth a traceback."""
    expected, other = group.split(EyelineError)
    if expected is None or other is not None:
        return group
    problem: BaseException = expected
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
