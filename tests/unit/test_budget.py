"""The byte budget: never more than it in any ten seconds, whatever the pictures cost."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.budget import STEP_CRF, ByteBudget
from edge_agent.config import DetectSettings, EncodeSettings
from edge_agent.gate import GateDecision, GateReason
from edge_agent.plan import Action, LinkState, Planner
from eyeline.v1 import device_pb2

MOTION = GateDecision(open=True, reason=GateReason.MOTION)
IDLE = GateDecision(open=False, reason=GateReason.IDLE)
STEP_NS = 100_000_000


def play(budget_kbit_s: float, sizes: list[int], *, batch_ms: float = 0.0) -> list[tuple[int, int]]:
    """(time, data bytes) of what a camera at 10 frames a second sends; each frame's size if it is sent."""
    encode = EncodeSettings(max_fps=10, budget_kbit_s=budget_kbit_s, batch_ms=batch_ms)
    planner = Planner(encode, DetectSettings(enabled=False))
    sent = []
    for index, size in enumerate(sizes):
        now = 10**9 + index * STEP_NS
        decision = planner.decide(MOTION, now, LinkState())
        if decision.action is Action.SEND:
            coarser = 0.66 ** ((decision.rung.crf - 30) / STEP_CRF)
            data = int(size * coarser * (8 if decision.chain else 1)) + 1
            planner.sent(data, now, keyframe=decision.chain is not None)
            sent.append((now, data))
    return sent


def most_in_ten_seconds(sent: list[tuple[int, int]]) -> int:
    return max(sum(size for at, size in sent if start <= at < start + 10**10) for start, _ in sent)


@pytest.mark.parametrize("kbit_s", [20, 50, 200])
@pytest.mark.parametrize("size", [100, 500, 2000])
def test_no_ten_seconds_bring_more_than_the_budget(kbit_s: float, size: int) -> None:
    sent = play(kbit_s, [size] * 1200)
    assert most_in_ten_seconds(sent) <= kbit_s * 1250 * 1.1
    assert len(sent) > 20


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(50, 3000), min_size=200, max_size=600))
def test_unsteady_pictures_keep_inside_as_well(sizes: list[int]) -> None:
    # What a single picture, or keyframe, exceeds the last ones by still comes on top.
    assert most_in_ten_seconds(play(50, sizes)) <= 50 * 1250 + 8 * 3000


def test_a_small_budget_begins_where_a_keyframe_fits() -> None:
    budget = ByteBudget(20, 1, 3)
    budget.start(24, 416)
    assert budget.steps == 3
    budget.start(36, 416)
    assert budget.steps == 0


def test_what_the_link_carries_beside_pictures_comes_off() -> None:
    sizes = []
    for beside in (5_000.0, 15_000.0, 90_000.0):
        planner = Planner(
            EncodeSettings(budget_kbit_s=20, max_fps=10, batch_ms=0), DetectSettings(enabled=False)
        )
        link, total = LinkState(beside_bytes=beside), 0
        for n in range(100):
            if planner.decide(MOTION, 10**9 + n * STEP_NS, link).action is Action.SEND:
                planner.sent(100, 10**9 + n * STEP_NS, keyframe=False)
                total += 100 + 60 + 750
        sizes.append(total)
        # However much it is, a little is left.
        assert 0.15 * 25_000 < total <= max(25_000 - beside, 5_000)
    assert sizes == sorted(sizes, reverse=True)


def test_late_pictures_get_a_share_of_the_budget() -> None:
    budget = ByteBudget(20, 0, 3)
    budget.spend(16_000, 0, keyframe=True)
    assert budget.fits(0, keyframe=False)
    budget.late = True
    assert not budget.fits(0, keyframe=False)


def test_while_a_connection_is_made_the_first_keyframe_is_smaller() -> None:
    budget = ByteBudget(20, 4, 3, device_bytes_s=550)
    budget.start(32, 416)
    begun = budget.steps
    now = 0
    for _ in range(200):
        now += 5 * STEP_NS
        budget.beside_bytes = 5_500
        budget.spend(1, now, keyframe=False)
        budget.step(now)
    assert budget.steps < begun, "only until then"


def test_a_budget_that_is_ample_changes_nothing() -> None:
    assert len(play(1000, [200] * 300)) == 300


def test_a_tight_budget_codes_more_coarsely_and_recovers() -> None:
    budget = ByteBudget(20, 4, 2)
    now = 0
    steps = []
    for size in [1000] * 60 + [100] * 60:
        now += 5 * STEP_NS
        budget.spend(size, now, keyframe=False)
        budget.step(now)
        steps.append(budget.steps)
    assert steps[5] == 0
    assert 0 < steps[-1] < steps[59]


def test_what_could_not_be_shown_is_shown_when_there_is_room() -> None:
    planner = Planner(EncodeSettings(max_fps=10, budget_kbit_s=20), DetectSettings(enabled=False))
    assert planner.decide(MOTION, 10**9, LinkState()).action is Action.SEND
    planner.sent(25_000, 10**9, keyframe=True)
    assert planner.decide(MOTION, 2 * 10**9, LinkState()).action is Action.SKIP
    assert planner.decide(IDLE, 3 * 10**9, LinkState()).action is Action.SKIP
    assert planner.decide(IDLE, 12 * 10**9, LinkState()).action is Action.SEND


def test_an_ample_budget_affords_a_finer_rung_unless_the_cloud_chose_it() -> None:
    rungs = {}
    for chosen in (False, True):
        planner = Planner(EncodeSettings(budget_kbit_s=200, batch_ms=0), DetectSettings(enabled=False))
        if chosen:
            planner.desire(device_pb2.DesiredCamera(crf=32))
        for n in range(1200):
            now = 10**9 + n * STEP_NS
            decision = planner.decide(MOTION, now, LinkState())
            if decision.action is Action.SEND:
                planner.sent(15_000 if decision.chain else 700, now, keyframe=decision.chain is not None)
        rungs[chosen] = planner.rung
    assert (rungs[False].crf, rungs[False].max_fps) == (22, pytest.approx(3.4))
    assert (rungs[True].crf, rungs[True].max_fps) == (32, 2.5)
