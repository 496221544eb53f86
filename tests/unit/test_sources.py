"""Sources: what they read, and the one line they give when they cannot."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from edge_agent import hardware, pattern
from edge_agent.address import SourceKind, kind_of, with_credentials, without_credentials
from edge_agent.config import CameraSettings
from edge_agent.errors import SourceError, SourceInvalid, SourceUnavailable
from edge_agent.source_errors import explain
from edge_agent.sources import Shot, open_source

STREET = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"


def take(source: str, count: int | None = None, **settings: Any) -> list[Shot]:
    opened = open_source(CameraSettings(name="a", source=source, **settings))
    try:
        return list(itertools.islice(opened.shots(), count))
    finally:
        opened.close()


def write_clip(path: Path, frames: int) -> Path:
    """A small clip at 10 frames a second, cut from the test pattern."""
    drawn = pattern.Pattern(pattern.parse("pattern:64x48@10"))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            container.mux(video.encode(drawn.picture(index)))
        container.mux(video.encode())
    return path


def write_image(path: Path, value: int) -> None:
    assert cv2.imwrite(str(path), np.full((48, 64, 3), value, np.uint8))


def test_street_clip_is_whole() -> None:
    assert STREET.stat().st_size <= 1_000_000
    opened = open_source(CameraSettings(name="a", source=str(STREET)))
    info = opened.info
    assert (info.kind, info.width, info.height) == (SourceKind.FILE, 768, 576)
    assert (info.codec, info.pixel_format, info.declared_fps) == ("h264", "yuv420p", 10)
    shots = list(opened.shots())
    opened.close()
    assert np.allclose([shot.media_s for shot in shots], np.arange(300) / 10)


def test_a_file_can_loop(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "clip.mp4", 7))
    assert len(take(clip)) == 7
    shots = take(clip, 17, loop=True)
    assert np.allclose([shot.media_s for shot in shots], np.arange(17) / 10)
    assert np.array_equal(shots[0].picture.to_ndarray(), shots[14].picture.to_ndarray())


def test_a_truncated_file_gives_what_it_has(tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(STREET.read_bytes()[:300_000])
    assert 30 < len(take(str(cut))) < 200


def test_folder_in_order_of_names_and_past_a_broken_image(tmp_path: Path) -> None:
    # % would make FFmpeg look for a numbered series.
    folder = tmp_path / "100%d"
    folder.mkdir()
    for name, value in (("b.png", 100), ("a%03d.png", 50), ("c.bmp", 150)):
        write_image(folder / name, value)
    (folder / "bb.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not an image either")
    shots = take(str(folder), fps=4)
    assert [round(float(shot.picture.to_ndarray(format="gray").mean())) for shot in shots] == [50, 100, 150]
    assert [shot.media_s for shot in shots] == [0, 0.25, 0.5]
    assert len(take(str(folder), 8, loop=True)) == 8


def test_pattern_is_deterministic_and_moves_a_little() -> None:
    first, again = (take("pattern:320x240@10", 30) for _ in range(2))
    pictures = [shot.picture.to_ndarray() for shot in first]
    assert all(
        np.array_equal(one, other.picture.to_ndarray()) for one, other in zip(pictures, again, strict=True)
    )
    luma = [picture[:240].astype(int) for picture in pictures]
    changed = np.abs(luma[0] - luma[20]) > 25
    assert 0.005 < changed.mean() < 0.3
    # Sensor noise everywhere, but little of it.
    assert 0.5 < np.abs(luma[0] - luma[1]).mean() < 8
    assert first[10].media_s == pytest.approx(1.0)


BAD_FILES = {"notes.txt": b"hello\n" * 200, "clip.mp4": b"\0" * 5000, "empty.mp4": b""}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_not_video(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name])
    with pytest.raises(SourceInvalid, match=r"not a video file|is empty") as problem:
        take(str(path))
    assert str(path) in str(problem.value)


@pytest.mark.parametrize(
    ("source", "kind", "text"),
    [
        ("/nowhere/clip.mp4", SourceInvalid, "no such file"),
        ("http://u:secret@host/x?token=secret", SourceInvalid, "http://host/x: http:// cannot be opened"),
        ("rtsp://u:secret@:x/", SourceInvalid, "not an address"),
        ("rtsp://u:secret@127.0.0.1:9/a?p=secret", SourceUnavailable, "connection refused"),
        ("rtsp://u:secret@no-such-host.invalid/", SourceUnavailable, "cannot be reached"),
        ("/dev/video99", SourceUnavailable, "no such camera; is it plugged in"),
        ("/dev/null", SourceInvalid, "not a camera that captures video"),
        ("pattern:640x480", SourceInvalid, "write pattern:WIDTHxHEIGHT@FPS"),
        ("pattern:641x480@5", SourceInvalid, "both sides must be even"),
        ("pattern:640x480@0", SourceInvalid, "frames a second"),
    ],
)
def test_one_clear_line(source: str, kind: type[SourceError], text: str) -> None:
    with pytest.raises(kind, match=text) as problem:
        take(source, 1)
    message = str(problem.value)
    assert "secret" not in message
    assert "\n" not in message
    assert problem.value.retryable is (kind is SourceUnavailable)
    assert problem.value.__cause__ is None


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SourceInvalid, match="no readable image in this folder"):
        take(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "code", "error", "text"),
    [
        (SourceKind.V4L2, 16, SourceUnavailable, "in use by another program"),
        (SourceKind.V4L2, 13, SourceInvalid, "group `video`"),
        (SourceKind.V4L2, 19, SourceUnavailable, "is it plugged in"),
        (SourceKind.V4L2, 5, SourceUnavailable, "Input/output error"),
        (SourceKind.RTSP, 113, SourceUnavailable, "No route to host"),
        (SourceKind.FILE, 5, SourceInvalid, "Input/output error"),
    ],
)
def test_what_the_system_says_is_explained(
    kind: SourceKind, code: int, error: type[SourceError], text: str
) -> None:
    with pytest.raises(av.error.FFmpegError) as raised:
        av.error.err_check(-code, "rtsp://u:secret@host/")
    explained = explain(kind, "shown", raised.value, 5)
    assert type(explained) is error
    assert text in str(explained)
    assert "secret" not in str(explained)


def test_addresses() -> None:
    assert kind_of("RTSP://host/x") is SourceKind.RTSP
    assert kind_of("/dev/video0") is SourceKind.V4L2
    assert kind_of(str(STREET)) is SourceKind.FILE
    assert kind_of(str(STREET.parent)) is SourceKind.FOLDER
    assert (
        with_credentials("rtsp://host:554/a?b=1", "u@x", "p:/?") == "rtsp://u%40x:p%3A%2F%3F@host:554/a?b=1"
    )
    assert with_credentials("rtsp://old:pw@host/a", None, "new") == "rtsp://old:new@host/a"
    assert with_credentials("rtsp://host/a", None, None) == "rtsp://host/a"
    assert without_credentials("rtsp://u:p@host:554/a?password=p") == "rtsp://host:554/a"
    assert without_credentials("/a/file@home.mp4") == "/a/file@home.mp4"


def test_no_hardware_decoder_opens_without_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.accelerator.cache_clear()
    monkeypatch.setattr(hardware, "_NODES", {"cuda": "/dev/null", "drm": "/dev/null"})
    monkeypatch.setattr(hardware, "_has_v4l2_decoder", lambda: True)
    try:
        assert hardware.accelerator() is None
        shots = take(str(STREET), 3)
        assert len(shots) == 3
        opened = open_source(CameraSettings(name="a", source=str(STREET)))
        assert opened.info.hardware is None
        opened.close()
    finally:
        hardware.accelerator.cache_clear()


def test_pictures_can_come_from_a_decoder_beside_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a V4L2 memory-to-memory decoder does; FFmpeg's software decoder stands in its place.
    def beside(stream: Any) -> Any:
        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata = stream.codec_context.extradata
        decoder.width, decoder.height = stream.codec_context.width, stream.codec_context.height
        decoder.pix_fmt = "yuv420p"
        return decoder

    plain = take(str(STREET), 50)
    monkeypatch.setattr(hardware, "v4l2_decoder", beside)
    other = take(str(STREET), 50)
    assert [shot.media_s for shot in other] == [shot.media_s for shot in plain]
    assert all(
        np.array_equal(one.picture.to_ndarray(), two.picture.to_ndarray())
        for one, two in zip(plain, other, strict=True)
    )
    assert len(take(str(STREET))) == 300
