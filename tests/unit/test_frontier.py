"""From scored rungs to a frontier, from a frontier to a rung, and along it under pressure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_inference.frontier import Scored, even_out, frontier
from edge_agent.config import DetectSettings, EncodeSettings
from edge_agent.frontier import Home, Position, Step, Wish, choose, delay_s, steps_of
from edge_agent.gate import GateDecision, GateReason
from edge_agent.plan import Action, ChainReason, LinkState, Planner
from eyeline.ladder import CRFS, FRAME_RATES, Rung, from_proto, ladder, to_proto
from eyeline.v1 import calibration_pb2, device_pb2

S = 1_000_000_000


def rung(fps: float = 2.0, crf: int = 30, width: int = 416) -> Rung:
    return Rung("h264", width, crf, 80, fps, "high")


STEPS = (
    Step(rung(0.67, 38), 200, 0.85),
    Step(rung(1.0, 34), 400, 0.92),
    Step(rung(2.0, 34), 800, 0.955),
    Step(rung(2.0, 30), 1200, 0.97),
    Step(rung(4.0, 26), 3000, 0.99),
)


# The ladder


def test_the_ladder_lies_around_what_the_settings_name() -> None:
    rungs = ladder(rung())
    assert len(rungs) == len(set(rungs)) == len(FRAME_RATES) * (2 * len(CRFS) - 2)
    assert {it.width_px for it in rungs} == {416, 320}
    assert all(
        it.effort == ("high" if it.max_fps * it.width_px**2 <= 3.4 * 416**2 else "low") for it in rungs
    )
    assert {it.effort for it in ladder(rung(), fixed_effort="low")} == {"low"}
    stills = ladder(Rung("jpeg", 640, 30, 80, 2.0))
    assert {it.codec for it in stills} == {"jpeg"}
    assert {it.quality for it in stills} == {40, 60, 80}
    assert {it.codec for it in ladder(Rung("passthrough", 416, 30, 80, 2.0))} == {"h264"}


def test_rungs_travel() -> None:
    for one in ladder(rung()):
        assert from_proto(to_proto(one)) == one


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": "mpeg2"},
        {"codec": "passthrough"},
        {"effort": ""},
        {"width_px": 5},
        {"crf": 99},
        {"max_fps": 0.0},
        {"max_fps": float("nan")},
        {"quality": 0},
    ],
)
def test_a_rung_that_no_encoder_can_be_set_to_is_refused(wrong: dict[str, object]) -> None:
    message = to_proto(rung())
    for name, value in wrong.items():
        setattr(message, name, value)
    with pytest.raises(ValueError, match="rung"):
        from_proto(message)


# The cloud's part


def scored(table: dict[tuple[float, int], tuple[float, float]]) -> list[Scored]:
    return [Scored(rung(fps, crf), size, f1, f1 - 0.02) for (fps, crf), (size, f1) in table.items()]


def evened(table: dict[tuple[float, int], float]) -> list[float]:
    return even_out([rung(fps, crf) for fps, crf in table], list(table.values()))


def test_the_frontier_is_what_nothing_beats() -> None:
    found = frontier(
        scored({(1.0, 38): (100, 0.8), (1.0, 30): (300, 0.9), (2.0, 38): (400, 0.88), (2.0, 30): (700, 0.96)})
    )
    assert [(round(it.bytes_per_s), round(it.f1_even, 3)) for it in found] == [
        (100, 0.8),
        (300, 0.9),
        (700, 0.96),
    ]
    assert [round(it.f1_low, 3) for it in found] == [0.78, 0.88, 0.94]


def test_a_lucky_rung_is_evened_out() -> None:
    """Coarser than its neighbour and better by chance: the two share what they have."""
    even = evened({(2.0, 42): 0.97, (2.0, 38): 0.91, (2.0, 34): 0.98})
    assert even == pytest.approx([0.94, 0.94, 0.98])
    (first, *_) = frontier(scored({(2.0, 42): (100, 0.97), (2.0, 38): (200, 0.91)}))
    assert first.f1 == pytest.approx(0.97)
    assert first.f1_even == pytest.approx(0.94)


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_evened_out_f1_never_falls_with_bits_or_frames(values: list[float]) -> None:
    rates, crfs = (1.0, 2.0, 4.0), (38, 34, 30, 26)
    cells = [(fps, crf) for fps in rates for crf in crfs]
    even = evened(dict(zip(cells, values, strict=True)))
    grid = np.array(even).reshape(3, 4)
    assert (np.diff(grid, axis=0) > -1e-3).all()
    assert (np.diff(grid, axis=1) > -1e-3).all()
    assert grid.mean() == pytest.approx(np.mean(values), abs=1e-6)


# The device's part


def test_the_cheapest_rung_that_is_good_enough() -> None:
    home = choose(STEPS, Wish(0.95), "smooth")
    assert home is not None
    assert home.index == 2
    assert home.reason == ("cheapest rung with F1 >= 0.95: h264 416px crf34 2fps, F1 0.955 at 0.80 KB/s")


SURE = tuple(
    dataclasses.replace(it, f1_low=low)
    for it, low in zip(STEPS, (0.8, 0.89, 0.93, 0.953, 0.985), strict=True)
)


def test_where_a_sample_is_too_small_to_prove_anything_bytes_are_not_spent_on_proof() -> None:
    steps = [dataclasses.replace(it, f1_low=it.f1 - 0.045) for it in STEPS]
    steps[3] = dataclasses.replace(steps[3], f1_low=0.931)
    home = choose(steps, Wish(0.95), "smooth")
    assert home is not None
    assert home.index == 3
    assert home.reason.startswith("no rung surely reaches F1 0.95; nearly the best: h264 416px crf30 2fps")
    steps[3] = dataclasses.replace(steps[3], f1_low=0.929)
    home = choose(steps, Wish(0.95), "smooth")
    assert home is not None
    assert home.index == 4, "so much less of proof is too little"


@pytest.mark.parametrize(
    ("target", "index", "says", "figures"),
    [
        (0.95, 3, "cheapest rung with F1 >= 0.95: h264 416px crf30 2fps", "F1 0.970 (at least 0.953)"),
        (0.987, 4, "no rung surely reaches F1 0.987; the best", "F1 0.990 (at least 0.985)"),
        (0.995, 4, "no rung reaches F1 0.995; the best", "F1 0.990 (at least 0.985)"),
    ],
)
def test_a_rung_has_to_be_good_enough_for_sure(target: float, index: int, says: str, figures: str) -> None:
    home = choose(SURE, Wish(target), "smooth")
    assert home is not None
    assert home.index == index
    assert home.reason.startswith(says)
    assert figures in home.reason


@pytest.mark.parametrize(
    ("wish", "index", "says"),
    [
        (Wish(0.995), 4, "no rung reaches F1 0.995; the best"),
        (Wish(0.95, bytes_per_s=500), 1, "no rung reaches F1 0.95 within 4 kbit/s; the best"),
        (Wish(0.9, max_delay_s=0.6), 2, "cheapest rung with F1 >= 0.9 within 0.6 s"),
        (Wish(0.9, max_delay_s=0.6, batch_s=0.3), 4, "cheapest rung with F1 >= 0.9 within 0.6 s"),
        (Wish(0.9, bytes_per_s=100), 0, "no rung keeps to what is set within 0.8 kbit/s; the nearest"),
        (Wish(0.9, max_delay_s=0.1), 4, "no rung keeps to what is set within 0.1 s; the nearest"),
        (Wish(0.95, bytes_per_s=2000), 2, "cheapest rung with F1 >= 0.95 within 16 kbit/s"),
    ],
)
def test_bounds_come_first_and_are_told(wish: Wish, index: int, says: str) -> None:
    home = choose(STEPS, wish, "smooth")
    assert home is not None
    assert home.index == index
    assert home.reason.startswith(says)


def test_predicted_answers_wait_for_no_picture() -> None:
    assert delay_s(rung(2.0), 0.1, "smooth") == pytest.approx(0.6)
    assert delay_s(rung(2.0), 0.1, "causal") == pytest.approx(0.1)
    home = choose(STEPS, Wish(0.8, max_delay_s=0.1), "causal")
    assert home is not None
    assert home.index == 0
    assert choose((), Wish(0.8), "causal") is None


def test_pressure_moves_down_soon_and_up_late() -> None:
    at = Position(STEPS, Home(3, "home"))
    times = range(0, 60, 1)
    assert not at.follow(0, bytes_share=0.5, rate_share=1.0)
    moved = [t for t in times if at.follow(t * S, bytes_share=0.5, rate_share=1.0)]
    assert moved == [3]
    assert at.step == STEPS[1]
    moved = [t for t in times if at.follow((100 + t) * S, bytes_share=1.0, rate_share=1.0)]
    assert moved == [15]
    assert at.index == at.home.index == 3


def test_pressure_that_comes_and_goes_moves_nothing() -> None:
    at = Position(STEPS, Home(3, "home"))
    for second in range(60):
        assert not at.follow(second * S, bytes_share=0.5 if second % 3 else 1.0, rate_share=1.0)


def test_a_cloud_that_is_behind_gets_fewer_pictures_not_coarser_ones() -> None:
    at = Position(STEPS, Home(3, "home"))
    for second in range(5):
        at.follow(second * S, bytes_share=1.0, rate_share=0.55)
    assert at.step == STEPS[1], "two rungs with 2 frames a second are left out"
    assert at.residual(1.0, 0.55) == 1.0
    assert at.residual(1.0, 0.25) == pytest.approx(0.5)
    assert at.residual(0.25, 1.0) == pytest.approx(0.75)


def test_profiles_are_read_with_care() -> None:
    points = [
        calibration_pb2.ProfilePoint(rung=to_proto(it.rung), bytes_per_s=it.bytes_per_s, f1_even=it.f1)
        for it in STEPS
    ]
    read = steps_of(calibration_pb2.Profile(frontier=points))
    assert [it.rung for it in read] == [it.rung for it in STEPS]
    assert {it.f1_low for it in read} == {None}, "made by a cloud of an earlier version"
    home = choose(read, Wish(0.95), "smooth")
    assert home is not None
    assert home.index == 2
    points[0].f1_low = 0.5
    assert steps_of(calibration_pb2.Profile(frontier=points))[0].f1_low == 0.5
    points[2].rung.codec = "h266"
    with pytest.raises(ValueError, match="codec"):
        steps_of(calibration_pb2.Profile(frontier=points))


# The planner


MOTION = GateDecision(open=True, reason=GateReason.MOTION)


class Camera:
    def __init__(self, **encode: object) -> None:
        self.planner = Planner(EncodeSettings.model_validate(encode), DetectSettings())
        self.now_ns = S

    def play(
        self, seconds: float, link: LinkState = LinkState(), size: int = 100
    ) -> list[ChainReason | None]:
        """Ten frames a second; why each picture that was sent started a chain."""
        sent = []
        for _ in range(round(seconds * 10)):
            self.now_ns += S // 10
            decision = self.planner.decide(MOTION, self.now_ns, link)
            if decision.action is Action.SEND:
                sent.append(decision.chain)
                self.planner.sent(size, self.now_ns, keyframe=decision.chain is not None)
        return sent


def test_a_profile_sets_the_rung_and_none_sets_it_back() -> None:
    camera = Camera()
    own = camera.planner.rung
    assert camera.planner.reason == "as the settings say"
    camera.play(2)
    camera.planner.settle(STEPS, Home(2, "for good reason"))
    assert camera.planner.rung == STEPS[2].rung
    assert camera.planner.reason == "for good reason"
    assert camera.play(2)[0] is ChainReason.RUNG
    camera.planner.settle((), None)
    assert camera.planner.rung == own


def test_what_the_cloud_asks_for_goes_before_the_profile() -> None:
    camera = Camera()
    camera.planner.settle(STEPS, Home(2, "home"))
    camera.planner.desire(device_pb2.DesiredCamera(camera="gate", crf=20))
    assert camera.planner.rung.crf == 20
    assert camera.planner.reason == "as the cloud asks"
    camera.planner.desire(device_pb2.DesiredCamera(camera="gate"))
    assert camera.planner.rung == STEPS[2].rung


def test_the_rung_follows_a_full_spool_and_a_slow_cloud() -> None:
    camera = Camera()
    camera.planner.settle(STEPS, Home(3, "home"))
    camera.play(2)
    camera.play(6, LinkState(fill=0.7))
    assert camera.planner.rung == STEPS[1].rung
    assert camera.planner.reason == "2 below home for the link or the cloud; home"
    camera.play(20)
    assert camera.planner.rung == STEPS[3].rung
    camera.play(6, LinkState(cloud_share=0.4))
    assert camera.planner.rung == STEPS[0].rung
    # As many pictures as the cloud takes: 0.4 of two a second.
    assert len(camera.play(30, LinkState(cloud_share=0.4))) == pytest.approx(0.67 * 30, abs=2)


def test_the_budget_moves_down_the_frontier_and_then_on() -> None:
    camera = Camera(budget_kbit_s=20)
    camera.planner.settle(STEPS, Home(1, "home"))
    camera.play(120, size=9000)
    assert camera.planner.rung.crf > STEPS[0].rung.crf, "below the last rung the quantiser goes on"
    assert camera.planner.rung == dataclasses.replace(STEPS[0].rung, crf=camera.planner.rung.crf)
    assert "down for the byte budget; home" in camera.planner.reason


def test_lent_bytes_are_not_spent() -> None:
    sizes = []
    for lent in (0.0, 1250.0):
        camera = Camera(budget_kbit_s=20, max_fps=10)
        camera.planner.lend(lent)
        camera.play(20, size=300)
        sizes.append(len(camera.play(60, size=300)))
    assert 0.4 * sizes[0] < sizes[1] < 0.65 * sizes[0]
