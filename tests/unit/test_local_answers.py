"""An outage is never "no objects": answers on the device, ahead of the backlog, in place of lost frames."""

from __future__ import annotations

from collections import deque

import av
import numpy as np
import pytest

from cloud_inference.answered import Answered
from cloud_inference.consume import Intake, Kind
from cloud_inference.early import provisional
from cloud_inference.feed import StreamMessage
from edge_agent.batch import CameraIdentity, Moment
from edge_agent.config import DetectSettings
from edge_agent.frame import Frame
from edge_agent.gate import GateReason
from edge_agent.link import Link
from edge_agent.local import LocalAnswers, LocalItem
from edge_agent.local_results import result_batch
from edge_agent.opinion import Look
from edge_agent.outage import Outage
from eyeline.envelope import encode_envelope, item_range
from eyeline.subjects import frame_subject
from eyeline.v1 import detection_pb2, result_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections, Epoch

STEP_NS = 100_000_000
SHOWN = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="bgr24")
SEEN = Look(Detections.build([[1, 2, 30, 40]], [0.8], [0], ["person"]), Detections.empty())
MODEL = detection_pb2.ModelRef(name="small", version="1", sha256="ab" * 32)
IDENTITY = CameraIdentity("acme", "yard", "box1", "gate", Epoch(1, b"12345678"), MODEL)
EDGE, SKIPPED, DROPPED = pb.RANGE_KIND_EDGE, pb.RANGE_KIND_SKIPPED, pb.RANGE_KIND_DROPPED


class Rig:
    """A camera's local answers at ten frames a second; looks succeed while `works`."""

    def __init__(self, **detect: object) -> None:
        self.items: list[LocalItem] = []
        settings = DetectSettings.model_validate(detect)
        self.answers = LocalAnswers(settings, self.items.append, heartbeat_s=1.0)
        self.sequence = self.looks = 0
        self.works = True

    def frames(self, count: int, *, away: bool = True, gate_open: bool = True, reason: str = "") -> None:
        for _ in range(count):
            self.sequence += 1
            now_ns = 10**9 + self.sequence * STEP_NS
            look = None
            if not reason and self.answers.wants(now_ns, away=away, gate_open=gate_open):
                self.looks += 1
                look = SEEN if self.works else None
            frame = Frame(self.sequence, now_ns, 10**18, SHOWN)
            self.answers.frame(frame, GateReason.MOTION, look, away=away, reason=reason)

    def told(self) -> str:
        """Such as `E1 S2-10`, after checking that nothing is left out."""
        words, expected = [], None
        for item in self.items:
            found = item.range
            assert expected in {None, found.first_sequence}
            expected = found.last_sequence + 1
            kind = {EDGE: "E", SKIPPED: "S", DROPPED: f"{found.reason}:"}[found.kind]
            span = f"-{found.last_sequence}" if found.last_sequence > found.first_sequence else ""
            words.append(f"{kind}{found.first_sequence}{span}")
        return " ".join(words)


def test_every_frame_of_an_outage_is_answered_at_a_bounded_cost() -> None:
    rig = Rig()
    rig.frames(5, away=False)
    rig.frames(100)
    rig.frames(3, away=False)
    assert rig.looks == 10
    assert rig.told().startswith("E6 S7-15 E16 S17-25")
    assert rig.items[-1].range.last_sequence == 105


def test_an_idle_scene_is_looked_at_once() -> None:
    rig = Rig()
    rig.frames(50, gate_open=False)
    assert rig.looks == 1
    assert rig.told().startswith("E1 S2-12 S13-23")


def test_a_model_that_fails_says_so_until_it_works() -> None:
    rig = Rig()
    rig.works = False
    rig.frames(5)
    rig.works = True
    rig.frames(30)
    rig.frames(1, away=False)
    assert rig.told().startswith("edge_model_failed:1-10 E11 S12-20")


@pytest.mark.parametrize(
    ("detect", "reason", "told"),
    [({"enabled": False}, "", "no_edge_model"), ({}, "redaction_failed", "redaction_failed")],
)
def test_without_a_model_or_with_redaction_broken_it_says_so(
    detect: dict[str, object], reason: str, told: str
) -> None:
    rig = Rig(**detect)
    rig.frames(3, reason=reason)
    rig.frames(1, away=False)
    assert rig.told() == f"{told}:1-3"
    assert rig.looks == 0
    batch = result_batch(IDENTITY, rig.items[0], None, pb.ClockEstimate(), Moment(10**9, 10**18))
    (result,) = batch.results
    assert (result.provenance, result.reason) == (result_pb2.PROVENANCE_DEGRADED, told)


def test_frames_that_capture_lost_are_not_left_out() -> None:
    rig = Rig()
    rig.frames(3)
    rig.answers.dropped((4, Moment(1, 1)), (9, Moment(2, 2)), "overload")
    rig.sequence = 9
    rig.frames(2)
    rig.frames(1, away=False)
    assert rig.told() == "E1 S2-3 overload:4-9 S10 E11"


def test_local_results_are_provisional_and_by_the_hubs_clock() -> None:
    rig = Rig()
    rig.frames(12)
    now, clock = Moment(5 * 10**9, 10**18), pb.ClockEstimate(offset_ns=70, uncertainty_ns=9)
    edge, held = (
        result_batch(IDENTITY, item, rig.items[0].range.edge, clock, now).results[0] for item in rig.items[:2]
    )
    assert (edge.provenance, held.provenance) == (
        result_pb2.PROVENANCE_EDGE,
        result_pb2.PROVENANCE_PROPAGATED,
    )
    assert edge.detections == held.detections
    assert len(edge.detections) == 1
    assert (edge.final, edge.revision, edge.key.sequence, held.last_sequence) == (False, 1, 1, 10)
    assert edge.times.captured_ns == 10**18 + 70 - 5 * 10**9 + 10**9 + STEP_NS
    assert (edge.model, edge.source_width_px, edge.clock_uncertainty_ns) == (MODEL, 64, 9)


def outage(items: list[LocalItem]) -> Outage:
    async def never(_changed: object) -> object:
        raise AssertionError

    made = Outage(
        Link("hub", never),  # type: ignore[arg-type]
        lambda: None,
        may_publish=lambda _camera: True,
        clock=lambda: pb.ClockEstimate(uncertainty_ns=1),
        now=lambda: Moment(10**9, 10**18),
        ahead=True,
    )
    made.add(IDENTITY)
    for item in items:
        made.take("gate", item)
    return made


def dropped(first: int, last: int, *, counter: int = 1) -> pb.FrameEnvelope:
    def at(sequence: int) -> pb.CaptureTime:
        return pb.CaptureTime(monotonic_ns=10**9 + sequence * STEP_NS)

    span = pb.FrameRange(
        first_sequence=first,
        last_sequence=last,
        first_capture=at(first),
        last_capture=at(last),
        kind=DROPPED,
        reason="live_only",
    )
    return pb.FrameEnvelope(
        schema_major=1,
        tenant="acme",
        site="yard",
        device="box1",
        camera="gate",
        epoch=Epoch(counter, b"12345678").to_proto(),
        items=[pb.FrameItem(range=span)],
        lane=pb.LANE_BACKLOG,
    )


async def test_dropped_frames_are_reported_as_what_the_edge_model_saw() -> None:
    rig = Rig()
    rig.sequence = 20
    rig.frames(30)  # 21 to 50, of which the last were not told yet
    found = outage(rig.items).instead(dropped(11, 50))
    assert len(found) == 1
    encode_envelope(found[0])
    kinds = [(it.range.kind, it.range.reason, *item_range(it)) for it in found[0].items]
    assert kinds == [
        (DROPPED, "live_only", 11, 20),
        (EDGE, "", 21, 21),
        (SKIPPED, "", 22, 30),
        (EDGE, "", 31, 31),
        (SKIPPED, "", 32, 40),
        (EDGE, "", 41, 41),
        (SKIPPED, "", 42, 50),
    ]
    assert found[0].edge_model == MODEL
    part = outage(rig.items).instead(dropped(25, 35))[0]
    assert [item_range(it) for it in part.items] == [(25, 30), (31, 31), (32, 35)]
    assert part.items[0].range.first_capture.monotonic_ns == 10**9 + 25 * STEP_NS


async def test_frames_of_another_run_or_before_the_outage_stay_dropped() -> None:
    rig = Rig()
    rig.sequence = 20
    rig.frames(30)
    made = outage(rig.items)
    assert made.instead(dropped(1, 10)) == [dropped(1, 10)]
    assert made.instead(dropped(21, 30, counter=2)) == [dropped(21, 30, counter=2)]


async def test_many_ranges_are_several_messages() -> None:
    rig = Rig(outage_fps=5)
    rig.frames(5000)
    reports = outage(rig.items).instead(dropped(1, 4990))
    assert len(reports) > 1
    sequences: deque[int] = deque([0])
    for report in reports:
        encode_envelope(report)
        for item in report.items:
            first, last = item_range(item)
            assert first == sequences[-1] + 1
            sequences.append(last)
    assert sequences[-1] == 4990


def test_the_cloud_answers_ahead_without_taking_the_frames_as_answered() -> None:
    rig = Rig()
    rig.frames(32)
    envelope = dropped(1, 1)
    envelope.ClearField("items")
    envelope.items.extend(pb.FrameItem(range=item.range) for item in rig.items)
    envelope.provisional = True
    envelope.edge_model.CopyFrom(MODEL)
    answered = Answered()
    key = ("box1", 1, b"12345678")
    answered.add(key, 5, 10)
    intake = Intake(tenant="acme", answered=answered)
    message = StreamMessage(frame_subject("yard", "box1", "gate"), encode_envelope(envelope), {}, 1, 1, 0)
    *works, end = intake.accept(message)
    assert end.kind is Kind.END
    results = provisional(works, lambda work: work.first != 31)
    assert [(it.key.sequence, it.last_sequence) for it in results] == [
        (1, 1),
        (2, 4),
        (11, 11),
        (12, 20),
        (21, 21),
        (22, 30),
    ]
    assert {(it.revision, it.final, len(it.detections)) for it in results} == {(1, False, 1)}
    assert answered.missing(key, 1, 40) == [(1, 4), (11, 40)], "they stay to be answered"
