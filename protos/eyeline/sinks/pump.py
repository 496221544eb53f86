"""From a subscription to a sink, at least once and in order.

The resume token is kept only after everything up to it was taken: whatever stops in between, the next start
sends again from there. While the sink is away the results wait in the hub, for as long as the hub keeps them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from eyeline.errors import ConfigError, EyelineError
from eyeline.subscription import Backoff, Subscription
from eyeline.values import Result

_log = logging.getLogger("eyeline.client")


class SinkError(EyelineError):
    """The other side did not take it; `retryable` says whether it may later."""


class Sink(Protocol):
    """Where results go."""

    async def send(self, results: Sequence[Result]) -> None:
        """Return when all were taken, in order; raises `SinkError`."""

    async def close(self) -> None:
        """Hang up."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which results are passed on. classes: with one of these objects; min_score: of such an object."""

    objects_only: bool = False
    classes: frozenset[str] = frozenset()
    min_score: float = 0.0

    def takes(self, result: Result) -> bool:
        """Whether this one is."""
        if not (self.objects_only or self.classes or self.min_score):
            return True
        found = result.detections
        return any(
            float(found.scores[row]) >= self.min_score and (not self.classes or name in self.classes)
            for row, name in enumerate(found.class_names)
        )


@dataclass(slots=True)
class State:
    """How far it got, in a file when one is named."""

    path: Path | None = None
    token: str = ""

    @classmethod
    def load(cls, path: Path | None) -> State:
        """What the file says; raises `ConfigError` for a file that is not ours."""
        if path is None or not path.exists():
            return cls(path)
        try:
            token = json.loads(path.read_text())["resume_token"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path} is no state of ours: name another, or delete it to start anew"
            ) from None
        return cls(path, str(token))

    def save(self, token: str) -> None:
        """Remember; on disk before it returns."""
        self.token = token
        if self.path is None:
            return
        part = self.path.with_name(self.path.name + ".part")
        try:
            with part.open("w") as file:
                file.write(json.dumps({"resume_token": token}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as problem:
            raise ConfigError(f"{self.path} cannot be written: {problem.strerror}") from None


@dataclass(slots=True)
class Counts:
    """What was done so far. refused: given up, because the other side will never take them."""

    sent: int = 0
    passed_over: int = 0
    refused: int = 0
    retries: int = 0


@dataclass(slots=True)
class Pump:
    """Passes results on until closed, cancelled, or `count` were sent.

    skip_refused: go on after what the sink refuses for good, rather than stopping.
    """

    subscription: Subscription
    sink: Sink
    state: State
    wanted: Wanted = field(default_factory=Wanted)
    skip_refused: bool = False
    count: int | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.2, most_s=30.0))
    tell: Callable[[Counts], None] = lambda _: None
    counts: Counts = field(default_factory=Counts)

    async def run(self) -> Counts:
        """Raises `SinkError` when the sink refuses for good, and what subscriptions raise."""
        await self.subscription.ready()
        if not self.state.token and self.subscription.resume_token:
            # "From now" stays the same now, even when it is stopped before the first result.
            self.state.save(self.subscription.resume_token)
        while self.count is None or self.counts.sent < self.count:
            batch = await self.subscription.batch()
            if not batch:
                break
            if self.count is not None:
                batch = self._cut(batch)
            chosen = [result for result in batch if self.wanted.takes(result)]
            self.counts.passed_over += len(batch) - len(chosen)
            if chosen:
                await self._deliver(chosen)
            if batch[-1].resume_token:
                self.state.save(batch[-1].resume_token)
            self.tell(self.counts)
        return self.counts

    def _cut(self, batch: list[Result]) -> list[Result]:
        assert self.count is not None  # noqa: S101
        left = self.count - self.counts.sent
        for index, result in enumerate(batch):
            left -= self.wanted.takes(result)
            if left == 0:
                return batch[: index + 1]
        return batch

    async def _deliver(self, results: list[Result]) -> None:
        attempt = 0
        while True:
            try:
                await self.sink.send(results)
            except SinkError as problem:
                if not problem.retryable:
                    await self._refused(results, problem)
                    return
                if attempt == 0:
                    _log.warning("%s; trying again", problem)
                self.counts.retries += 1
                await asyncio.sleep(self.backoff.pause_s(attempt))
                attempt += 1
            else:
                self.counts.sent += len(results)
                return

    async def _refused(self, results: list[Result], problem: SinkError) -> None:
        """Find out which ones are refused, when they are to be left out; else raise."""
        if not self.skip_refused:
            raise problem
        if len(results) == 1:
            self.counts.refused += 1
            (one,) = results
            _log.warning("%s; left out: %s/%s #%d", problem, one.site, one.camera, one.sequence)
            return
        for result in results:
            await self._deliver([result])
