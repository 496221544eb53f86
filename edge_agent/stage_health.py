"""A stage that fails and recovers: told once a change, tried again less and less often."""

from __future__ import annotations

from typing import Final

import structlog

_log = structlog.get_logger()

_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 60.0


class StageHealth:
    """Whether a stage works: says so once a change, and spaces attempts out while it does not."""

    def __init__(
        self,
        stage: str,
        camera: str,
        *,
        first_s: float = _FIRST_RETRY_S,
        longest_s: float = _LONGEST_RETRY_S,
    ) -> None:
        self.problem = ""
        self._first_s = first_s
        self._longest_s = longest_s
        self._stage = stage
        self._camera = camera
        self._failures = 0
        self._retry_ns = 0

    def due(self, now_ns: int) -> bool:
        """Whether the stage is to be tried at this moment."""
        return self._failures == 0 or now_ns >= self._retry_ns

    def failed(self, problem: Exception, now_ns: int) -> None:
        """Note a failure; the next attempt waits, longer each time."""
        if self._failures == 0:
            _log.error(f"{self._stage}_failed", camera=self._camera, reason=f"{problem}"[:300])
        self.problem = f"{problem}"[:300]
        wait_s = min(self._first_s * 2 ** min(self._failures, 10), self._longest_s)
        self._failures += 1
        self._retry_ns = now_ns + int(wait_s * 1e9)

    def worked(self) -> bool:
        """Whether it had failed before."""
        if not self._failures:
            return False
        _log.info(f"{self._stage}_recovered", camera=self._camera, failures=self._failures)
        self._failures, self.problem = 0, ""
        return True
