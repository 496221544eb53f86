"""So much at a time for each tenant, and no more: one tenant's callers never use up what is another's."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from grpc import StatusCode

from cloud_inference.api.errors import HELD, Refusal
from cloud_inference.config import ApiSettings


class Limits:
    """Counts open subscriptions and other calls under way, by tenant."""

    def __init__(self, settings: ApiSettings, tenants: int) -> None:
        self.streams_all = settings.max_streams
        self.streams = settings.max_streams_per_tenant or max(1, settings.max_streams // max(1, tenants))
        self.calls = settings.max_calls_per_tenant
        self._streams: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()

    @property
    def open_streams(self) -> int:
        """Subscriptions of all tenants."""
        return self._streams.total()

    @contextlib.contextmanager
    def stream(self, tenant: str) -> Iterator[None]:
        """One more subscription; raises `Refusal` with RESOURCE_EXHAUSTED."""
        for used, most in ((self._streams[tenant], self.streams), (self.open_streams, self.streams_all)):
            if used >= most:
                raise Refusal(
                    StatusCode.RESOURCE_EXHAUSTED, f"{used} subscriptions are open, at most {most} are served"
                )
        with _counted(self._streams, tenant):
            yield

    def admit(self, tenant: str) -> None:
        """Count the unary call that we are in until it ends; raises `Refusal` with RESOURCE_EXHAUSTED."""
        held = HELD.get()
        if held is not None:
            held.enter_context(self.call(tenant))

    @contextlib.contextmanager
    def call(self, tenant: str) -> Iterator[None]:
        """One more call under way; raises `Refusal` with RESOURCE_EXHAUSTED."""
        if self._calls[tenant] >= self.calls:
            raise Refusal(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{self._calls[tenant]} calls of yours are under way, at most {self.calls} at a time",
            )
        with _counted(self._calls, tenant):
            yield


@contextlib.contextmanager
def _counted(counts: Counter[str], tenant: str) -> Iterator[None]:
    counts[tenant] += 1
    try:
        yield
    finally:
        counts[tenant] -= 1
