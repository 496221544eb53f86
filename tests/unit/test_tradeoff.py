"""The trade-off bench's arithmetic: envelopes, bytes at equal F1, BD-rate, bytes on the wire."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.score import Bands
from benchmarks.tradeoff import __main__ as command
from benchmarks.tradeoff import points, report
from benchmarks.tradeoff.curve import bd_rate, bytes_at, envelope
from benchmarks.tradeoff.points import Kind, Point
from benchmarks.tradeoff.wire import envelope_bytes, framed
from eyeline.envelope import encode_envelope
from eyeline.errors import ConfigError
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections


def test_an_envelope_keeps_what_nothing_beats() -> None:
    found = [(100, 0.9), (50, 0.8), (200, 0.85), (300, 0.97), (50, 0.7)]
    assert envelope(found) == [(50, 0.8), (100, 0.9), (300, 0.97)]


def test_bytes_at_equal_f1_are_interpolated_in_logarithms() -> None:
    curve = [(100.0, 0.9), (400.0, 1.0)]
    assert bytes_at(curve, 0.95) == pytest.approx(200)
    assert bytes_at(curve, 0.5) == 100, "below the worst the cheapest counts"
    assert bytes_at(curve[:1], 0.95) is None
    assert bytes_at([], 0.95) is None


def test_half_the_bytes_everywhere_is_a_bd_rate_of_minus_fifty() -> None:
    theirs = [(100.0, 0.9), (200.0, 0.94), (400.0, 0.97), (800.0, 0.98)]
    ours = [(size / 2, f1) for size, f1 in theirs]
    assert bd_rate(ours, theirs) == pytest.approx(-50)
    assert bd_rate(theirs, theirs) == pytest.approx(0)
    assert bd_rate(ours[:1], theirs) is None


def test_every_started_segment_pays_for_its_headers() -> None:
    assert [framed(size) for size in (1, 1400, 1401)] == [41, 1440, 1481]


def test_a_message_costs_more_than_its_payload() -> None:
    message = pb.FrameEnvelope(
        schema_major=1,
        tenant="acme",
        site="yard",
        device="box1",
        camera="gate",
        epoch=pb.Epoch(counter=1, random_id=bytes(8)),
        items=[pb.FrameItem(range=pb.FrameRange(first_sequence=1, last_sequence=9, kind=pb.RANGE_KIND_IDLE))],
    )
    beyond = envelope_bytes(message, 12_345) - len(encode_envelope(message))
    assert 300 < beyond < 500


def _point(kind: Kind, size: float, f1: float) -> Point:
    return Point("p", kind, size, f1, f1, f1, f1, f1, 1.0, {}, {})


def test_summary_compares_the_curves() -> None:
    found = [
        _point("jpeg", 30_000, 1.0),
        *(_point("x264", size, f1) for size, f1 in ((100, 0.9), (400, 1.0))),
        *(_point("eyeline-pixels", size, f1) for size, f1 in ((25, 0.9), (100, 1.0))),
        _point("edge", 0, 0.7),
    ]
    figures = report.summary(found)
    assert figures["x264_bytes_at_f1_95"] == pytest.approx(200)
    assert figures["ratio_vs_x264_pixels"] == pytest.approx(0.25)
    assert figures["ratio_vs_jpeg_pixels"] == pytest.approx(50 / 30_000)
    assert (figures["eyeline_bytes_at_f1_95"], figures["edge_only_f1"]) == (None, 0.7)


def test_a_point_tells_cloud_frames_apart() -> None:
    seen = Detections.build([[0, 0, 10, 10]], [0.9], [0], ["person"])
    point = points.make(
        "p",
        "eyeline",
        total_bytes=300,
        scene=cast(Any, SimpleNamespace(reference=[seen] * 3, bands=Bands())),
        answers=[seen, Detections.empty(), seen],
        provenance=["cloud", "propagated", "cloud"],
        inferences=2,
        cpu_ms={"encode": 6},
    )
    assert (point.bytes_per_frame, point.f1_cloud_frames) == (100, 1.0)
    assert point.f1 == pytest.approx(0.8)
    assert point.provenance == {"cloud": 2, "propagated": 1}
    assert point.edge_cpu_ms == {"encode": 2}


def test_an_earlier_result_of_the_same_pictures_gives_all_but_its_full_curve(tmp_path: Path) -> None:
    head = {"video": {"file": "a.avi", "fps": 10.0}, "frames": 9, "reference": {"sha256": "00"}}
    points_before = [_point("x264", 400, 1.0), _point("eyeline", 50, 0.9), _point("eyeline-pixels", 70, 0.9)]
    report.write(tmp_path / "tradeoff.json", head, points_before)
    file = tmp_path / "tradeoff.json"
    before = command._read(file)
    kept = command._of_before(file, before, head)
    assert kept == [points_before[0], points_before[2]]
    with pytest.raises(ConfigError, match="not measured on the same pictures"):
        command._of_before(file, before, head | {"frames": 8})
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"is no tradeoff\.json"):
        command._read(file)
    file.write_text("half {")
    with pytest.raises(ConfigError, match="cannot be read"):
        command._read(file)
