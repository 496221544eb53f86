"""One access unit out for each picture in, which decodes to the same picture, wherever it came from."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.encode import (
    Encoder,
    fits,
    open_encoder,
)
from eyeline.coding import jpeg_quantiser, without_user_data
from eyeline.errors import EncodeFailed
from eyeline.ladder import Rung
from eyeline.pictures import Scaler, coded_size, colours
from eyeline.v1 import frame_pb2 as pb
from eyeline_models.letterbox import Letterbox
from tests.support.redacted import as_it_is
from tests.support.scenes import as_luma, background, picture, with_box

CLIP = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"
DECODERS = {"h264": "h264", "hevc": "hevc", "jpeg": "mjpeg", "webp": "webp"}


def rung(codec: Any = "h264", width: int = 416, crf: int = 20, quality: int = 90) -> Rung:
    return Rung(codec, width, crf, quality, 5.0)


def street(frames: int) -> list[av.VideoFrame]:
    with av.open(str(CLIP)) as container:
        container.streams.video[0].thread_type = "SLICE"
        return [shown for shown, _ in zip(container.decode(video=0), range(frames), strict=False)]


def plane(shown: av.VideoFrame, index: int = 0) -> NDArray[np.uint8]:
    part: Any = shown.planes[index]
    return np.frombuffer(part, np.uint8).reshape(part.height, part.line_size)[:, : part.width].copy()


def decode(codec: str, units: Sequence[bytes]) -> list[av.VideoFrame]:
    decoder = av.CodecContext.create(DECODERS[codec], "r")
    decoder.thread_count = 1
    shown: list[Any] = [frame for unit in units for frame in decoder.decode(av.Packet(unit))]
    return [*shown, *decoder.decode(None)]


def code(encoder: Encoder, pictures: Sequence[av.VideoFrame], keyframes: Sequence[int] = (0,)) -> list[bytes]:
    return [encoder.encode(as_it_is(shown), keyframe=n in keyframes) for n, shown in enumerate(pictures)]


@pytest.mark.parametrize(("codec", "least_db"), [("h264", 36), ("hevc", 36), ("jpeg", 33), ("webp", 36)])
def test_decodes_to_the_same_pictures_one_for_one(codec: str, least_db: float) -> None:
    shown = street(40)
    encoder = open_encoder(rung(codec), shown[0])
    still = codec in {"jpeg", "webp"}
    units = code(encoder, shown, range(40) if still else (0, 17))
    decoded = decode(codec, units)
    assert len(decoded) == len(units) == 40
    made = encoder.picture_format
    scaler = Scaler((made.coded_width_px, made.coded_height_px))
    for source, result in zip(shown, decoded, strict=True):
        assert (result.width, result.height) == (made.coded_width_px, made.coded_height_px)
        scaled = bgr(scaler.scale(source), *colours(source))
        assert cv2.PSNR(scaled, bgr(result, made.color_matrix, made.color_range)) > least_db
    encoder.close()


def bgr(shown: av.VideoFrame, matrix: int, range_: int) -> NDArray[np.uint8]:
    """By the formula, from Rec. ITU-R BT.601 and BT.709, chroma brought to size bilinearly."""
    luma, blue, red = (plane(shown, index).astype(np.float64) for index in range(3))
    size = luma.shape[::-1]
    blue, red = (cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) - 128 for part in (blue, red))
    if range_ == pb.COLOR_RANGE_LIMITED:
        luma, blue, red = (luma - 16) * 255 / 219, blue * 255 / 224, red * 255 / 224
    share_r, share_b = (0.299, 0.114) if matrix == pb.COLOR_MATRIX_BT601 else (0.2126, 0.0722)
    r, b = luma + 2 * (1 - share_r) * red, luma + 2 * (1 - share_b) * blue
    g = (luma - share_r * r - share_b * b) / (1 - share_r - share_b)
    stacked = np.clip(np.rint(np.stack([b, g, r], -1)), 0, 255)
    return np.asarray(stacked, np.uint8)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_keyframes_come_when_asked_and_only_then(codec: str) -> None:
    # Hard cuts, at which an encoder left to itself would put keyframes.
    shown = [picture(as_luma(background(seed=n // 5))) for n in range(30)]
    units = code(open_encoder(rung(codec), shown[0]), shown, (0, 12, 13))
    for start in (0, 12, 13):
        # Each keyframe brings its own headers: a fresh decoder starts there.
        assert len(decode(codec, units[start:])) == 30 - start
    assert joined_late(codec, units[1:12]) == 0


def joined_late(codec: str, units: Sequence[bytes]) -> int:
    """Number of pictures that a decoder makes of units without their keyframe."""
    try:
        return len(decode(codec, units))
    except av.error.FFmpegError:
        return 0


def test_units_are_annex_b_without_settings_in_them() -> None:
    shown = street(2)
    first, second = code(open_encoder(rung(), shown[0]), shown)
    kinds = [unit[0] & 0x1F for unit in first.split(b"\0\0\1")[1:]]
    assert kinds == [7, 8, 5]
    assert [unit[0] & 0x1F for unit in second.split(b"\0\0\1")[1:]] == [1]
    assert b"x264" not in first
    assert without_user_data(b"\0\0\0\1\x67a\0\0\1\x06\x05zz\0\0\1\x65b") == b"\0\0\0\1\x67a\0\0\1\x65b"


def test_a_missing_packet_goes_unnoticed_by_the_decoder() -> None:
    """Why every access unit carries its chain and index: the decoder shows wrong pixels and says nothing."""
    scene = background()
    shown = [picture(as_luma(with_box(scene, 10 * n, 100, (120, 200), 230))) for n in range(30)]
    units = code(open_encoder(rung(crf=26), shown[0]), shown)
    whole = decode("h264", units)
    gap = decode("h264", units[:10] + units[11:])
    assert len(gap) == 29
    assert not any(frame.is_corrupt for frame in gap)
    damage = [cv2.PSNR(plane(a), plane(b)) for a, b in zip(whole[11:], gap[10:], strict=True)]
    assert min(damage) < 32


@pytest.mark.parametrize(
    ("source", "longer", "expected"),
    [
        ((1280, 720), 416, (416, 234)),
        ((768, 576), 416, (416, 312)),
        ((720, 1280), 416, (234, 416)),
        ((640, 480), 640, (640, 480)),
        ((320, 240), 416, (320, 240)),
        ((639, 479), 4096, (640, 480)),
        ((1919, 1081), 416, (416, 234)),
        ((3000, 5), 416, (416, 2)),
    ],
)
def test_coded_size(source: tuple[int, int], longer: int, expected: tuple[int, int]) -> None:
    width, height = coded_size(source, longer)
    assert (width, height) == expected
    assert width % 2 == height % 2 == 0


@pytest.mark.parametrize("size", [(1280, 720), (767, 575), (501, 1003)])
def test_boxes_map_back_to_source_pixels(size: tuple[int, int]) -> None:
    width, height = size
    scene = np.full((height, width), 60, np.float32)
    box = (width * 0.25, height * 0.5, width * 0.75, height * 0.9)
    shown = picture(
        as_luma(with_box(scene, box[0], box[1], (round(box[2] - box[0]), round(box[3] - box[1])), 200))
    )
    encoder = open_encoder(rung(crf=4), shown)
    (decoded,) = decode("h264", code(encoder, [shown]))
    bright = plane(decoded) > 130
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    made = encoder.picture_format
    assert (made.source_width_px, made.source_height_px) == size
    assert made.scale_x == width / made.coded_width_px
    assert made.scale_y == height / made.coded_height_px
    found = (
        columns[0] * made.scale_x,
        rows[0] * made.scale_y,
        (columns[-1] + 1) * made.scale_x,
        (rows[-1] + 1) * made.scale_y,
    )
    assert np.allclose(found, box, atol=max(made.scale_x, made.scale_y) * 0.75)


def test_scaling_is_the_models_own() -> None:
    (shown,) = street(1)
    size = coded_size((shown.width, shown.height), 416)
    fitted = Letterbox.fit((shown.width, shown.height), size, centred=False, fill=0)
    assert fitted.scaled == size
    matrix, range_ = colours(shown)
    direct = fitted.apply(bgr(shown, matrix, range_))
    assert cv2.PSNR(direct, bgr(Scaler(size).scale(shown), matrix, range_)) > 38


@pytest.mark.parametrize(
    ("pixels", "space", "range_", "expected"),
    [
        ("yuv420p", 2, 0, (pb.COLOR_MATRIX_BT601, pb.COLOR_RANGE_LIMITED)),
        ("yuv420p", 1, 1, (pb.COLOR_MATRIX_BT709, pb.COLOR_RANGE_LIMITED)),
        ("yuv420p", 6, 2, (pb.COLOR_MATRIX_BT601, pb.COLOR_RANGE_FULL)),
        ("yuvj420p", 5, 0, (pb.COLOR_MATRIX_BT601, pb.COLOR_RANGE_FULL)),
        ("yuv444p", 1, 2, (pb.COLOR_MATRIX_BT709, pb.COLOR_RANGE_FULL)),
    ],
)
@pytest.mark.parametrize("codec", ["h264", "hevc", "jpeg", "webp"])
def test_colours_survive(pixels: str, space: int, range_: int, expected: tuple[int, int], codec: str) -> None:
    shown = picture(as_luma(background()), pixels)
    shown.colorspace, shown.color_range = space, range_
    assert colours(shown) == expected
    encoder = open_encoder(rung(codec, width=640, crf=8, quality=95), shown)
    (decoded,) = decode(codec, code(encoder, [shown]))
    made = encoder.picture_format
    if codec in {"h264", "hevc"}:
        # In the stream itself too, for whoever has nothing but the stream.
        assert (made.color_matrix, made.color_range) == expected
        assert int(decoded.colorspace) == (1 if expected[0] == pb.COLOR_MATRIX_BT709 else 5)
        assert int(decoded.color_range) == (2 if expected[1] == pb.COLOR_RANGE_FULL else 1)
    # Greens beyond what a format holds are clipped at both ends; on average nothing may shift.
    difference = bgr(shown, *expected).astype(float) - bgr(decoded, made.color_matrix, made.color_range)
    assert np.abs(difference.mean((0, 1))).max() < 1.5
    assert np.abs(difference).mean() < 4


def test_high_definition_that_does_not_say_is_bt709() -> None:
    assert colours(av.VideoFrame(1280, 720, "yuv420p"))[0] == pb.COLOR_MATRIX_BT709
    assert colours(av.VideoFrame(720, 1280, "yuv420p"))[0] == pb.COLOR_MATRIX_BT709
    assert colours(av.VideoFrame(720, 576, "yuv420p"))[0] == pb.COLOR_MATRIX_BT601


@pytest.mark.parametrize("pixels", ["nv12", "yuv422p", "yuyv422", "rgb24", "bgr24", "gray", "yuv420p10le"])
def test_other_pixel_formats(pixels: str) -> None:
    truth = picture(as_luma(background()))
    shown = truth.reformat(format=pixels)
    encoder = open_encoder(rung(crf=10), shown)
    (decoded,) = decode("h264", code(encoder, [shown]))
    made = encoder.picture_format
    # Grey is full range, and stays so; everything else here is limited.
    assert made.color_range == (pb.COLOR_RANGE_FULL if pixels == "gray" else pb.COLOR_RANGE_LIMITED)
    expected = bgr(Scaler((416, 312)).scale(truth), pb.COLOR_MATRIX_BT601, pb.COLOR_RANGE_LIMITED)
    found = bgr(decoded, made.color_matrix, made.color_range)
    if pixels == "gray":
        expected, found = (cv2.cvtColor(part, cv2.COLOR_BGR2GRAY) for part in (expected, found))
        assert np.abs(expected.astype(float) - found).mean() < 8  # no colour left to weigh in
    else:
        assert cv2.PSNR(expected, found) > 33


def test_source_is_left_alone() -> None:
    (shown,) = street(1)
    before = plane(shown)
    code(open_encoder(rung("jpeg"), shown), [shown])
    code(open_encoder(rung(), shown), [shown])
    assert np.array_equal(plane(shown), before)


def test_encoder_knows_what_it_was_made_for() -> None:
    shown = picture(as_luma(background()))
    encoder = open_encoder(rung(), shown)
    assert fits(encoder, shown)
    assert not fits(encoder, picture(as_luma(background(320, 240))))
    full = picture(as_luma(background()))
    full.color_range = 2
    assert not fits(encoder, full)
    assert fits(open_encoder(rung("jpeg"), shown), full)


def test_a_picture_of_another_kind_is_an_error_of_ours() -> None:
    encoder = open_encoder(rung("jpeg"), picture(as_luma(background())))
    with pytest.raises(EncodeFailed, match="keyframe"):
        encoder.encode(as_it_is(picture(as_luma(background()))), keyframe=False)


def test_lower_crf_and_higher_quality_cost_more() -> None:
    shown = street(10)
    sizes = [sum(map(len, code(open_encoder(rung(crf=crf), shown[0]), shown))) for crf in (22, 28, 34)]
    assert sizes == sorted(sizes, reverse=True)
    for codec in ("jpeg", "webp"):
        stills = [
            len(code(open_encoder(rung(codec, quality=q), shown[0]), shown[:1])[0]) for q in (95, 80, 40)
        ]
        assert stills == sorted(stills, reverse=True)


@pytest.mark.parametrize("quality", [50, 80, 90])
def test_jpeg_quality_means_what_it_does_elsewhere(quality: int) -> None:
    (shown,) = street(1)
    (unit,) = code(open_encoder(rung("jpeg", quality=quality), shown), [shown])
    small = cv2.resize(shown.to_ndarray(format="bgr24"), (416, 312))
    usual = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    assert 0.6 < len(unit) / len(usual) < 1.4
    assert jpeg_quantiser(1) == 31
    assert jpeg_quantiser(100) == 1


def test_after_a_pause_a_keyframe_costs_many_times_the_next_picture() -> None:
    """Why idle time alone starts no chain."""
    scene, random = background(), np.random.default_rng(2)
    encoder = open_encoder(rung(crf=28), picture(as_luma(scene)))
    before = [picture(as_luma(scene, noise=3, random=random)) for _ in range(5)]
    code(encoder, before)
    # An hour later: other light, and somebody came in.
    after = picture(
        as_luma(with_box(scene * np.float32(1.05), 200, 150, (60, 140), 30), noise=3, random=random)
    )
    continued = encoder.encode(as_it_is(after), keyframe=False)
    restarted = open_encoder(rung(crf=28), after).encode(as_it_is(after), keyframe=True)
    assert len(restarted) > 1.5 * len(continued)


@pytest.mark.parametrize(("effort", "every"), [("low", 2), ("high", 4)])
def test_what_moves_is_shown_better_than_libx264_left_to_itself_would(effort: Any, every: int) -> None:
    """At about the same bytes for all that follows the keyframe."""
    shown = street(60)[::every]
    coded = code(open_encoder(Rung("h264", 416, 34, 90, 2.5, effort), shown[0]), shown)
    scaler = Scaler((416, 312))
    wanted = [plane(scaler.scale(one)).astype(float) for one in shown]
    itself: Any = av.CodecContext.create("libx264", "w")
    itself.width, itself.height, itself.pix_fmt = 416, 312, "yuv420p"
    itself.time_base, itself.thread_count = Fraction(1, 25), 1
    preset = "slower" if effort == "high" else "veryfast"
    itself.options = {"preset": preset, "tune": "zerolatency", "crf": "34", "psy": "0"}
    usual = []
    for index, one in enumerate(shown):
        scaled = scaler.scale(one)
        scaled.pts = index
        usual += [bytes(packet) for packet in itself.encode(scaled)]
    assert len(usual) == len(coded)
    sizes = [sum(map(len, units[1:])) for units in (coded, usual)]
    assert sizes[0] < 1.12 * sizes[1]
    errors = [moving_error(wanted, decode("h264", units)) for units in (coded, usual)]
    assert errors[0] < 0.85 * errors[1]


def moving_error(wanted: Sequence[NDArray[np.float64]], decoded: Sequence[av.VideoFrame]) -> float:
    """Mean squared error of the luma around what changed since the picture before."""
    errors = []
    for before, now, seen in zip(wanted, wanted[1:], decoded[1:], strict=False):
        moving = cv2.dilate(np.abs(before - now), np.ones((9, 9))) > 40
        errors.append(((plane(seen) - now)[moving] ** 2).mean())
    return float(np.mean(errors))
