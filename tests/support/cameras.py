"""Cameras for tests: a real RTSP server in a child process, a scripted source, and waiting for conditions."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np

from edge_agent.address import SourceKind
from edge_agent.capture import Capture
from edge_agent.frame import Frame
from edge_agent.handoff import Dropped
from edge_agent.sources import Shot, StreamInfo
from tests.support import debian

SYSTEM_PYTHON = "/usr/bin/python3"


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()


class RtspServer:
    """GStreamer's RTSP server on loopback; port 0 takes a free one.

    clip: an MP4 file with H.264, played once; without one a test picture of `size` at `fps`.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        path: str = "/cam",
        size: tuple[int, int] = (320, 240),
        fps: int = 25,
        user: str | None = None,
        password: str | None = None,
        clip: Path | None = None,
    ) -> None:
        debian.need(*debian.RTSP_PACKAGES)
        wanted = {"port": port, "path": path, "width": size[0], "height": size[1], "fps": fps}
        wanted |= {"user": user, "password": password, "clip": str(clip) if clip is not None else None}
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(Path(__file__).with_name("rtsp_server.py")), json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._pump, daemon=True)
        self._reader.start()
        self.port = int(self._expect("PORT").split()[1])
        self.url = f"rtsp://127.0.0.1:{self.port}{path}"

    def stall(self) -> None:
        """Send nothing more, but keep every connection open."""
        self._command("stall")

    def resume(self) -> None:
        """Send again."""
        self._command("resume")

    def vanish(self) -> None:
        """Be gone at once, as a camera without power."""
        self._process.kill()
        self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vanish()
        self._reader.join(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _command(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._expect("OK")

    def _expect(self, start: str) -> str:
        line = self._lines.get(timeout=20)
        if not line.startswith(start):
            raise RuntimeError(f"the RTSP server said {line!r} instead of {start}")
        return line

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())


class ScriptedSource:
    """A live camera whose pictures come when the test says; `hang` blocks its reader as a driver may."""

    def __init__(self, *, size: tuple[int, int] = (64, 48), kind: SourceKind = SourceKind.V4L2) -> None:
        self.info = StreamInfo(kind, *size, "rawvideo", "gray", 10.0, None)
        self.progress_ns = time.monotonic_ns()
        self.steps: queue.Queue[Exception | bool | None] = queue.Queue()
        self.closed = threading.Event()
        self._size = size

    def picture(self) -> None:
        """Present one picture."""
        self.steps.put(True)

    def end(self) -> None:
        """End, as a file does."""
        self.steps.put(None)

    def fail(self, problem: Exception) -> None:
        """Fail with this error."""
        self.steps.put(problem)

    def shots(self) -> Iterator[Shot]:
        width, height = self._size
        index = 0
        while (step := self.steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            picture = av.VideoFrame.from_ndarray(
                np.full((height, width), index % 256, np.uint8), format="gray"
            )
            picture.pts, picture.time_base = index, Fraction(1, 10)
            self.progress_ns = time.monotonic_ns()
            yield Shot(picture, self.progress_ns, index / 10)
            index += 1

    def close(self) -> None:
        self.closed.set()


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.01)


def read_frames(capture: Capture, count: int, seconds: float) -> list[Frame]:
    """The next `count` frames; fails after `seconds`, and when any was dropped."""
    deadline = time.monotonic() + seconds
    frames: list[Frame] = []
    while len(frames) < count:
        found = capture.read(0.1)
        assert not isinstance(found, Dropped), f"{found} at frame {len(frames)}"
        if found is not None:
            frames.append(found)
        assert time.monotonic() < deadline, f"{len(frames)} of {count} frames in {seconds} s"
    return frames


def read_all(capture: Capture, seconds: float) -> list[Frame | Dropped]:
    """Everything until the capture is over."""
    deadline = time.monotonic() + seconds
    found: list[Frame | Dropped] = []
    while not capture.is_over:
        item = capture.read(0.1)
        if item is not None:
            found.append(item)
        assert time.monotonic() < deadline, f"not over within {seconds} s"
    return found
