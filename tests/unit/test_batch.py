"""Envelopes: gapless, within their limits, and sent when they are due and not before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.batch import MAX_ITEMS_BYTES, CameraIdentity, EnvelopeBuilder, Moment, Unit, as_dropped
from edge_agent.gate import GateReason
from eyeline.envelope import encode_envelope, first_sequence, item_range, last_sequence, parse_envelope
from eyeline.v1 import detection_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections, Epoch

WHO = CameraIdentity(
    "acme", "yard", "box1", "gate", Epoch(3, b"12345678"), edge_model=detection_pb2.ModelRef(name="small")
)
FORMAT = pb.PictureFormat(
    codec=pb.CODEC_H264,
    coded_width_px=416,
    coded_height_px=312,
    source_width_px=768,
    source_height_px=576,
    scale_x=768 / 416,
    scale_y=576 / 312,
)
STEP_NS = 100_000_000


def at(sequence: int) -> Moment:
    return Moment(10**9 + sequence * STEP_NS, 10**18 + sequence * STEP_NS)


def unit(sequence: int, size: int = 100, index: int = 1, edge: Detections | None = None) -> Unit:
    return Unit(sequence, at(sequence), 1, index, GateReason.MOTION, b"x" * size, edge)


def builder(batch_ms: float = 0, heartbeat_s: float = 1, **limits: int) -> EnvelopeBuilder:
    return EnvelopeBuilder(WHO, batch_ms=batch_ms, heartbeat_s=heartbeat_s, **limits)


def idle(made: EnvelopeBuilder, *sequences: int) -> None:
    for sequence in sequences:
        made.add_range(pb.RANGE_KIND_IDLE, GateReason.IDLE, (sequence, at(sequence)))


def test_access_unit_goes_out_at_once_without_batching() -> None:
    made = builder()
    idle(made, 1, 2)
    assert made.take(at(2)) == []
    made.add_unit(unit(3, index=0), FORMAT, "r")
    clock = pb.ClockEstimate(offset_ns=-5, uncertainty_ns=7)
    (envelope,) = made.take(at(3), clock, "00-abc")
    assert parse_envelope(encode_envelope(envelope)) == envelope
    assert [item_range(item) for item in envelope.items] == [(1, 2), (3, 3)]
    assert (envelope.tenant, envelope.site, envelope.device, envelope.camera) == (
        "acme",
        "yard",
        "box1",
        "gate",
    )
    assert (envelope.epoch.counter, envelope.rung, envelope.lane) == (3, "r", pb.LANE_LIVE)
    assert envelope.clock == clock
    assert envelope.traceparent == "00-abc"
    assert not envelope.HasField("edge_model")
    assert envelope.published == at(3).to_proto()
    assert envelope.format == FORMAT
    access = envelope.items[1].access_unit
    assert (access.keyframe, access.gate_reason, access.capture) == (
        True,
        pb.GATE_REASON_MOTION,
        at(3).to_item_proto(),
    )
    assert not access.HasField("edge")
    assert envelope.previous_sequence == 0


def test_units_wait_for_company_and_no_longer() -> None:
    made = builder(batch_ms=250)
    for sequence in (1, 2, 3):
        made.add_unit(unit(sequence, index=sequence - 1), FORMAT, "r")
        assert made.take(at(sequence)) == []
    made.add_unit(unit(4, index=3), FORMAT, "r")
    (envelope,) = made.take(at(4))
    assert last_sequence(envelope) == 4


def test_a_chain_begins_in_an_envelope_of_its_own() -> None:
    made = builder(batch_ms=250)
    for sequence, index in ((1, 0), (2, 1), (3, 0), (4, 1)):
        made.add_unit(unit(sequence, index=index), FORMAT, "r")
    before, after = made.take(at(9))
    assert (last_sequence(before), first_sequence(after)) == (2, 3)
    assert after.previous_sequence == 2


def test_stills_travel_together() -> None:
    made = builder(batch_ms=250)
    stills = pb.PictureFormat(codec=pb.CODEC_JPEG, coded_width_px=416, coded_height_px=312)
    for sequence in (1, 2, 3):
        made.add_unit(unit(sequence, index=0), stills, "r")
    assert len(made.take(at(9))) == 1


def test_heartbeat_answers_idle_frames() -> None:
    made, taken = builder(heartbeat_s=1.0), []
    for sequence in range(1, 36):
        idle(made, sequence)
        taken += made.take(at(sequence))
    assert [(first_sequence(e), last_sequence(e), e.previous_sequence) for e in taken] == [
        (1, 11, 0),
        (12, 22, 11),
        (23, 33, 22),
    ]
    (only,) = taken[0].items
    assert (only.range.first_capture, only.range.last_capture) == (
        at(1).to_item_proto(),
        at(11).to_item_proto(),
    )
    assert not taken[0].HasField("format")
    assert len(encode_envelope(taken[0])) < 160
    (rest,) = made.take(at(35), end=True)
    assert last_sequence(rest) == 35
    assert made.take(at(99), end=True) == []


def test_only_like_neighbours_merge() -> None:
    made = builder()
    idle(made, 1, 2)
    made.add_range(pb.RANGE_KIND_SKIPPED, GateReason.MOTION, (3, at(3)))
    made.add_range(pb.RANGE_KIND_SKIPPED, GateReason.HOLD, (4, at(4)))
    made.add_range(pb.RANGE_KIND_DROPPED, GateReason.OFF, (5, at(5)), (9, at(9)), reason="overload")
    made.add_range(pb.RANGE_KIND_DROPPED, GateReason.OFF, (10, at(10)), reason="overload")
    made.add_range(pb.RANGE_KIND_DROPPED, GateReason.OFF, (11, at(11)), reason="spool_full")
    (envelope,) = made.take(at(11), end=True)
    assert [item_range(item) for item in envelope.items] == [(1, 2), (3, 3), (4, 4), (5, 10), (11, 11)]


def test_another_format_or_rung_starts_another_envelope() -> None:
    other = pb.PictureFormat()
    other.CopyFrom(FORMAT)
    other.coded_width_px = 320
    made = builder(batch_ms=1000)
    made.add_unit(unit(1, index=0), FORMAT, "a")
    made.add_unit(unit(2, index=0), other, "a")
    made.add_unit(unit(3, index=0), other, "b")
    taken = made.take(at(3), end=True)
    assert [(e.format.coded_width_px, e.rung, first_sequence(e)) for e in taken] == [
        (416, "a", 1),
        (320, "a", 2),
        (320, "b", 3),
    ]
    assert [e.previous_sequence for e in taken] == [0, 1, 2]


def test_size_limit_splits_and_the_largest_unit_fits() -> None:
    made = builder(batch_ms=10_000)
    made.add_unit(unit(1, 500_000, 0), FORMAT, "r")
    many = Detections.build([[0, 0, 9, 9]] * 500, [0.5] * 500, [0] * 500, ("wheelbarrow",) * 500)
    largest = b"x" * (MAX_ITEMS_BYTES - 1000)
    assert not made.too_large(largest)
    made.add_unit(Unit(2, at(2), 1, 1, GateReason.MOTION, largest, many), FORMAT, "r")
    taken = made.take(at(2), end=True)
    assert len(taken) == 2
    for envelope in taken:
        assert parse_envelope(encode_envelope(envelope)) == envelope
    assert made.too_large(b"x" * (MAX_ITEMS_BYTES + 1))
    with pytest.raises(ValueError, match="fit an envelope"):
        made.add_unit(unit(3, MAX_ITEMS_BYTES), FORMAT, "r")


def test_edge_answer_may_be_empty() -> None:
    made = builder()
    made.add_unit(unit(1, index=0, edge=Detections.empty()), FORMAT, "r")
    (envelope,) = made.take(at(1))
    assert envelope.items[0].access_unit.HasField("edge")
    assert not envelope.items[0].access_unit.edge.detections


def test_out_of_turn_is_refused() -> None:
    made = builder()
    idle(made, 1)
    with pytest.raises(ValueError, match="frame 3 follows where 2 should"):
        idle(made, 3)


def test_dropped_twin_covers_the_same_frames() -> None:
    made = builder()
    idle(made, 1, 2)
    made.add_unit(unit(3, index=0), FORMAT, "r")
    (envelope,) = made.take(at(3))
    twin = as_dropped(envelope, "publish_failed")
    assert parse_envelope(encode_envelope(twin)) == twin
    assert (first_sequence(twin), last_sequence(twin)) == (1, 3)
    (only,) = twin.items
    assert (only.range.first_capture, only.range.last_capture) == (
        at(1).to_item_proto(),
        at(3).to_item_proto(),
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(["unit", "idle", "skip", "drop"]), st.integers(1, 900), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    st.floats(0, 2000),
    st.floats(0.1, 5),
)
def test_every_frame_is_in_exactly_one_item(
    frames: list[tuple[str, int, bool]], batch_ms: float, heartbeat_s: float
) -> None:
    made = builder(batch_ms, heartbeat_s, max_bytes=2_000, max_items=7)
    taken: list[pb.FrameEnvelope] = []
    for sequence, (what, size, taking) in enumerate(frames, 1):
        if what == "unit":
            made.add_unit(unit(sequence, size), FORMAT, "r")
        else:
            kind = {"idle": pb.RANGE_KIND_IDLE, "skip": pb.RANGE_KIND_SKIPPED, "drop": pb.RANGE_KIND_DROPPED}[
                what
            ]
            reason = "overload" if what == "drop" else ""
            made.add_range(kind, GateReason.IDLE, (sequence, at(sequence)), reason=reason)
        if taking:
            taken += made.take(at(sequence))
    taken += made.take(at(len(frames)), end=True)
    covered = [item_range(item) for envelope in taken for item in envelope.items]
    assert [n for first, last in covered for n in range(first, last + 1)] == list(range(1, len(frames) + 1))
    assert [e.previous_sequence for e in taken] == [0, *(last_sequence(e) for e in taken[:-1])]
    for envelope in taken:
        assert len(encode_envelope(envelope)) < 3_500
        assert len(envelope.items) <= 7


def test_edge_model_is_named_where_it_answered() -> None:
    made = builder()
    made.add_unit(unit(1, index=0, edge=Detections.empty()), FORMAT, "r")
    (envelope,) = made.take(at(1))
    assert not envelope.HasField("edge_model"), "its name takes more than what is to be compared"
    made.add_edge(GateReason.MOTION, (2, at(2)), Detections.empty())
    (envelope,) = made.take(at(9))
    assert envelope.edge_model.name == "small"


def test_skipped_frames_travel_with_the_picture_that_answers_them() -> None:
    made = builder(batch_ms=1000, heartbeat_s=10)
    for sequence in range(1, 31):
        if sequence % 3 == 1:
            made.add_unit(unit(sequence, index=sequence - 1), FORMAT, "r")
        else:
            made.add_range(pb.RANGE_KIND_SKIPPED, GateReason.MOTION, (sequence, at(sequence)))
        if envelopes := made.take(at(sequence)):
            assert envelopes[0].items[-1].HasField("access_unit")
    last = made.take(at(30), end=True)[-1]
    assert last_sequence(last) == 30
    assert last.items[-1].range.last_capture == at(30).to_item_proto()


def test_times_of_skipped_frames_between_two_pictures_do_not_travel() -> None:
    made = builder(batch_ms=1000)
    for sequence in (1, 4):
        made.add_unit(unit(sequence, index=sequence - 1), FORMAT, "r")
        if sequence == 1:
            made.add_range(pb.RANGE_KIND_SKIPPED, GateReason.MOTION, (2, at(2)), (3, at(3)))
    (envelope,) = made.take(at(30))
    between = envelope.items[1].range
    assert not between.HasField("first_capture")
    assert not between.HasField("last_capture")
