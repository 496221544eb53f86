import itertools

import numpy as np
import pytest

from cloud_inference.answer import FINAL_REVISION, NO_REFERENCE, Answers, Seen
from cloud_inference.answered import Answered
from cloud_inference.consume import LOST, Intake, Kind, Work
from cloud_inference.feed import StreamMessage
from cloud_inference.infer import DEADLINE, INFERENCE_FAILED
from cloud_inference.track import Tracks
from eyeline.envelope import encode_envelope
from eyeline.errors import BadEnvelope
from eyeline.v1 import detection_pb2, frame_pb2, result_pb2
from eyeline.values import Detections
from tests.support.simulated import Device

CLOUD, PROPAGATED = result_pb2.PROVENANCE_CLOUD, result_pb2.PROVENANCE_PROPAGATED
DEGRADED, EDGE = result_pb2.PROVENANCE_DEGRADED, result_pb2.PROVENANCE_EDGE


def person(left: float) -> Detections:
    return Detections.build([[left, 20, left + 40, 100]], [0.9], [0], ["person"])


def message(device: Device, envelope: frame_pb2.FrameEnvelope, sequence: int = 1) -> StreamMessage:
    return StreamMessage(device.subject, encode_envelope(envelope), {}, sequence, 1, 0)


class Bench:
    """Intake and answers of one camera, with the model's answers given by hand."""

    def __init__(self, mode: str = "smooth", answered: Answered | None = None) -> None:
        self.device = Device()
        self.intake = Intake(tenant="acme", answered=answered or Answered())
        ids = itertools.count(1)
        self.answers = Answers(
            tracks=Tracks(),
            next_track_id=lambda: next(ids),
            model=detection_pb2.ModelRef(name="m"),
            mode=mode,  # type: ignore[arg-type]
        )
        self.sequences = itertools.count(1)

    def feed(self, *items: frame_pb2.FrameItem, saw: object = None, now_s: float = 0.0) -> list[Work]:
        return self.take(self.device.envelope(items), saw=saw, now_s=now_s)

    def take(
        self, envelope: frame_pb2.FrameEnvelope, *, saw: object = None, now_s: float = 0.0
    ) -> list[Work]:
        work = self.intake.accept(message(self.device, envelope, next(self.sequences)))
        for one in work:
            pending = self.answers.append(one, now_s)
            if one.kind is Kind.PIXELS:
                pending.outcome = Seen(saw, 1, 2, 3) if isinstance(saw, Detections) else saw  # type: ignore[assignment]
        return work

    def results(self, now_s: float = 0.0) -> list[result_pb2.Result]:
        return self.answers.collect(now_s).results


def test_a_frame_with_pixels_gets_the_models_answer() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    (result,) = bench.results()
    assert (result.provenance, result.final, result.revision) == (CLOUD, True, FINAL_REVISION)
    assert result.key.sequence == result.last_sequence == 1
    assert result.detections[0].track_id == 1
    assert (result.times.decoded_ns, result.times.infer_start_ns, result.times.infer_end_ns) == (1, 2, 3)
    assert len(bench.answers) == 0


def test_skipped_frames_are_interpolated_when_the_next_picture_is_answered() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.feed(bench.device.range(3, frame_pb2.RANGE_KIND_SKIPPED))
    assert [r.key.sequence for r in bench.results()] == [1]
    assert bench.answers.wait_s(0.0) == pytest.approx(2.0)
    bench.feed(bench.device.pixels(), saw=person(18))
    results = bench.results()
    assert [(r.key.sequence, r.provenance) for r in results] == [
        (2, PROPAGATED),
        (3, PROPAGATED),
        (4, PROPAGATED),
        (5, CLOUD),
    ]
    assert [r.detections[0].box.x1_px for r in results] == [12, 14, 16, 18]
    assert {r.detections[0].track_id for r in results} == {1}


def test_a_frame_that_was_given_up_at_its_deadline_is_late() -> None:
    """Whatever the clock says by now: it is an estimate of the hub's, and may have gone back a little."""
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=DEADLINE)
    bench.feed(bench.device.pixels(), saw=INFERENCE_FAILED)
    assert [(r.reason, r.late) for r in bench.results()] == [(DEADLINE, True), (INFERENCE_FAILED, False)]


def test_skipped_frames_do_not_wait_for_ever() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.feed(bench.device.range(2, frame_pb2.RANGE_KIND_SKIPPED), now_s=5.0)
    assert [r.key.sequence for r in bench.results(6.9)] == [1]
    (held,) = bench.results(7.1)
    assert (held.key.sequence, held.last_sequence, held.provenance) == (2, 3, PROPAGATED)
    assert held.detections[0].box.x1_px == 10


def test_skipped_frames_behind_what_was_answered_keep_its_answer() -> None:
    bench = Bench()
    envelopes = [
        bench.device.envelope([bench.device.range(2, frame_pb2.RANGE_KIND_SKIPPED)]),
        bench.device.envelope([bench.device.pixels()]),
    ]
    for result in _answered_before(bench.device, 3):
        bench.answers.restore(result, ("box", 1, bench.device.epoch.random_id))
    for envelope in envelopes:
        bench.take(envelope, saw=person(10))
    assert [(r.key.sequence, r.provenance) for r in bench.results()] == [(1, PROPAGATED), (3, CLOUD)]


def _answered_before(device: Device, sequence: int) -> list[result_pb2.Result]:
    key = result_pb2.FrameKey(epoch=device.epoch, sequence=sequence)
    detections = person(10).to_proto()
    return [
        result_pb2.Result(
            key=key, last_sequence=sequence, provenance=CLOUD, detections=detections, device="box"
        )
    ]


def test_a_picture_that_is_with_the_model_is_waited_for() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.feed(bench.device.range(2, frame_pb2.RANGE_KIND_SKIPPED))
    bench.feed(bench.device.pixels(), saw=None)
    assert [r.key.sequence for r in bench.results(60.0)] == [1]
    assert bench.answers.wait_s(60.0) is None, "only the model's answer helps, not time"


def test_causal_answers_come_at_once_and_are_predicted() -> None:
    bench = Bench("causal")
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.feed(bench.device.pixels(), saw=person(14))
    bench.feed(bench.device.range(2, frame_pb2.RANGE_KIND_SKIPPED))
    assert [r.detections[0].box.x1_px for r in bench.results()] == [10, 14, 18, 22]


def test_idle_frames_keep_what_stands_there() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.feed(bench.device.range(50, frame_pb2.RANGE_KIND_IDLE))
    _, idle = bench.results()
    assert (idle.key.sequence, idle.last_sequence, idle.provenance) == (2, 51, PROPAGATED)
    assert idle.detections[0].box.x1_px == 10


def test_without_a_picture_there_is_no_answer_to_keep() -> None:
    bench = Bench()
    bench.feed(bench.device.range(5, frame_pb2.RANGE_KIND_IDLE))
    (result,) = bench.results()
    assert (result.provenance, result.reason) == (DEGRADED, NO_REFERENCE)


def test_a_gap_is_degraded_and_so_is_what_leans_on_it() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw="chain_gap")
    bench.feed(bench.device.range(5, frame_pb2.RANGE_KIND_IDLE))
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.feed(bench.device.range(5, frame_pb2.RANGE_KIND_IDLE))
    assert [(r.provenance, r.reason) for r in bench.results()] == [
        (DEGRADED, "chain_gap"),
        (DEGRADED, "chain_gap"),
        (CLOUD, ""),
        (PROPAGATED, ""),
    ]


def test_the_edge_models_answer_stands_as_such() -> None:
    bench = Bench()
    item = bench.device.range(4, frame_pb2.RANGE_KIND_EDGE)
    item.range.edge.detections.extend(person(10).to_proto())
    bench.feed(item)
    bench.feed(bench.device.range(4, frame_pb2.RANGE_KIND_DROPPED, "overload"))
    first, second = bench.results()
    assert (first.provenance, first.last_sequence, len(first.detections)) == (EDGE, 4, 1)
    assert (second.provenance, second.reason) == (DEGRADED, "overload")


def test_answers_keep_their_order_while_a_picture_is_under_way() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=None)
    bench.feed(bench.device.range(5, frame_pb2.RANGE_KIND_IDLE))
    assert bench.results() == []


def test_what_was_answered_is_not_answered_again() -> None:
    bench = Bench()
    envelope = bench.device.envelope(
        [bench.device.pixels(), bench.device.range(3, frame_pb2.RANGE_KIND_IDLE)]
    )
    bench.take(envelope, saw=person(10))
    again = bench.take(envelope, saw=person(10))
    assert [one.kind for one in again] == [Kind.END], "not even for the decoder, which has gone on"
    assert [r.key.sequence for r in bench.results()] == [1, 2]


def test_a_new_owner_decodes_what_was_answered_but_once() -> None:
    answered = Answered()
    answered.add(("box", 1, b"00000001"), 1, 2)
    bench = Bench(answered=answered)
    first, second = bench.device.frames(2)
    assert [one.kind for one in bench.take(first)] == [Kind.PIXELS, Kind.END]
    assert [one.wanted for one in bench.take(second)] == [False, True]
    assert [one.kind for one in bench.take(first)] == [Kind.END]


def test_messages_of_an_earlier_run_that_come_again_change_nothing() -> None:
    bench = Bench()
    old = bench.device.frames(2)
    for envelope in old:
        bench.take(envelope, saw=person(10))
    bench.device = Device(counter=2)
    bench.feed(bench.device.pixels(), saw=person(10))
    assert [one.kind for one in bench.take(old[1])] == [Kind.END]
    work = bench.take(bench.device.envelope([bench.device.pixels()]), saw=person(12))
    assert work[0].keyframe_at, "the open chain is still known"


def test_what_a_run_left_behind_stands_on_what_was_seen_in_it() -> None:
    """The end of a run in the backlog lane, without pixels of its own, after the next run has begun."""
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    late = bench.device.envelope(
        [bench.device.range(3, frame_pb2.RANGE_KIND_IDLE)], lane=frame_pb2.LANE_BACKLOG
    )
    bench.device = Device(counter=2)
    bench.feed(bench.device.pixels(), saw=person(50))
    bench.take(late)
    *_, held = bench.results()
    assert (held.provenance, held.key.epoch.counter, held.key.sequence) == (PROPAGATED, 1, 2)
    assert held.detections[0].box.x1_px == pytest.approx(10)


def test_frames_that_never_came_are_reported() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.device.envelope([bench.device.pixels(), bench.device.pixels()])  # lost on the way
    bench.feed(bench.device.pixels(keyframe=True), saw=person(14))
    assert [(r.key.sequence, r.last_sequence, r.reason) for r in bench.results()] == [
        (1, 1, ""),
        (2, 3, LOST),
        (4, 4, ""),
    ]


def test_lanes_do_not_take_each_others_frames_for_lost() -> None:
    """After an outage the live picture comes first, and the frames before it in the backlog lane."""
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    late = bench.device.envelope([bench.device.pixels(), bench.device.pixels()], lane=frame_pb2.LANE_BACKLOG)
    late.previous_sequence = 0
    live = bench.device.envelope([bench.device.pixels(keyframe=True)])
    live.previous_sequence = 1
    bench.take(live, saw=person(14))
    bench.take(late, saw=person(12))
    assert [r.key.sequence for r in bench.results()] == [1, 4, 2, 3]


def test_frames_left_out_by_the_live_lane_keep_what_stood_before_them() -> None:
    """The live lane has gone on by several pictures when they come, behind an outage."""
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    late = bench.device.envelope(
        [bench.device.range(3, frame_pb2.RANGE_KIND_IDLE)], lane=frame_pb2.LANE_BACKLOG
    )
    late.previous_sequence = 0
    for step in range(4):
        live = bench.device.envelope([bench.device.pixels(keyframe=True)])
        live.previous_sequence = 1 if step == 0 else live.items[0].access_unit.sequence - 1
        bench.take(live, saw=person(50))
    assert [r.key.sequence for r in bench.results()] == [1, 5, 6, 7, 8]
    bench.take(late)
    (held,) = bench.results()
    assert (held.key.sequence, held.last_sequence, held.provenance) == (2, 4, PROPAGATED)
    assert held.detections[0].box.x1_px == pytest.approx(10)


def test_tracks_survive_a_change_of_owner() -> None:
    bench = Bench()
    bench.feed(bench.device.pixels(), saw=person(10))
    bench.feed(bench.device.pixels(), saw=person(12))
    stored = bench.results()
    answered = Answered()
    answered.add(("box", 1, bench.device.epoch.random_id), 1, 2)
    heir = Bench(answered=answered)
    heir.device = bench.device
    for _ in range(3):
        heir.answers._next_track_id()  # the stored checkpoint says which ids are used
    for result in stored:
        heir.answers.restore(result, ("box", 1, bench.device.epoch.random_id))
    heir.feed(heir.device.range(2, frame_pb2.RANGE_KIND_IDLE))
    heir.feed(heir.device.pixels(), saw=person(14))
    assert [r.detections[0].track_id for r in heir.results()] == [1, 1]


def test_an_envelope_on_another_subject_is_refused() -> None:
    bench = Bench()
    stranger = Device(camera="other")
    envelope = stranger.envelope([stranger.pixels()])
    with pytest.raises(BadEnvelope) as caught:
        bench.intake.accept(message(bench.device, envelope))
    assert caught.value.reason == "wrong_subject"


def test_a_batch_of_results_stays_small() -> None:
    bench = Bench()
    crowd = Detections.build(np.tile([[1, 2, 3, 4]], (100, 1)), np.ones(100), np.zeros(100), ["person"] * 100)
    bench.feed(bench.device.pixels(), saw=crowd)
    bench.feed(bench.device.range(900, frame_pb2.RANGE_KIND_SKIPPED))
    bench.feed(bench.device.pixels(), saw=crowd)
    frames = 0
    while len(bench.answers):
        collected = bench.answers.collect(0.0).results
        assert sum(len(result.SerializeToString()) for result in collected) < 900_000
        frames += sum(r.last_sequence - r.key.sequence + 1 for r in collected)
    assert frames == 902
