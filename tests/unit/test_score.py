import numpy as np
import pytest

from benchmarks.score import Counts, compare, iou, score
from cloud_inference.accuracy import f1_at_least
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
