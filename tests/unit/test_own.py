"""The camera's own packets: with their pictures, fit for a decoder elsewhere, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_inference.answer import Answers
from cloud_inference.answered import Answered
from cloud_inference.consume import Intake, Kind
from cloud_inference.decode import ChainDecoder
from cloud_inference.feed import StreamMessage
from cloud_inference.track import Tracks
from edge_agent.batch import CameraIdentity, Moment
from edge_agent.config import AgentSettings, CameraSettings
from edge_agent.frame import Frame
from edge_agent.own import OwnPicture, own_format, split
from edge_agent.pipeline import CameraPipeline
from edge_agent.sources import open_source
from eyeline.envelope import encode_envelope
from eyeline.subjects import frame_subject
from eyeline.v1 import detection_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch
from tests.support.coded import write_clip
from tests.support.scenes import as_luma, background, picture

STEP_NS = 100_000_000


def frames_of(path: Path) -> list[Frame]:
    settings = CameraSettings(name="cam", source=str(path), hardware_decode="off")
    source = open_source(settings)
    try:
        return [
            Frame(n, n * STEP_NS, n * STEP_NS, shot.picture, opened=n == 1, own=shot.own)
            for n, shot in enumerate(source.shots(), 1)
        ]
    finally:
        source.close()


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", "mp4"), ("libx264", "ts"), ("libx264", "mkv"), ("libx265", "mp4"), ("libx265", "ts")],
)
def test_packets_decode_elsewhere_to_the_pictures_they_came_with(
    codec: str, suffix: str, tmp_path: Path
) -> None:
    frames = frames_of(write_clip(tmp_path / f"clip.{suffix}", codec))
    assert len(frames) >= 39
    decoder = ChainDecoder()
    keyframes = []
    for n, frame in enumerate(frames):
        own = frame.own
        assert isinstance(own, OwnPicture)
        assert own.index == n
        keyframes += [n] if own.keyframe else []
        unit = pb.AccessUnit(
            sequence=n + 1,
            chain_id=len(keyframes),
            chain_index=n - keyframes[-1],
            keyframe=own.keyframe,
            data=own.data,
        )
        shown: Any = decoder.decode(unit, own_format(own, frame.picture))
        kept: Any = frame.picture
        assert np.abs(shown.astype(int) - kept.to_ndarray(format="bgr24")).mean() < 1
    assert keyframes == [0, 10, 20, 30]


def test_a_decoder_can_begin_at_any_keyframe(tmp_path: Path) -> None:
    frames = frames_of(write_clip(tmp_path / "clip.mp4"))
    own = frames[20].own
    assert isinstance(own, OwnPicture)
    unit = pb.AccessUnit(sequence=1, chain_id=1, keyframe=True, data=own.data)
    assert ChainDecoder().decode(unit, own_format(own, frames[20].picture)) is not None


def test_pictures_out_of_order_are_refused(tmp_path: Path) -> None:
    frames = frames_of(write_clip(tmp_path / "clip.mp4", b_frames=2))
    assert len(frames) == 40
    refused = [frame.own for frame in frames if isinstance(frame.own, str)]
    assert refused[-1] == "the camera codes pictures out of order (B-frames)"
    # Seen within the first pictures, and then for good.
    assert all(isinstance(frame.own, str) for frame in frames[6:])


def test_other_codecs_and_other_sources_are_refused(tmp_path: Path) -> None:
    frames = frames_of(write_clip(tmp_path / "clip.mkv", "mpeg4"))
    assert {frame.own for frame in frames} == {"the camera codes mpeg4, not H.264 or HEVC"}
    assert Frame(1, 0, 0, picture(as_luma(background(64, 48)))).own == "this source has no coded pictures"


def test_units_are_split_as_they_are_framed() -> None:
    units = [b"\x67ab", b"\x65cde"]
    assert list(split(b"\x00\x00\x00\x01\x67ab\x00\x00\x01\x65cde", 0)) == units
    assert list(split(b"\x00\x03\x67ab\x00\x04\x65cde", 2)) == units


class _Source:
    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames
        self.ended = False

    def read(self, timeout_s: float) -> Frame | None:  # noqa: ARG002
        return self.frames.pop(0) if self.frames else None


class _Sink:
    def __init__(self) -> None:
        self.taken: list[pb.FrameEnvelope] = []

    def ready(self) -> bool:
        return True

    def offer(self, envelope: pb.FrameEnvelope) -> None:
        self.taken.append(envelope)


def play(frames: list[Frame], redact: dict[str, Any] | None = None, **encode: Any) -> list[pb.FrameEnvelope]:
    settings = AgentSettings.model_validate(
        {
            "device": "box1",
            "cameras": [{"name": "cam", "source": "x", "redact": redact or {}}],
            "encode": {"codec": "passthrough", "max_fps": 2, "width_px": 160, "batch_ms": 0} | encode,
            "detect": {"enabled": False},
        }
    )
    clock, sink = [0], _Sink()
    pipeline = CameraPipeline(
        settings,
        CameraIdentity("acme", "yard", "box1", "cam", Epoch(1, bytes(8))),
        _Source(list(frames)),
        sink,
        now=lambda: Moment(clock[0], clock[0]),
    )
    for frame in frames:
        clock[0] = frame.monotonic_ns
        pipeline.step(0)
    pipeline.close(1)
    return sink.taken


def units_of(envelopes: list[pb.FrameEnvelope]) -> list[tuple[pb.FrameEnvelope, pb.AccessUnit]]:
    return [(e, i.access_unit) for e in envelopes for i in e.items if i.HasField("access_unit")]


def test_the_cloud_decodes_every_packet_and_looks_at_the_planned_ones(tmp_path: Path) -> None:
    frames = frames_of(write_clip(tmp_path / "clip.mp4"))
    envelopes = play(frames)
    units = units_of(envelopes)
    assert {e.rung for e, _ in units} == {"passthrough 2fps"}
    assert [unit.keyframe for _, unit in units] == [n % 10 == 0 for n in range(40)]
    assert [unit.sequence for _, unit in units] == list(range(1, 41))
    seen = [unit.sequence for _, unit in units if not unit.reference_only]
    assert set(range(1, 41, 10)) <= set(seen)
    assert len(seen) in range(8, 13)
    intake, decoder, ids = Intake(tenant="acme", answered=Answered()), ChainDecoder(), iter(range(1, 99))
    answers = Answers(
        tracks=Tracks(), next_track_id=lambda: next(ids), model=detection_pb2.ModelRef(name="m")
    )
    wanted, filled = [], []
    for number, envelope in enumerate(envelopes, 1):
        message = StreamMessage(
            frame_subject("yard", "box1", "cam"), encode_envelope(envelope), {}, number, 1, 0
        )
        for work in intake.accept(message):
            if work.kind is Kind.PIXELS:
                assert work.unit is not None
                assert decoder.decode(work.unit, envelope.format) is not None
                wanted += [work.first] if work.wanted else []
            elif work.kind is Kind.SKIPPED:
                answers.append(work, 0.0)
                filled.append(work.first)
    assert wanted == seen
    assert sorted(wanted + filled) == list(range(1, 41))


def test_a_lost_frame_ends_the_camera_s_chain_and_transcoding_bridges_to_its_next(tmp_path: Path) -> None:
    frames = frames_of(write_clip(tmp_path / "clip.mp4"))
    del frames[14]
    units = units_of(play(frames, max_fps=10))
    by_frame = {unit.sequence: (e.rung.split()[0], unit.keyframe) for e, unit in units}
    assert by_frame[14] == ("passthrough", False)
    assert by_frame[16] == ("h264", True)
    assert by_frame[20] == ("h264", False)
    assert by_frame[21] == ("passthrough", True)
    decoder = ChainDecoder()
    assert all(decoder.decode(unit, e.format) is not None for e, unit in units)


def test_redaction_and_b_frames_are_transcoded(tmp_path: Path) -> None:
    mask = {"masks": [[[0, 0], [0.5, 0], [0.5, 0.5]]]}
    plain = frames_of(write_clip(tmp_path / "clip.mp4"))
    assert {e.rung for e, _ in units_of(play(plain, mask))} == {"h264 160px crf30 2fps"}
    ordered = frames_of(write_clip(tmp_path / "b.mp4", b_frames=2))
    units = units_of(play(ordered))
    assert units[-1][0].rung == "h264 160px crf30 2fps"
    decoder = ChainDecoder()
    assert all(decoder.decode(unit, e.format) is not None for e, unit in units)


def test_a_budget_that_the_camera_s_stream_exceeds_is_kept_by_transcoding(tmp_path: Path) -> None:
    frames = frames_of(write_clip(tmp_path / "clip.mp4", frames=160))
    own = sum(len(frame.own.data) for frame in frames if isinstance(frame.own, OwnPicture)) / 16 / 125
    rungs = {
        share: [e.rung.split()[0] for e, _ in units_of(play(frames, budget_kbit_s=own * share))]
        for share in (0.5, 2)
    }
    assert rungs[2].count("h264") == 0
    assert rungs[0.5][-6:].count("passthrough") == 0
