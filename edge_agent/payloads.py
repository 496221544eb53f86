"""The newest spooled payloads, in memory, so that the forwarder need not ask the broker for them."""

from __future__ import annotations

from collections import deque

from edge_agent.segments import Entry, Segment


class Payloads:
    """Payloads of all cameras, at most `limit_bytes`; what is not here is still in the broker."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._cameras: dict[str, deque[tuple[Entry, bytes]]] = {}
        self._bytes = 0

    def add(self, camera: str, entry: Entry, data: bytes) -> None:
        """Keep one, and drop the oldest of the camera with most when there are too many."""
        self._cameras.setdefault(camera, deque()).append((entry, data))
        self._bytes += len(data)
        while self._bytes > self._limit_bytes:
            longest = max(self._cameras.values(), key=len)
            self._bytes -= len(longest.popleft()[1])

    def read(
        self, camera: str, segment: Segment, max_messages: int, max_bytes: int
    ) -> list[tuple[int, bytes]]:
        """The next messages of a segment, sequence and payload; empty when they are not (all) here."""
        kept = self._cameras.get(camera)
        if not kept or kept[0][0].sequence > segment.cursor:
            return []
        found: list[tuple[int, bytes]] = []
        size = 0
        for entry, data in kept:
            sequence = entry.sequence
            if sequence < segment.cursor:
                continue
            if sequence > segment.last_seq or len(found) >= max_messages:
                break
            if found and size + len(data) > max_bytes:
                break
            found.append((sequence, data))
            size += len(data)
        return found

    def forget(self, camera: str, below: int | None) -> None:
        """Drop a camera's messages below a sequence, or all."""
        kept = self._cameras.get(camera)
        while kept and (below is None or kept[0][0].sequence < below):
            self._bytes -= len(kept.popleft()[1])

    def of(self, camera: str, start: int) -> list[tuple[Entry, bytes]]:
        """A camera's messages from a sequence on."""
        return [(entry, data) for entry, data in self._cameras.get(camera, ()) if entry.sequence >= start]

    @property
    def cameras(self) -> list[str]:
        """Cameras that have, or had, something here."""
        return list(self._cameras)

    def clear(self) -> None:
        """Drop everything."""
        self._cameras.clear()
        self._bytes = 0
