"""A camera's low-resolution second stream, read beside the main one for the gate.

The two streams share no timestamps that can be trusted, so pictures are paired by arrival: a main frame
gets the substream's latest picture. While the substream is away the gate looks at the main stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import av
import structlog

from edge_agent.errors import SourceError
from edge_agent.pacing import Backoff, Pacer
from edge_agent.sources import Source

# Older pictures say nothing about the main frame.
MAX_AGE_S = 1.0

_log = structlog.get_logger(__name__)


class Substream:
    """Keeps the latest picture of a second stream; reopens it when it goes away."""

    def __init__(self, camera: str, open_stream: Callable[[], Source], backoff: Backoff) -> None:
        self._camera = camera
        self._open_stream = open_stream
        self._backoff = backoff
        self._stop = threading.Event()
        self._latest: tuple[int, av.VideoFrame] | None = None
        self._thread = threading.Thread(target=self._run, name=f"substream-{camera}", daemon=True)

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop reading; a read that hangs is left behind after `timeout` seconds."""
        self._stop.set()
        self._thread.join(timeout)

    def nearest(self, monotonic_ns: int) -> av.VideoFrame | None:
        """The picture that belongs to a main frame which arrived at this `time.monotonic_ns`."""
        latest = self._latest
        if latest is None or abs(monotonic_ns - latest[0]) > MAX_AGE_S * 1e9:
            return None
        return latest[1]

    def _run(self) -> None:
        told = ""
        while not self._stop.is_set():
            problem = "ended"
            source: Source | None = None
            try:
                source, pacer = self._open_stream(), Pacer()
                for shot in source.shots():
                    if not source.info.kind.is_live:
                        pacer.wait(shot.media_s, self._stop)
                    if self._stop.is_set():
                        return
                    self._backoff.reset()
                    self._latest = (time.monotonic_ns(), shot.picture)
                    if told:
                        _log.info("substream_live", camera=self._camera)
                        told = ""
            except SourceError as failure:
                problem = str(failure)
            finally:
                if source is not None:
                    source.close()
            if problem != told:
                _log.warning("substream_lost", camera=self._camera, problem=problem)
                told = problem
            self._stop.wait(self._backoff())
