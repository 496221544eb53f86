"""The hub's clock, as a worker knows it from the hub's own messages."""

from __future__ import annotations

import time
from typing import Final

# Of the shortest way seen, or a clock that was set would count for ever.
_FORGET_NS: Final = 1_000_000


class HubClock:
    """Our monotonic clock less the shortest way from the hub to here; it need not agree with the hub's own.

    A backlog tells nothing of the way, since its messages waited; the making of a consumer does.
    """

    def __init__(self) -> None:
        self._shortest_ns: int | None = None
        self._first_way_ns: int | None = None
        # When the first message was heard of, by the hub's clock; 0 before.
        self.began_ns = 0

    @property
    def is_known(self) -> bool:
        """Whether anything was heard of it."""
        return self._shortest_ns is not None

    def heard(self, stored_ns: int, way_ns: int | None) -> None:
        """A message came that the hub stored then. way_ns: what the making of its consumer told."""
        if way_ns != self._first_way_ns:
            self._shortest_ns = self._first_way_ns = way_ns
        took_ns = time.monotonic_ns() - stored_ns
        self._shortest_ns = min(took_ns, self._shortest_ns or took_ns)
        self.began_ns = self.began_ns or self.now_ns()

    def forget(self) -> None:
        """Trust what was seen a little less; to be called now and then."""
        if self._shortest_ns is not None:
            self._shortest_ns += _FORGET_NS

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch, as the hub has it; 0 before anything was heard of it."""
        return time.monotonic_ns() - self._shortest_ns if self._shortest_ns is not None else 0
