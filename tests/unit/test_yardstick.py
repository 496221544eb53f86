"""What sending everything would have cost."""

from __future__ import annotations

from pathlib import Path

import av

from edge_agent.config import CameraSettings
from edge_agent.sources import open_source
from edge_agent.yardstick import SAMPLE_EVERY_NS, Yardstick

CLIP = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"


def test_the_sources_own_bytes_and_a_jpeg_now_and_then() -> None:
    source = open_source(CameraSettings(name="clip", source=str(CLIP), hardware_decode="off"))
    yardstick = Yardstick()
    for frame, shot in zip(range(25), source.shots(), strict=False):
        yardstick.add(shot.picture, shot.coded_bytes, frame * SAMPLE_EVERY_NS // 10)
    source.close()
    with av.open(str(CLIP)) as container:
        sizes = [packet.size for packet in container.demux(video=0)]
    assert sum(sizes[:25]) <= yardstick.source_bytes <= sum(sizes[:30])
    assert yardstick.jpeg_samples == 3
    # A JPEG of a street of this size has some 100 KB.
    assert 40_000 < yardstick.jpeg_bytes / yardstick.jpeg_samples < 200_000


def test_what_is_not_video_has_no_bytes() -> None:
    source = open_source(CameraSettings(name="pattern", source="pattern:320x240@10"))
    yardstick = Yardstick()
    for shot, _ in zip(source.shots(), range(3), strict=False):
        yardstick.add(shot.picture, shot.coded_bytes)
    assert yardstick.source_bytes == 0
    assert yardstick.jpeg_samples == 1
