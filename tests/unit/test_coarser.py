"""Pressure that lasts costs quality in steps, and only long calm gives it back."""

from __future__ import annotations

from edge_agent.coarser import Coarser
from edge_agent.config import DetectSettings, EncodeSettings
from edge_agent.gate import GateDecision, GateReason
from edge_agent.plan import LinkState, Planner

SECOND = 1_000_000_000
MOTION = GateDecision(open=True, reason=GateReason.MOTION)


def test_steps_down_while_pressed_and_up_after_calm() -> None:
    coarser = Coarser()
    seen = []
    for second in range(14):
        coarser.follow(second * SECOND, 0.5)
        seen.append(coarser.steps)
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]
    calm = 0
    for second in range(14, 140):
        calm += coarser.follow(second * SECOND, 1.0)
    assert (calm, coarser.steps) == (3, 0)


def test_a_moment_of_pressure_changes_nothing() -> None:
    coarser = Coarser()
    for second in range(60):
        assert not coarser.follow(second * SECOND, 0.5 if second % 3 == 0 else 1.0)


def test_a_live_queue_that_grows_old_moves_rate_and_rung_and_an_idle_link_neither() -> None:
    planner = Planner(EncodeSettings(max_fps=5), DetectSettings())
    sent = {0.0: 0, 3.0: 0}
    for wait_s in sent:
        for frame in range(100):
            now = int((frame + (1000 if wait_s else 0)) * SECOND / 10)
            decision = planner.decide(MOTION, now, LinkState(live_wait_s=wait_s))
            sent[wait_s] += decision.action.value == "send"
    assert sent[3.0] < 0.8 * sent[0.0]
    assert planner.rung.crf > EncodeSettings().crf
    assert "link" in planner.reason
