"""Accuracy of answers against a reference, as all our benchmarks tell it: with its interval.

What counts as a hit is the product's own definition: see `cloud_inference.accuracy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cloud_inference.accuracy import IOU, Bands, Counts, compare, f1_of, iou

__all__ = ["IOU", "Bands", "Counts", "Score", "compare", "iou", "score"]

BLOCK_FRAMES: Final = 50


@dataclass(frozen=True, slots=True)
class Score:
    """Micro-averaged F1, its 95 % block-bootstrap interval, and the mean of each frame's F1."""

    f1: float
    f1_low: float
    f1_high: float
    f1_frame_mean: float
    frames: int


def score(counts: Sequence[Counts], *, resamples: int = 1000, seed: int = 1) -> Score:
    """Summarize frames in order; raises ValueError without any."""
    if not counts:
        raise ValueError("no frames to score")
    table = np.array([[c.true_positive, c.false_positive, c.missed] for c in counts], float)
    starts = range(0, len(table), BLOCK_FRAMES)
    blocks = np.array([table[start : start + BLOCK_FRAMES].sum(0) for start in starts])
    draws = np.random.default_rng(seed).integers(0, len(blocks), (resamples, len(blocks)))
    sums = blocks[draws].sum(1)
    spread = [f1_of(*row) for row in sums]
    low, high = np.percentile(spread, [2.5, 97.5])
    return Score(
        f1=f1_of(*table.sum(0)),
        f1_low=float(low),
        f1_high=float(high),
        f1_frame_mean=float(np.mean([c.f1 for c in counts])),
        frames=len(counts),
    )
