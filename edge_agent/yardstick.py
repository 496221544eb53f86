"""What sending everything would have cost: the source's own bytes, and a JPEG of a frame now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import av

from edge_agent.encode import jpeg_size

JPEG_QUALITY: Final = 90
# One frame of a camera in so long: some 10 ms of processor for 720p.
SAMPLE_EVERY_NS: Final = 20_000_000_000


@dataclass(slots=True)
class Yardstick:
    """One camera's measure, since start. Belongs to the thread that captures.

    source_bytes: compressed bytes that came from the source; jpeg_samples, jpeg_bytes: frames that were coded
    as JPEG, and how large they became.
    """

    source_bytes: int = 0
    jpeg_samples: int = 0
    jpeg_bytes: int = 0
    _due_ns: int = 0

    def add(self, picture: av.VideoFrame, coded_bytes: int, now_ns: int | None = None) -> None:
        """Count a captured picture whose compressed form had so many bytes; 0 when it had none."""
        self.source_bytes += coded_bytes
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + SAMPLE_EVERY_NS
        size = jpeg_size(picture, JPEG_QUALITY)
        if size:
            self.jpeg_samples += 1
            self.jpeg_bytes += size
