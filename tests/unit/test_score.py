import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.score import Counts, compare, iou, score
from cloud_inference.accuracy import errors_together, f1_at_least
from eyeline.values import Detections


def boxes(*rows: tuple[float, float, int]) -> Detections:
    """Rows of left edge, score, class; all 10 px wide and 20 px high."""
    return Detections.build(
        [[x, 0, x + 10, 20] for x, _, _ in rows],
        [s for _, s, _ in rows],
        [c for _, _, c in rows],
        [str(c) for _, _, c in rows],
    )


def test_overlap() -> None:
    one = np.array([[0, 0, 10, 10]], np.float32)
    two = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    np.testing.assert_allclose(iou(one, two), [[1, 1 / 3, 0]])


@pytest.mark.parametrize(
    ("reference", "answer", "counts"),
    [
        (boxes((0, 0.9, 0)), boxes((1, 0.9, 0)), Counts(1, 0, 0)),
        (boxes((0, 0.9, 0)), boxes((1, 0.9, 1)), Counts(0, 1, 1)),
        (boxes((0, 0.9, 0)), boxes((8, 0.9, 0)), Counts(0, 1, 1)),
        (boxes((0, 0.9, 0)), boxes((0, 0.3, 0)), Counts(0, 0, 1)),
        # In the band between: neither a miss nor a false alarm.
        (boxes((0, 0.3, 0)), boxes(), Counts(0, 0, 0)),
        (boxes((0, 0.3, 0)), boxes((0, 0.9, 0)), Counts(0, 0, 0)),
        (boxes((0, 0.1, 0)), boxes((0, 0.9, 0)), Counts(0, 1, 0)),
        # One to one: the second answer for the same object is a false alarm.
        (boxes((0, 0.9, 0)), boxes((0, 0.9, 0), (1, 0.8, 0)), Counts(1, 1, 0)),
        # A required box keeps its answer, though an ignored one overlaps more.
        (boxes((0, 0.9, 0), (2, 0.3, 0)), boxes((2, 0.9, 0)), Counts(1, 0, 0)),
        (boxes(), boxes(), Counts(0, 0, 0)),
    ],
)
def test_counts(reference: Detections, answer: Detections, counts: Counts) -> None:
    assert compare(reference, answer) == counts


def test_summary() -> None:
    summary = score([Counts(8, 1, 1)] * 99 + [Counts(0, 0, 0)])
    assert summary.f1 == pytest.approx(8 / 9)
    assert summary.f1_low == pytest.approx(summary.f1_high)
    assert summary.f1_frame_mean == pytest.approx((99 * 8 / 9 + 1) / 100)
    mixed = score([Counts(1, 0, 0)] * 50 + [Counts(0, 0, 1)] * 50)
    assert mixed.f1_low < mixed.f1 < mixed.f1_high
    with pytest.raises(ValueError, match="no frames"):
        score([])


def test_the_bound_of_a_sample_knows_how_unsteady_it_is() -> None:
    steady = np.tile([9.0, 0.0, 1.0], (100, 1))
    assert f1_at_least(steady, 20) == pytest.approx(18 / 19)
    unsteady = steady.copy()
    unsteady[20:40] = [6, 0, 4]
    # By hand: the blocks' errors left out in turn, and Student's t with four degrees of freedom.
    total = unsteady.sum(0)
    without = [
        2 * (total[0] - hits) / (2 * (total[0] - hits) + total[2] - missed)
        for hits, missed in [(180, 20), (120, 80), (180, 20), (180, 20), (180, 20)]
    ]
    error = np.sqrt(4 / 5 * np.square(np.array(without) - np.mean(without)).sum())
    assert f1_at_least(unsteady, 20) == pytest.approx(
        2 * total[0] / (2 * total[0] + total[2]) - 1.533 * error, abs=1e-3
    )
    # Neighbours that err alike are one draw: taken one by one they would seem to say more.
    assert f1_at_least(unsteady, 1) > f1_at_least(unsteady, 20)
    assert f1_at_least(np.array([[1.0, 0, 0]]), 20) == 1.0


def test_the_bound_holds_about_as_often_as_it_says() -> None:
    """Scenes of known F1, in stretches that are alike: nine in ten samples promise no more than it."""
    draw = np.random.default_rng(7)
    kept = 0
    for _ in range(300):
        rates = np.clip(draw.normal(0.9, 0.06, 6), 0, 1).repeat(20)
        hits = draw.binomial(6, rates)
        kept += f1_at_least(np.stack([hits, 0 * hits, 6 - hits], 1).astype(float), 20) <= 2 * 0.9 / 1.9
    assert 0.85 < kept / 300 < 0.96


def _rare(draw: np.random.Generator, pictures: int) -> NDArray[np.float64]:
    """An object in every picture; now and then it is lost for a few pictures in a row: F1 some 0.975."""
    wrong = np.zeros(pictures)
    for start in np.flatnonzero(draw.random(pictures) < 0.02):
        wrong[start : start + draw.geometric(0.4)] = 1
    return np.stack([1 - wrong, 0 * wrong, wrong], 1)


def test_a_sample_with_few_objects_and_fewer_errors_promises_little() -> None:
    draw = np.random.default_rng(8)
    hits, _, missed = _rare(draw, 200_000).sum(0)
    truth, alone, together = 2 * hits / (2 * hits + missed), 0, 0
    for _ in range(200):
        tables = [_rare(draw, 100) for _ in range(10)]
        alike = errors_together(tables, 20)
        alone += f1_at_least(tables[0], 20) <= truth
        together += f1_at_least(tables[0], 20, alike) <= truth
    assert alone / 200 < 0.8, "by how unsteady it looks: what happened not to err is taken for sure"
    assert together / 200 >= 0.9
    # 100 pictures without an error, where errors come alone: the rule of three, for 90 %.
    faultless = np.tile([1.0, 0.0, 0.0], (100, 1))
    assert f1_at_least(faultless, 20) == 1.0
    assert f1_at_least(faultless, 20, 1.0) == pytest.approx(1 - 2.3 / 200, abs=5e-4)
    assert f1_at_least(faultless, 20, 3.0) == pytest.approx(1 - 3 * 2.3 / 200, abs=15e-4)
    assert f1_at_least(np.zeros((9, 3)), 20, 3.0) == 0.0, "nothing seen, nothing promised"


def test_how_errors_come_together() -> None:
    alone = np.tile([3.0, 0.0, 1.0], (100, 1))
    assert errors_together([alone], 20) == 1.0, "evenly is no more alike than by chance"
    bursts = np.tile([4.0, 0.0, 0.0], (100, 1))
    bursts[20:40] = [2, 1, 2]
    # By hand: 60 errors among 780 (hits twice) in five blocks, all of them in one that weighs 140.
    share = np.array([160, 140, 160, 160, 160]) * 60 / 780
    squares = ((np.array([0, 60, 0, 0, 0]) - share) ** 2).sum() * 5 / 4
    assert errors_together([bursts], 20) == pytest.approx(squares / 60)
    assert errors_together([bursts, alone], 20) == pytest.approx(squares / 160)
    assert errors_together([np.tile([1.0, 0, 0], (10, 1))], 20) == 1.0
