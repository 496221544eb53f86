import numpy as np
import pytest

from benchmarks.score import Counts, compare, iou, score
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
