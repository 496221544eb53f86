"""Who a canary is, what a comparison says, and what a policy makes of it."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from cloud_inference.accuracy import Bands
from cloud_inference.rollout.compare import Seen, judge
from cloud_inference.rollout.drift import FEATURES, MUCH, CameraDrift
from cloud_inference.rollout.plan import Policy, Rollout
from eyeline.errors import ConfigError
from eyeline.values import Detections

BANDS = Bands(must=0.5, ignore=0.2, answer=0.4)


def found(*rows: tuple[float, float, float, float, float]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 5)
    names = ("person",) * len(table)
    return Detections.build(table[:, :4], table[:, 4], np.zeros(len(table), np.int32), names)


def test_a_canary_is_sticky_and_grows_without_changing_sides() -> None:
    cameras = [("yard", f"camera{number}") for number in range(2000)]

    def canaries(share: float, patterns: tuple[str, ...] = ("*/*",)) -> set[tuple[str, str]]:
        rollout = Rollout(candidate="b", mode="canary", share=share, cameras=patterns)
        return {it for it in cameras if rollout.is_canary(*it)}

    few, more = canaries(0.1), canaries(0.3)
    assert few < more
    assert 150 < len(few) < 250
    assert canaries(0) == set()
    assert canaries(1) == set(cameras)
    assert canaries(1, ("yard/camera7", "shop/*")) == {("yard", "camera7")}
    assert not Rollout(candidate="b", mode="shadow", share=1).is_canary("yard", "camera7")


def test_the_document_goes_through_its_states_and_keeps_its_history() -> None:
    first = Rollout().begin("b", "canary", by="ann", at_s=1.0, share=0.5)
    assert first.running
    assert (first.share, first.candidate, first.stable) == (0.5, "b", None)
    promoted = first.promoted(by="policy", at_s=2.0, why="good")
    assert (promoted.running, promoted.stable, promoted.before) == (False, "b", None)
    second = promoted.begin("c", "shadow", by="ann", at_s=3.0)
    assert second.id != first.id
    back = second.rolled_back(by="policy", at_s=4.0, why="bad")
    assert (back.running, back.stable) == (False, "b")
    assert [(it.what, it.by, it.why) for it in back.history] == [
        ("canary b", "ann", ""),
        ("promote b", "policy", "good"),
        ("shadow c", "ann", ""),
        ("rollback c", "policy", "bad"),
    ]
    assert Rollout.from_json(back.to_json()) == back
    # Of a newer worker: what is not known is left out.
    assert Rollout.from_json(b'{"stable": "b", "later": 1}').stable == "b"
    for bad in (b"{", b'{"mode": "sideways"}', b"[]"):
        with pytest.raises(ConfigError, match="key rollout"):
            Rollout.from_json(bad)


def test_sums_tell_agreement_shift_and_time() -> None:
    one, two = Seen("r"), Seen("r")
    stable = found((0, 0, 10, 10, 0.9), (20, 20, 40, 40, 0.8), (50, 0, 60, 9, 0.3))
    one.add(stable, found((0, 0, 10, 10, 0.8), (20, 20, 40, 40, 0.9)), BANDS, BANDS)
    assert (one.agreement, one.compared) == (1.0, 1)
    assert one.score_shift == pytest.approx(0.0, abs=1e-6)
    two.add(stable, found((0, 0, 10, 10, 0.5), (70, 70, 80, 80, 0.9)), BANDS, BANDS)
    assert (two.hits, two.extra, two.missed) == (1, 1, 1)
    assert two.score_shift == pytest.approx(-0.4)
    # A model with another scale of scores is compared by what it would answer.
    low = Bands(must=0.1, ignore=0.02, answer=0.05)
    scaled = Seen("r")
    scaled.add(stable, found((0, 0, 10, 10, 0.09), (20, 20, 40, 40, 0.08)), BANDS, low)
    assert scaled.agreement == 1.0
    one.stable_requests = one.candidate_requests = two.stable_requests = two.candidate_requests = 30
    one.stable_s, two.stable_s, one.candidate_s, two.candidate_s = 1.0, 1.0, 2.0, 4.0
    total = one + two
    assert (total.hits, total.compared) == (3, 2)
    assert total.slower == pytest.approx(3.0)
    assert Seen.from_json(total.to_json()) == total
    assert Seen.from_json(b"{") is None


GOOD = Seen(
    "r", compared=300, hits=300, stable_requests=300, stable_s=3, candidate_requests=300, candidate_s=3
)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"hits": 100, "missed": 200}, "agreement 0.500 on 300 frames, at least 0.8 is asked"),
        ({"shift": 90.0, "shifted": 300}, r"scores shift by \+0.300"),
        ({"errors": 30}, "9.1% of 330 requests failed"),
        ({"candidate_s": 9.0}, "3.0 times as long"),
        ({"broken": "b cannot be asked: no such model"}, "cannot be asked"),
        # Too little to tell.
        ({"compared": 199, "hits": 0, "missed": 199}, None),
        ({"errors": 30, "candidate_requests": 10}, None),
    ],
)
def test_a_policy_rolls_back_what_is_worse(change: dict[str, float], why: str | None) -> None:
    rollout = Rollout().begin("b", "canary", by="ann", at_s=1000.0)
    verdict = judge(rollout, dataclasses.replace(GOOD, **change), 1100.0)  # type: ignore[arg-type]
    if why is None:
        assert verdict is None
        return
    assert verdict is not None
    assert verdict.what == "rollback"
    assert re.search(why, verdict.why), verdict.why


def test_a_policy_promotes_what_held_for_long_enough() -> None:
    policy = Policy(promote=True, promote_after_s=60)
    rollout = Rollout().begin("b", "canary", by="ann", at_s=1000.0, policy=policy.model_dump())
    assert judge(rollout, GOOD, 1030.0) is None
    verdict = judge(rollout, GOOD, 1061.0)
    assert verdict is not None
    assert verdict.what == "promote"
    assert judge(rollout, Seen("r", compared=10), 5000.0) is None
    assert judge(rollout.promoted(by="x", at_s=0), GOOD, 5000.0) is None
    free = rollout.begin("b", "canary", by="ann", at_s=0, policy=None)
    assert judge(free, Seen("r", compared=1000, missed=1000), 5000.0) is None


def test_drift_shows_in_the_feature_that_moved_and_survives_a_handover() -> None:
    random = np.random.default_rng(1)
    drift = CameraDrift("model")

    def day(count: int, *, light: int = 120, objects: int = 2, score: float = 0.7) -> None:
        for _ in range(count):
            image = random.normal(light, 30, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            rows = [(5.0, 5.0, 20.0, 20.0, float(np.clip(random.normal(score, 0.05), 0, 1)))] * objects
            drift.add(image, found(*rows))

    day(499)
    assert set(drift.psi().values()) == {0.0}
    day(300)
    assert max(drift.psi().values()) < 0.1
    again = CameraDrift.from_json(drift.to_json(), "model")
    assert again.psi() == pytest.approx(drift.psi(), abs=0.02)
    assert CameraDrift.from_json(drift.to_json(), "another").pictures == 0
    assert CameraDrift.from_json(b"{}", "model").pictures == 0
    day(400, light=40)
    moved = {name for name, value in drift.psi().items() if value > MUCH}
    assert moved == {"brightness"}
    day(600, score=0.35, objects=6)
    assert {"score", "objects"} <= {name for name, value in drift.psi().items() if value > MUCH}
    assert tuple(drift.psi()) == FEATURES
