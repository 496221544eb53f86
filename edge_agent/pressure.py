"""How much of a camera the cloud takes: learned from how long it says that messages wait there.

A worker that falls behind tells each camera's agent so, a few times a second; silence means that all is well.
The plan's frame rate falls while the wait does not shrink by itself, and rises again slowly in silence
(additive increase, multiplicative decrease); the backlog goes as fast as the cloud can stand beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import Gauge

SHARE: Final = Gauge(
    "eyeline_edge_cloud_share_ratio", "Share of the frame rate that the cloud keeps up with.", ["camera"]
)
LAG: Final = Gauge(
    "eyeline_edge_cloud_lag_seconds", "How long messages wait in the cloud, as it says; else 0.", ["camera"]
)

# A worker tells of waits from this on; shorter ones are the normal course of things.
LAG_S: Final = 0.5

_EVERY_S: Final = 1.0
_CUT: Final = 0.7
_LOWEST: Final = 0.03
# Share of the frame rate won back each second, once it was quiet for so long.
_RISE: Final = 0.05
_QUIET_S: Final = 1.5
# Frames with pixels a second, from the backlog.
_BACKLOG_FIRST: Final = 10.0
_BACKLOG_LEAST: Final = 2.0
_BACKLOG_MOST: Final = 10_000.0
_BACKLOG_GROWS: Final = 2.0


class Pressure:
    """One camera's. Not thread-safe: it belongs to the agent's event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._share = 1.0
        self._lag_s = 0.0
        self._heard_s = self._cut_s = -1e9
        self._risen_s = now()
        self._backlog = _BACKLOG_FIRST
        self._backlog_s = self._backlog_heard_s = -1e9
        self._answers_s: float | None = None

    @property
    def lag_s(self) -> float:
        """How long messages wait in the cloud, as last heard; 0 when nothing was heard of late."""
        return self._lag_s if self._now() - self._heard_s < 2 * _QUIET_S else 0.0

    def heard(self, lag_s: float) -> None:
        """The cloud says that this camera's messages wait for so long."""
        now = self._now()
        self._settle(now)
        since_s, before_s = now - self._cut_s, self.lag_s
        self._heard_s = now
        if lag_s < LAG_S:
            self._lag_s = lag_s
            return
        if since_s < _EVERY_S:
            return
        self._lag_s = lag_s
        self._cut_s = now
        # A queue that drains by itself takes its time: nothing more is needed.
        if lag_s > before_s - 0.1 * min(since_s, 10.0):
            self._share = max(_LOWEST, self._share * _CUT)
            self._backlog = max(_BACKLOG_LEAST, self._backlog / 2)

    def heard_backlog(self, lag_s: float) -> None:
        """The cloud says that the backlog waits for so long there: the live picture's rate stands."""
        now = self._now()
        if lag_s >= LAG_S and now - self._backlog_heard_s >= _EVERY_S:
            self._backlog_heard_s = now
            self._backlog = max(_BACKLOG_LEAST, self._backlog / 2)

    def heard_answers(self) -> None:
        """The cloud says that it answers this camera's frames."""
        self._answers_s = self._now()

    @property
    def silent_s(self) -> float:
        """For how long it has not said so; 0 when it never did, as a cloud of an older version."""
        return 0.0 if self._answers_s is None else self._now() - self._answers_s

    @property
    def share(self) -> float:
        """Share of the frame rate to send pixels at, up to 1."""
        self._settle(self._now())
        return self._share

    def backlog_fps(self) -> float:
        """Frames with pixels a second that may go behind the live picture; asked while there are some."""
        now = self._now()
        step_s = min(now - self._backlog_s, 1.0)
        self._backlog_s = now
        if now - max(self._heard_s, self._backlog_heard_s) > _QUIET_S:
            self._backlog = min(_BACKLOG_MOST, self._backlog * _BACKLOG_GROWS**step_s)
        return self._backlog

    def backlog_done(self) -> None:
        """Nothing late waits any more: the next backlog starts afresh."""
        self._backlog = _BACKLOG_FIRST

    def _settle(self, now: float) -> None:
        quiet_since = max(self._heard_s + _QUIET_S, self._risen_s)
        if now > quiet_since:
            self._share = min(1.0, self._share + _RISE * (now - quiet_since))
        self._risen_s = now
