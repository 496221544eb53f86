"""How far the edge model is trusted: what few samples prove, what audits notice, what reports say."""

from __future__ import annotations

import random

import pytest

from cloud_inference.agree import Reports
from edge_agent.agree import Agreement, Condition, Trust, frame_f1
from edge_agent.config import DetectSettings
from edge_agent.opinion import Look, Opinion, Verdict
from eyeline.v1 import device_pb2, frame_pb2
from eyeline.values import Detections
from tests.support.cards import square_card

ONE = Condition.of(1, 0)
SECOND_NS = 1_000_000_000
EDGE, CLOUD, OTHER = "ab" * 32, bytes(8), b"12345678"


def person(left: float = 10, score: float = 0.9) -> Detections:
    return Detections.build([[left, 10, left + 20, 50]], [score], [0], ["person"])


CLEAR = Look(person(), Detections.empty())


class Cloud:
    """Looks at what is carried, and reports."""

    def __init__(self, opinion: Opinion, *, model: bytes = CLOUD, epoch: int = 7) -> None:
        self.opinion, self.model, self.epoch = opinion, model, epoch
        self.sequence = 0
        self.now_ns = 10**12

    def frame(self, *, agrees: bool = True, must_send: bool = False, look: Look = CLEAR) -> Verdict:
        """One frame, a second later than the last; reported at once."""
        self.sequence += 1
        self.now_ns += SECOND_NS
        verdict = self.opinion.judge(look, self.sequence, self.now_ns, must_send=must_send)
        if verdict is Verdict.CARRY:
            self.report(agreed=int(agrees), missed=int(not agrees), extra=int(not agrees))
        return verdict

    def picture(self, size: int, *, keyframe: bool = False, carried: Detections | None = None) -> None:
        self.opinion.sent(size, self.now_ns, keyframe=keyframe, carried=carried)

    def report(self, **counts: int) -> None:
        frame = device_pb2.FrameAgreement(sequence=self.sequence, **counts)
        report = device_pb2.AnswerReport(
            epoch_counter=self.epoch, last_sequence=self.sequence, model_prefix=self.model, frames=[frame]
        )
        self.opinion.heard(report, self.now_ns)


def opinion(seed: int = 1, **settings: float) -> Opinion:
    return Opinion(
        DetectSettings.model_validate(settings),
        "gate",
        epoch=7,
        model_sha256=EDGE,
        random_=random.Random(seed),
    )


def test_f1_of_a_frame() -> None:
    assert [frame_f1(0, 0, 0), frame_f1(1, 0, 0), frame_f1(1, 1, 1), frame_f1(0, 0, 2)] == [1, 1, 0.5, 0]


def test_few_samples_prove_nothing_however_good() -> None:
    agreement = Agreement(0.95)
    for count in range(31):
        assert agreement.trust(ONE) is Trust.OPEN, count
        agreement.observe(ONE, 1.0, 100.0 * count)
    agreement.observe(ONE, 1.0, 5000)
    assert agreement.trust(ONE) is Trust.SURE
    assert agreement.trust(Condition.of(2, 0)) is Trust.OPEN, "another condition has to prove itself"


def test_a_burst_of_frames_is_one_sample() -> None:
    agreement = Agreement(0.95)
    for frame in range(500):
        agreement.observe(ONE, 1.0, 100 + frame * 0.01)
    assert agreement.bounds(ONE)[0] < 0.85
    assert agreement.trust(ONE) is Trust.OPEN


def test_a_high_share_of_disagreement_is_never_trusted() -> None:
    generator = random.Random(3)
    agreement = Agreement(0.95)
    for second in range(2000):
        agreement.observe(ONE, float(generator.random() < 0.9), second)
        assert agreement.trust(ONE) is not Trust.SURE
    assert agreement.trust(ONE) is Trust.UNSURE


def test_frames_that_are_alike_and_not_good_enough_are_given_up_soon_and_never_trusted_sooner() -> None:
    alike, either = Agreement(0.95), Agreement(0.95)
    for number in range(8):
        alike.observe(ONE, 0.87, 10.0 * number)
        either.observe(ONE, float(number != 3), 10.0 * number)
    assert alike.trust(ONE) is Trust.UNSURE
    assert either.trust(ONE) is Trust.OPEN, "0.88, but it may be bad luck"
    perfect = Agreement(0.95)
    for number in range(30):
        perfect.observe(ONE, 1.0, 10.0 * number)
    assert perfect.trust(ONE) is Trust.OPEN


def test_audits_notice_within_a_few_that_the_model_went_wrong() -> None:
    agreement = Agreement(0.95)
    for second in range(1000):
        agreement.observe(ONE, 1.0, second)
    assert not agreement.observe(ONE, 0.0, 1100, audit=True), "one may be bad luck"
    assert agreement.observe(ONE, 0.0, 1120, audit=True)
    assert agreement.trials == 1
    again = 0
    while agreement.trust(ONE) is not Trust.SURE:
        again += 1
        agreement.observe(ONE, 1.0, 1200 + again)
    assert again > 25, "trust has to be earned again"


def test_the_edge_answers_only_after_the_cloud_agreed_often_enough_and_audits_go_on() -> None:
    rig = Cloud(opinion())
    first = [rig.frame() for _ in range(32)]
    assert set(first) == {Verdict.CARRY}
    rig.picture(100)
    later = [rig.frame() for _ in range(2000)]
    assert 0.03 < later.count(Verdict.CARRY) / len(later) < 0.07, "audits"
    assert later.count(Verdict.ANSWER) + later.count(Verdict.CARRY) == len(later)
    told = rig.opinion.audits
    assert told.frames == told.agreed
    assert later.count(Verdict.CARRY) - 2 <= told.frames <= later.count(Verdict.CARRY), "audits alone"
    assert (told.extra, told.missed) == (0, 0)
    assert rig.frame(must_send=True) is Verdict.CARRY, "pixels that go anyway are an audit for free"
    doubtful = Look(person(), person(100, 0.3))
    assert rig.frame(look=doubtful) is Verdict.CARRY, "another condition: nothing is known of it"


def test_a_camera_where_the_models_disagree_gets_pixels_and_is_hardly_looked_at() -> None:
    rig = Cloud(opinion())
    verdicts = [rig.frame(agrees=False) for _ in range(200)]
    assert Verdict.ANSWER not in verdicts
    assert verdicts[20:].count(Verdict.PIXELS) > 150
    looks = 0
    for _ in range(600):
        rig.now_ns += SECOND_NS
        if rig.opinion.wants(rig.now_ns):
            looks += 1
            rig.frame(agrees=False)
    assert looks <= 25, "a probe now and then"


def test_when_audits_disagree_pixels_go_again() -> None:
    rig = Cloud(opinion())
    for _ in range(200):
        rig.frame()
    turned = [rig.frame(agrees=False) for _ in range(200)]
    last = max(index for index, verdict in enumerate(turned) if verdict is Verdict.ANSWER)
    assert last < 100, "some 2 audits at 5 % of the frames"
    assert Verdict.ANSWER not in turned[last + 1 :]


def test_frames_close_together_are_compared_once_a_second() -> None:
    rig = Cloud(opinion())
    verdicts = []
    for _ in range(50):
        rig.now_ns -= SECOND_NS * 8 // 10
        verdicts.append(rig.frame())
    assert verdicts.count(Verdict.CARRY) in range(12, 18), "of 10 s, and an audit or two"


def test_where_comparing_costs_more_than_it_saves_it_looks_now_and_then() -> None:
    rig = Cloud(opinion())
    many = Detections.build(
        [[10 * n, 10, 10 * n + 20, 50] for n in range(20)], [0.9] * 20, [0] * 20, ["person"] * 20
    )
    crowd = Look(many, Detections.empty())
    looks = spent = sent = 0
    for second in range(3600):
        rig.now_ns += SECOND_NS
        carried = None
        if rig.opinion.wants(rig.now_ns):
            looks += 1
            rig.now_ns -= SECOND_NS
            # In two minds for ever: now better than the target, now worse.
            if rig.frame(agrees=bool(second % 20), look=crowd) is Verdict.CARRY:
                carried = many
                spent += sum(it.ByteSize() for it in many.to_proto())
        rig.picture(300, keyframe=not second, carried=carried)
        sent += 300
    assert 120 <= looks < 400, "it stopped, and went on looking now and then"
    assert spent < 16_000 + 0.06 * sent


@pytest.mark.parametrize("model", [OTHER, bytes.fromhex(EDGE)[:8]])
def test_another_cloud_model_ends_all_trust(model: bytes) -> None:
    rig = Cloud(opinion())
    for _ in range(100):
        rig.frame()
    assert rig.frame(must_send=True) is Verdict.CARRY
    rig.model = model
    rig.report(agreed=1)
    assert rig.frame() is Verdict.CARRY
    assert rig.opinion.wants(rig.now_ns) is (model == OTHER), "agreeing with itself proves nothing"


def test_a_silent_cloud_ends_edge_answers_and_looks() -> None:
    rig = Cloud(opinion())
    for _ in range(100):
        rig.frame()
    rig.epoch = 8  # reports of another run are none of ours
    rig.now_ns += 3600 * SECOND_NS
    assert {rig.frame() for _ in range(60)} == {Verdict.CARRY}
    assert not rig.opinion.wants(rig.now_ns + 1)


def test_switched_off_or_without_a_model_it_never_looks() -> None:
    assert not opinion(answers="off").wants(1)  # type: ignore[arg-type]
    nothing = Opinion(DetectSettings(), "gate", epoch=1, model_sha256="")
    assert not nothing.wants(1)


def unit(sequence: int, *seen: Detections) -> frame_pb2.AccessUnit:
    made = frame_pb2.AccessUnit(sequence=sequence)
    for one in seen:
        made.edge.SetInParent()
        made.edge.detections.extend(one.to_proto())
    return made


def square(left: float, score: float) -> Detections:
    return Detections.build([[left, 10, left + 20, 50]], [score], [0], ["square"])


def test_the_cloud_counts_what_both_saw_and_leaves_out_what_it_doubts() -> None:
    reports = Reports(square_card())  # threshold 0.5: must from 0.625, ignored from 0.25
    cloud = Detections.build(
        [[10, 10, 30, 50], [100, 10, 120, 50], [200, 10, 220, 50]], [0.9, 0.4, 0.8], [0] * 3, ["square"] * 3
    )
    reports.compare("box1", 3, unit(5, square(11, 0.6), square(300, 0.7)), cloud)
    reports.compare("box1", 3, unit(6, square(100, 0.6)), cloud.take([1]))
    reports.compare("box1", 3, unit(7), cloud)
    assert reports.due(100) == [], "there is nothing to tell before frames have answers"
    reports.answered("box1", 3, 7)
    ((device, report),) = reports.due(101)
    assert (device, report.epoch_counter, report.last_sequence, report.model_prefix) == ("box1", 3, 7, CLOUD)
    assert [(it.sequence, it.agreed, it.extra, it.missed) for it in report.frames] == [
        (5, 1, 1, 1),
        (6, 0, 0, 0),
    ]
    reports.answered("box1", 3, 8)
    assert reports.due(105) == [], "told at most every ten seconds"
    assert reports.due(112)[0][1].frames == []
    assert len(reports.due(130)) == 0
