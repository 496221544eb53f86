"""Cameras over RTSP, against a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_agent.capture import CameraState, Capture
from edge_agent.config import CameraSettings
from edge_agent.pacing import Backoff
from edge_agent.probe import probe
from tests.support.cameras import RtspServer, SystemClock, read_frames, wait_for

STREET = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"
PASSWORD = "p@ss:w/rd?"


def camera(source: str, **settings: Any) -> CameraSettings:
    return CameraSettings(name="front", source=source, **settings)


@contextmanager
def running(settings: CameraSettings) -> Iterator[tuple[Capture, list[tuple[CameraState, str]]]]:
    states: list[tuple[CameraState, str]] = []
    capture = Capture(
        settings,
        SystemClock(),
        lambda state, message: states.append((state, message)),
        backoff=lambda: Backoff(0.2, 0.5),
        queue_frames=100,
    )
    capture.start()
    try:
        yield capture, states
    finally:
        capture.stop()


def reaches(states: list[tuple[CameraState, str]], state: CameraState, seconds: float = 10) -> str:
    wait_for(lambda: any(found is state for found, _ in states), seconds, f"{state}; saw {states}")
    return next(message for found, message in states if found is state)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_steady_reading(transport: str) -> None:
    with RtspServer() as server, running(camera(server.url, transport=transport)) as (capture, states):
        frames = read_frames(capture, 100, 20)
        assert [frame.sequence for frame in frames] == list(range(1, 101))
        assert [frame.opened for frame in frames] == [True] + [False] * 99
        assert frames[0].size == (320, 240)
        # Behind the burst of the opening, frames come at the camera's rate, stamped as they arrived.
        seconds = (frames[-1].monotonic_ns - frames[-76].monotonic_ns) / 1e9
        assert 2.4 < seconds < 3.6
        assert abs(frames[-1].wall_ns - time.time_ns()) < 2e9
        assert states == [(CameraState.LIVE, "320x240 h264, software decoder")]


def test_a_real_clip_with_reordered_pictures() -> None:
    with RtspServer(clip=STREET) as server, running(camera(server.url)) as (capture, _):
        frames = read_frames(capture, 20, 15)
        assert frames[0].size == (768, 576)
        stamps = [frame.monotonic_ns for frame in frames]
        assert stamps == sorted(stamps)
        assert frames[0].luma().std() > 20


def test_password_is_sent_and_never_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with RtspServer(user="viewer", password=PASSWORD) as server:
        with running(camera(server.url, user="viewer", password=PASSWORD)) as (capture, _):
            read_frames(capture, 1, 10)
        with running(camera(server.url, user="viewer", password="wr0ng")) as (capture, states):
            message = reaches(states, CameraState.FAILED)
            assert "refuses the user or the password" in message
            assert server.url in message
            assert "wr0ng" not in message
            assert capture.read(0) is None
            assert "wr0ng" not in repr(capture.stats())
    shown = "".join(capfd.readouterr())
    assert "wr0ng" not in shown
    assert PASSWORD not in shown


def test_refused_then_served() -> None:
    with RtspServer() as server:
        port = server.port
    with running(camera(f"rtsp://127.0.0.1:{port}/cam")) as (capture, states):
        assert "connection refused" in reaches(states, CameraState.RECONNECTING)
        with RtspServer(port=port):
            assert read_frames(capture, 1, 15)[0].sequence == 1


def test_unknown_path() -> None:
    with RtspServer() as server, running(camera(server.url + "x")) as (_, states):
        assert "no stream of this name" in reaches(states, CameraState.RECONNECTING)


def test_vanishing_and_returning_goes_on_with_the_sequence() -> None:
    with RtspServer() as server, running(camera(server.url)) as (capture, states):
        read_frames(capture, 5, 15)
        server.vanish()
        reaches(states, CameraState.RECONNECTING)
        before = capture.stats().last_sequence
        with RtspServer(port=server.port):
            frames = read_frames(capture, before - 5 + 3, 15)
        assert [frame.sequence for frame in frames] == list(range(6, before + 4))
        assert [frame.sequence for frame in frames if frame.opened] == [before + 1]
        assert capture.stats().reconnects >= 1


def test_a_silent_stall_is_noticed_and_mended() -> None:
    stall_timeout_s = 1.0
    with (
        RtspServer() as server,
        running(camera(server.url, stall_timeout_s=stall_timeout_s)) as (capture, states),
    ):
        read_frames(capture, 5, 15)
        server.stall()
        stalled = time.monotonic()
        message = reaches(states, CameraState.RECONNECTING)
        assert time.monotonic() - stalled < stall_timeout_s + 1
        assert "within 1 s" in message
        server.resume()
        wait_for(lambda: states[-1][0] is CameraState.LIVE, 15, "live again")
        assert states.count(states[0]) == 2


def test_substream_pictures_come_with_main_frames() -> None:
    with RtspServer(size=(640, 480)) as main, RtspServer(size=(160, 120)) as second:
        settings = camera(main.url, substream=second.url)
        with running(settings) as (capture, _):
            deadline = time.monotonic() + 15
            while True:
                frame = read_frames(capture, 1, 15)[0]
                assert frame.size == (640, 480)
                if frame.gate_picture is not None:
                    break
                assert time.monotonic() < deadline
            assert frame.gate_luma().shape == (120, 160)
            assert frame.luma().shape == (480, 640)
            second.vanish()
            # The main stream goes on without it.
            while frame.gate_picture is not None:
                frame = read_frames(capture, 1, 15)[0]
                assert time.monotonic() < deadline + 10
            assert frame.gate_luma().shape == (480, 640)


def test_probe_measures_the_frame_rate() -> None:
    with RtspServer(fps=10) as server:
        report = probe(camera(server.url), SystemClock())
        assert report.ok
        assert report.fps == pytest.approx(10, rel=0.15)
        assert report.info is not None
        assert (report.info.width, report.info.height, report.info.codec) == (320, 240, "h264")
    report = probe(camera(server.url), SystemClock())
    assert not report.ok
    assert "connection refused" in (report.problem or "")
