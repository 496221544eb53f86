"""When things happen: recordings at the speed they were made, and attempts that wait longer each time."""

from __future__ import annotations

import random
import threading
import time

# A reader that is later than this goes on from where it is, rather than racing to catch up.
MAX_LAG_NS = 1_000_000_000


class Pacer:
    """Plays a recording in real time."""

    def __init__(self) -> None:
        self._anchor_ns: int | None = None

    def wait(self, media_s: float, stop: threading.Event) -> int:
        """Wait until the picture at `media_s` is due; returns the `time.monotonic_ns` at which it was.

        Returns at once when `stop` is set.
        """
        now, media_ns = time.monotonic_ns(), round(media_s * 1e9)
        if self._anchor_ns is None or now - (self._anchor_ns + media_ns) > MAX_LAG_NS:
            self._anchor_ns = now - media_ns
        due = self._anchor_ns + media_ns
        if due > now:
            stop.wait((due - now) / 1e9)
        return due


class Backoff:
    """Seconds to wait before the next attempt: doubling from `first_s` to `most_s`.

    Each is up to a quarter more or less, which keeps the cameras of a site from calling all at once after
    a power cut.
    """

    def __init__(
        self, first_s: float = 0.5, most_s: float = 30.0, *, jitter: random.Random | None = None
    ) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._jitter = jitter if jitter is not None else random.Random()
        self._next_s = first_s

    def __call__(self) -> float:
        """The delay before the next attempt."""
        delay = self._next_s
        self._next_s = min(2 * self._next_s, self._most_s)
        return delay * self._jitter.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Start small again, after things went well."""
        self._next_s = self._first_s
