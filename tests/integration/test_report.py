"""`eyeline report`: the figures, and the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eyeline.reports import data, html
from eyeline.v1 import device_pb2, frame_pb2, result_pb2
from eyeline.values import Result
from tests.support.eyeline_command import run_eyeline
from tests.support.fake_api import SECOND_NS, START_NS, made_result, running_fake_api

BEGIN, END = START_NS, START_NS + 3600 * SECOND_NS


def period() -> list[result_pb2.Result]:
    """An hour of one camera: a picture each ten seconds, a minute that came late, and one that never came."""
    made = []
    for step in range(360):
        frame, captured = 1 + 100 * step, BEGIN + 10 * step * SECOND_NS
        one = made_result(frame, source_width_px=1280, source_height_px=720, coded_bytes=1000 + step)
        one.times.captured_ns, one.times.answered_ns = captured, captured + (100 + step) * 1_000_000
        one.last_captured_ns = captured
        one.detections[0].track_id = 1 + step // 60
        one.zones.add(zone="door", inside=1 + step % 3, entered=int(step % 60 == 0))
        one.lines.add(line="fence", forward=int(step % 90 == 0), backward=0)
        if 100 <= step < 106:
            one.lane = frame_pb2.LANE_BACKLOG
        idle = made_result(frame + 1, last_sequence=frame + 99, provenance=result_pb2.PROVENANCE_PROPAGATED)
        idle.times.captured_ns, idle.last_captured_ns = (
            captured + SECOND_NS // 10,
            captured + 99 * SECOND_NS // 10,
        )
        if 200 <= step < 206:
            idle.provenance, idle.reason = result_pb2.PROVENANCE_DEGRADED, "spool_full"
        made += [one, idle]
    return made


def device() -> device_pb2.Device:
    camera = device_pb2.CameraStatus(
        camera="gate", rung="h264 416px", width_px=1280, height_px=720, frames_captured=1000,
        source_bytes=5_000_000, source_codec="h264", jpeg_samples=10, jpeg_sampled_bytes=1_200_000,
    )  # fmt: skip
    return device_pb2.Device(status=device_pb2.DeviceStatus(site="yard", device="box", cameras=[camera]))


def collected() -> data.Report:
    collector = data.Collector(BEGIN, END)
    for one in period():
        collector.add(Result.from_proto(one))
    return collector.report("127.0.0.1:1", [device()])


def test_the_figures() -> None:
    (camera,) = collected().cameras
    assert camera.frames == 36_000
    assert camera.sent == 360
    assert camera.coded_bytes == sum(1000 + step for step in range(360))
    assert sum(camera.series_bytes) == camera.coded_bytes
    assert sum(camera.series_frames) == pytest.approx(36_000)
    assert len(camera.delays_ms) == 354
    kept = [100 + step for step in range(360) if not 100 <= step < 106]
    assert [camera.percentile(q) for q in (50, 99, 100)] == [kept[176], kept[350], 459]
    late, lost = camera.outages
    assert (late.late_frames, late.lost_frames) == (6, 0)
    assert (lost.late_frames, lost.lost_frames, dict(lost.reasons)) == (0, 594, {"spool_full": 594})
    assert lost.end_ns - lost.begin_ns == pytest.approx(59.8 * SECOND_NS, abs=SECOND_NS)
    assert len(camera.objects["person"]) == 6 + 1  # the tracks, and the one of the idle ranges
    assert (camera.zones["door"].forward, camera.zones["door"].most) == (6, 3)
    assert camera.lines["fence"].forward == 4
    assert camera.jpeg is not None
    assert (camera.jpeg.bytes, camera.jpeg.measured) == (120_000 * 36_000, True)
    assert camera.video is not None
    assert (camera.video.bytes, camera.video.measured) == (5000 * 36_000, True)


def test_audits_are_what_the_devices_counted() -> None:
    checked = device()
    checked.status.cameras[0].audits.CopyFrom(device_pb2.EdgeAudits(frames=20, agreed=45, extra=4, missed=6))
    collector = data.Collector(BEGIN, END)
    collector.add(Result.from_proto(period()[0]))
    report = collector.report("x:1", [checked])
    assert report.cameras[0].audits == (20, 0.9)
    assert "<td>20</td><td>0.900</td>" in html.page(report)


def test_what_no_device_measured_is_called_an_estimate() -> None:
    collector = data.Collector(BEGIN, END)
    collector.add(Result.from_proto(period()[0]))
    (camera,) = collector.report("x:1", []).cameras
    assert camera.jpeg is not None
    assert camera.jpeg.bytes == 1280 * 720 * data.JPEG_BITS_PER_PX / 8
    assert not camera.jpeg.measured
    assert "estimated" in html.page(collector.report("x:1", []))


def test_the_page_loads_nothing_and_says_what_it_measured() -> None:
    page = html.page(collected())
    assert not re.search(r"""(src|href)\s*=|url\(|@import|<script|<link""", page)
    for words in (
        "No audits:",
        "measured",
        "prefers-color-scheme:dark",
        "594 spool_full",
        "fence",
        "10 frames that the device coded",
    ):
        assert words in page
    # Hostile names stay text.
    hostile = collected()
    hostile.cameras[0].name = "<script>alert(1)</script>"
    assert "<script" not in html.page(hostile)


async def test_the_command(tmp_path: Path) -> None:
    async with running_fake_api(page=100) as api:
        api.store(*period())
        api.devices["yard", "box"] = device()
        out = tmp_path / "r.html"
        since = ("--since", "2025-10-09T08:53:20Z", "--to", "2025-10-09T09:53:20Z", "--out", str(out))
        done = await run_eyeline("report", *since, server=api.address)
        assert (done.status, done.out) == (0, f"{out}: 36000 frames, yard/gate\n"), done.err
        assert out.read_text().startswith("<!doctype html>")
        nothing = await run_eyeline("report", "--since", "1s", "--out", str(out), server=api.address)
        assert (nothing.status, nothing.err) == (1, "no results in that time\n")
