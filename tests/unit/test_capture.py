"""Capture: numbering, losses, reconnecting, the watchdog. A scripted camera stands where a V4L2 one would."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_agent.capture import CameraState, Capture
from edge_agent.config import CameraSettings
from edge_agent.errors import SourceInvalid, SourceUnavailable
from edge_agent.frame import Frame
from edge_agent.handoff import Dropped
from edge_agent.pacing import Backoff
from edge_agent.probe import probe
from edge_agent.sources import Source
from tests.support.cameras import ScriptedSource, SystemClock, read_all, read_frames, wait_for

STREET = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"

States = list[tuple[CameraState, str]]


class Opener:
    """Hands out what the test put in."""

    def __init__(self, *results: ScriptedSource | Exception) -> None:
        self.results = list(results)
        self.cameras = [result for result in results if isinstance(result, ScriptedSource)]

    def __call__(self, _settings: CameraSettings) -> Source:
        result = self.results.pop(0) if self.results else SourceUnavailable("nothing more")
        if isinstance(result, Exception):
            raise result
        return result


@contextmanager
def running(
    source: str = "/dev/video0", opener: Opener | None = None, **settings: Any
) -> Iterator[tuple[Capture, States]]:
    states: States = []
    queue_frames = settings.pop("queue_frames", 4)
    capture = Capture(
        CameraSettings(name="front", source=source, **settings),
        SystemClock(),
        lambda state, message: states.append((state, message)),
        queue_frames=queue_frames,
        backoff=lambda: Backoff(0.01, 0.05),
        **({"opener": opener} if opener is not None else {}),
    )
    capture.start()
    try:
        yield capture, states
    finally:
        for camera in opener.cameras if opener is not None else []:
            camera.end()
        capture.stop()


def test_a_slow_reader_learns_of_every_lost_frame() -> None:
    camera = ScriptedSource()
    with running(opener=Opener(camera)) as (capture, _):
        for _ in range(50):
            camera.picture()
        wait_for(lambda: capture.stats().frames_captured == 50, 5, "50 frames")
        wait_for(lambda: capture.stats().frames_dropped == 46, 5, "46 losses")
        lost = capture.read(1)
        assert isinstance(lost, Dropped)
        assert (lost.first, lost.last, lost.frames, lost.reason) == (1, 46, 46, "overload")
        assert lost.first_capture.monotonic_ns < lost.last_capture.monotonic_ns
        assert lost.first_capture.wall_ns < lost.last_capture.wall_ns
        frames = read_frames(capture, 4, 1)
        assert [frame.sequence for frame in frames] == [47, 48, 49, 50]
        # The frame that said "opened" was lost; the first that is processed says it.
        assert [frame.opened for frame in frames] == [True, False, False, False]


def test_sequence_goes_on_over_a_reconnect() -> None:
    first, second = ScriptedSource(), ScriptedSource()
    opener = Opener(first, SourceUnavailable("unplugged"), SourceInvalid("refused while booting"), second)
    with running(opener=opener) as (capture, states):
        first.picture()
        first.picture()
        assert [f.sequence for f in read_frames(capture, 2, 5)] == [1, 2]
        first.fail(SourceUnavailable("pulled out"))
        second.picture()
        second.picture()
        frames = read_frames(capture, 2, 5)
        assert [(frame.sequence, frame.opened) for frame in frames] == [(3, True), (4, False)]
        assert first.closed.is_set()
        assert capture.stats().reconnects == 3
        assert [state for state, _ in states] == [
            CameraState.LIVE,
            CameraState.RECONNECTING,
            CameraState.RECONNECTING,
            CameraState.RECONNECTING,
            CameraState.LIVE,
        ]


def test_a_read_that_hangs_in_a_driver_is_left_behind() -> None:
    stuck, fresh = ScriptedSource(), ScriptedSource()
    with running(opener=Opener(stuck, fresh), stall_timeout_s=1) as (capture, states):
        stuck.picture()
        read_frames(capture, 1, 5)
        began = time.monotonic()
        wait_for(lambda: states[-1][0] is CameraState.RECONNECTING, 5, "the stall is noticed")
        assert 1 <= time.monotonic() - began < 2
        assert states[-1][1] == "/dev/video0: nothing came for 1 s"
        # What comes out of the old reader later belongs to nobody.
        stuck.picture()
        wait_for(stuck.closed.is_set, 5, "the old reader gives the camera back")
        fresh.picture()
        (frame,) = read_frames(capture, 1, 5)
        assert (frame.sequence, frame.opened) == (2, True)


def test_a_bug_in_a_source_is_not_the_end() -> None:
    broken, good = ScriptedSource(), ScriptedSource()
    broken.fail(KeyError("rtsp://u:secret@host"))
    good.picture()
    with running(opener=Opener(broken, good)) as (capture, states):
        assert read_frames(capture, 1, 5)[0].sequence == 1
        assert states[0] == (CameraState.RECONNECTING, "/dev/video0: reading failed (KeyError)")


def test_what_needs_a_person_is_said() -> None:
    with running("/nowhere/clip.mp4") as (capture, states):
        wait_for(lambda: capture.is_over, 5, "over")
        assert [state for state, _ in states] == [CameraState.FAILED]
        assert "no such file" in states[0][1]
        assert capture.read(0) is None


def test_stop_is_quick_and_drops_no_number() -> None:
    capture = Capture(CameraSettings(name="a", source=str(STREET), realtime=False), SystemClock())
    capture.start()
    wait_for(lambda: capture.stats().fps > 0, 5, "frames")
    began = time.monotonic()
    capture.stop()
    assert time.monotonic() - began < 1
    found = read_all(capture, 5)
    assert len(found) == capture.stats().frames_captured
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("-a")]


def test_a_file_that_need_not_be_live_waits_for_its_reader() -> None:
    with running(str(STREET), realtime=False) as (capture, states):
        found = read_all(capture, 30)
        assert [item.sequence for item in found if isinstance(item, Frame)] == list(range(1, 301))
        assert [state for state, _ in states] == [CameraState.LIVE, CameraState.ENDED]


def test_a_file_plays_in_real_time() -> None:
    with running(str(STREET), queue_frames=20) as (capture, _):
        frames = read_frames(capture, 8, 5)
        gaps = [(b.monotonic_ns - a.monotonic_ns) / 1e9 for a, b in itertools.pairwise(frames)]
        assert gaps == pytest.approx([0.1] * 7, abs=0.001)
        # Stamped with the moment at which it was due, and handed over soon after.
        assert 0 <= time.monotonic_ns() - frames[-1].monotonic_ns < 50e6
        assert capture.stats().fps == pytest.approx(10, rel=0.05)


def test_a_slow_pattern_is_not_a_stall(tmp_path: Path) -> None:
    with running("pattern:64x48@0.4", stall_timeout_s=1) as (capture, states):
        read_frames(capture, 2, 6)
        assert [state for state, _ in states] == [CameraState.LIVE]


def test_gate_picture_comes_from_the_substream() -> None:
    with running("pattern:320x240@20", substream="pattern:64x48@20", queue_frames=100) as (capture, _):
        frames = read_frames(capture, 20, 10)
        assert frames[-1].gate_luma().shape == (48, 64)
        assert frames[-1].luma().shape == (240, 320)


def test_probe() -> None:
    report = probe(CameraSettings(name="a", source=str(STREET)), SystemClock(), seconds=0.6)
    assert report.ok
    assert report.fps == pytest.approx(10, rel=0.1)
    both = CameraSettings(name="a", source="pattern:64x48@20", substream="/dev/video99")
    report = probe(both, SystemClock(), seconds=0.3)
    assert report.problem is None
    assert not report.ok
    assert report.substream is not None
    assert "is it plugged in" in (report.substream.problem or "")
    report = probe(CameraSettings(name="a", source="ftp://u:secret@host/x"), SystemClock())
    assert "ftp:// cannot be opened" in (report.problem or "")
    assert "secret" not in repr(report)


def test_backoff_doubles_within_its_spread() -> None:
    backoff = Backoff(1, 8)
    delays = [backoff() for _ in range(6)]
    for delay, nominal in zip(delays, [1, 2, 4, 8, 8, 8], strict=True):
        assert 0.75 * nominal <= delay <= 1.25 * nominal
    backoff.reset()
    assert backoff() <= 1.25
