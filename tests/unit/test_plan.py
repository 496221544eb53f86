"""The plan picks frames evenly, starts chains when it must, and never calls unseen motion idle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edge_agent.config import DetectSettings, EncodeSettings
from edge_agent.gate import GateDecision, GateReason
from edge_agent.plan import (
    NEW_CHAIN_AFTER_IDLE_S,
    Action,
    ChainReason,
    Decision,
    LinkState,
    Pace,
    Planner,
)
from eyeline.ladder import Rung
from eyeline.v1 import device_pb2

MOTION = GateDecision(open=True, reason=GateReason.MOTION)
HOLD = GateDecision(open=True, reason=GateReason.HOLD)
FIRST = GateDecision(open=True, reason=GateReason.FIRST)
REFRESH = GateDecision(open=True, reason=GateReason.REFRESH)
IDLE = GateDecision(open=False, reason=GateReason.IDLE)
UP = LinkState()


class Camera:
    """Feeds a planner at a steady frame rate."""

    def __init__(self, fps: float = 10.0, *, look_fps: float = 1.0, **encode: object) -> None:
        settings = EncodeSettings.model_validate({"max_fps": 240} | encode)
        self.planner = Planner(settings, DetectSettings(max_fps=look_fps))
        self.step_ns = int(1e9 / fps)
        self.now_ns = 10**9

    def show(self, gate: GateDecision, link: LinkState = UP, *, opened: bool = False) -> Decision:
        self.now_ns += self.step_ns
        return self.planner.decide(gate, self.now_ns, link, opened=opened)

    def actions(self, *gates: GateDecision) -> str:
        return " ".join(self.show(gate).action.value for gate in gates)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(
    ("fps", "most"),
    [(10, 10), (25, 10), (30, 5), (12.5, 10), (10, 3), (15, 14), (30, 30), (5, 30), (60, 0.5)],
)
def test_pace_is_even_and_neither_over_nor_under(fps: float, most: float, jitter: float) -> None:
    pace, random = Pace(), np.random.default_rng(1)
    seconds = 60
    count = int(fps * seconds)
    times = (np.arange(count) + random.uniform(-jitter, jitter, count)) / fps + 1
    picked = [n for n, at in enumerate(times) if pace.pick(int(at * 1e9), most)]
    wanted = min(fps, most) * seconds
    assert wanted * 0.97 - 1 <= len(picked) <= wanted * 1.01 + 2
    gaps = [b - a for a, b in pairwise(picked[3:])]
    assert max(gaps) - min(gaps) <= (1 if jitter == 0 else 2)


def test_pace_after_a_pause_gives_no_burst() -> None:
    pace = Pace()
    assert sum(pace.pick(int((1 + n / 10) * 1e9), 2) for n in range(100)) in range(19, 23)
    assert sum(pace.pick(int((111 + n / 10) * 1e9), 2) for n in range(10)) <= 3


def test_idle_scene_sends_its_first_frame_only() -> None:
    assert Camera().actions(FIRST, *[IDLE] * 5) == "send idle idle idle idle idle"


def test_first_frame_starts_the_first_chain_and_the_rest_continues_it() -> None:
    camera = Camera()
    assert camera.show(FIRST).chain is ChainReason.FIRST
    assert [camera.show(MOTION).chain for _ in range(20)] == [None] * 20


def test_frames_over_the_limit_are_skipped_for_the_tracker() -> None:
    camera = Camera(max_fps=5)
    taken = [camera.show(gate).action for gate in [FIRST, *[MOTION] * 100]]
    assert taken.count(Action.SEND) in range(50, 53)
    assert taken.count(Action.SKIP) == 101 - taken.count(Action.SEND)


def test_more_frames_while_the_camera_itself_moves() -> None:
    camera = Camera(max_fps=2, moving_fps=5)
    panning = GateDecision(open=True, reason=GateReason.MOTION, camera_moves=True)
    camera.show(FIRST)
    taken = [[camera.show(gate).action for _ in range(100)] for gate in (MOTION, panning, MOTION)]
    assert [some.count(Action.SEND) // 5 for some in taken] == [4, 10, 4]


def test_start_of_motion_is_sent_whatever_the_rate() -> None:
    camera = Camera(max_fps=0.5)
    assert camera.show(FIRST).action is Action.SEND
    assert camera.show(IDLE).action is Action.IDLE
    assert camera.show(MOTION).action is Action.SEND
    assert camera.show(MOTION).action is Action.SKIP


def test_refresh_is_sent() -> None:
    camera = Camera(max_fps=0.1)
    assert camera.actions(FIRST, IDLE, REFRESH, IDLE) == "send idle send idle"
    assert camera.show(REFRESH).action is Action.SEND


def test_idle_stands_on_a_frame_that_shows_the_last_motion() -> None:
    camera = Camera(max_fps=0.5)
    actions = [camera.show(gate).action for gate in (FIRST, MOTION, MOTION, MOTION, IDLE, IDLE)]
    assert actions == [Action.SEND, Action.SKIP, Action.SKIP, Action.SKIP, Action.SEND, Action.IDLE]


def test_idle_after_lost_motion_is_sent_as_soon_as_it_can() -> None:
    camera = Camera()
    full = LinkState(fill=1.0)
    assert camera.show(FIRST).action is Action.SEND
    assert camera.show(MOTION, full).action is Action.DROP
    assert camera.show(IDLE, full).action is Action.DROP
    sent = camera.show(IDLE)
    assert (sent.action, sent.chain) == (Action.SEND, ChainReason.LOST)
    assert camera.show(IDLE).action is Action.IDLE
    camera.planner.missed()
    assert camera.show(IDLE).action is Action.SEND


def test_drops_say_why_and_break_the_chain() -> None:
    camera = Camera()
    camera.show(FIRST)
    full = camera.show(MOTION, LinkState(fill=0.99))
    assert (full.action, full.reason) == (Action.DROP, "spool_full")
    late = camera.show(MOTION, LinkState(overloaded=True))
    assert (late.action, late.reason) == (Action.DROP, "overload")
    assert camera.show(MOTION).chain is ChainReason.LOST


def test_a_cloud_that_falls_behind_lowers_the_rate_and_drops_nothing() -> None:
    camera = Camera(max_fps=10)
    actions = [camera.show(MOTION, LinkState(cloud_share=0.25)).action for _ in range(200)]
    assert 45 <= actions.count(Action.SEND) <= 55
    assert actions.count(Action.SKIP) == 200 - actions.count(Action.SEND)


def test_filling_spool_lowers_the_rate() -> None:
    def sent(fill: float) -> int:
        camera = Camera(max_fps=10)
        return sum(camera.show(MOTION, LinkState(fill=fill)).action is Action.SEND for _ in range(200))

    counts = [sent(fill) for fill in (0.0, 0.5, 0.7, 0.9, 0.94)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == counts[1] == 200
    assert 15 <= counts[-1] <= 40


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (LinkState(connected=False), LinkState(), ChainReason.RECONNECT),
        (LinkState(breaks=3), LinkState(breaks=4), ChainReason.LANE),
        (LinkState(), LinkState(connected=False), None),
    ],
)
def test_link_starts_chains(before: LinkState, after: LinkState, reason: ChainReason | None) -> None:
    camera = Camera()
    camera.show(FIRST, before)
    camera.show(MOTION, before)
    assert camera.show(MOTION, after).chain is reason
    assert camera.show(MOTION, after).chain is None


def test_reopened_source_starts_a_chain() -> None:
    camera = Camera()
    camera.show(FIRST, opened=True)
    assert camera.show(FIRST, opened=True).chain is ChainReason.REOPENED


def test_demand_sends_even_an_idle_frame_once() -> None:
    camera = Camera()
    camera.actions(FIRST, IDLE)
    camera.planner.demand_keyframe()
    sent = camera.show(IDLE)
    assert (sent.action, sent.chain) == (Action.SEND, ChainReason.DEMAND)
    assert camera.show(IDLE).action is Action.IDLE


def test_chain_is_limited_in_frames_and_age() -> None:
    camera = Camera(max_chain_frames=10)
    chains = [camera.show(MOTION).chain for _ in range(31)]
    assert [n for n, chain in enumerate(chains) if chain] == [0, 10, 20, 30]
    assert chains[10] is ChainReason.FRAMES
    camera = Camera(fps=1, max_chain_s=20)
    chains = [camera.show(MOTION).chain for _ in range(41)]
    assert [n for n, chain in enumerate(chains) if chain] == [0, 20, 40]
    assert chains[20] is ChainReason.AGE


def test_short_idle_continues_the_chain_and_a_long_one_ends_it() -> None:
    camera = Camera(fps=1)
    camera.show(FIRST)
    camera.actions(*[IDLE] * 60)
    assert camera.show(MOTION).chain is None
    camera.actions(HOLD, *[IDLE] * int(NEW_CHAIN_AFTER_IDLE_S + 1))
    assert camera.show(MOTION).chain is ChainReason.IDLE


def test_every_still_is_its_own_chain() -> None:
    camera = Camera(codec="jpeg")
    assert [camera.show(MOTION).chain for _ in range(3)] == [
        ChainReason.FIRST,
        ChainReason.STILL,
        ChainReason.STILL,
    ]


def test_edge_model_runs_at_its_own_rate_and_on_sent_frames_only() -> None:
    camera = Camera(fps=10, look_fps=2, max_fps=5)
    decisions = [camera.show(MOTION) for _ in range(100)]
    assert sum(decision.look for decision in decisions) in range(19, 23)
    assert all(decision.action is Action.SEND for decision in decisions if decision.look)


def test_desired_settings_override_and_go_back() -> None:
    camera = Camera(max_fps=10, crf=28, width_px=416)
    camera.show(FIRST)
    camera.planner.desire(device_pb2.DesiredCamera(max_fps=2))
    assert camera.planner.rung == Rung("h264", 416, 28, 80, 2.0)
    assert camera.planner.rung.name == "h264 416px crf28 2fps"
    camera.now_ns += 10**9
    # Another frame rate is the same stream.
    assert camera.show(MOTION).chain is None
    camera.planner.desire(device_pb2.DesiredCamera(crf=99, width_px=1))
    assert camera.planner.rung == Rung("h264", 64, 51, 80, 10.0)
    camera.now_ns += 10**9
    assert camera.show(MOTION).chain is ChainReason.RUNG
    camera.planner.desire(None)
    assert camera.planner.rung == Rung("h264", 416, 28, 80, 10.0)


def test_paused_camera_says_so_and_starts_afresh() -> None:
    camera = Camera()
    camera.show(FIRST)
    camera.planner.desire(device_pb2.DesiredCamera(paused=True))
    assert [(d.action, d.reason) for d in (camera.show(MOTION), camera.show(IDLE))] == [
        (Action.DROP, "paused")
    ] * 2
    camera.planner.desire(None)
    resumed = camera.show(IDLE)
    assert (resumed.action, resumed.chain) == (Action.SEND, ChainReason.LOST)
