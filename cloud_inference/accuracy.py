"""Accuracy of answers against a reference: what rungs, and our benchmarks, are scored by.

A reference box with a score of at least `must` has to be found; one between `ignore` and `must` is no miss
when absent, and whoever finds it made no false alarm: without this band the threshold itself flickers.
Answers count from `answer` on. True positive: same class, intersection over union above 0.5, one to one,
best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eyeline.values import Detections, FloatArray
from eyeline_models.catalogue import ModelCard

IOU: Final = 0.5
# The standard normal distribution's quantile for a one-sided confidence of 90 %.
_Z: Final = 1.2816


@dataclass(frozen=True, slots=True)
class Bands:
    """Scores at which boxes count. The defaults are for a model whose scores span 0 to 1 as YOLOX's do."""

    must: float = 0.5
    ignore: float = 0.2
    answer: float = 0.4

    @classmethod
    def of(cls, card: ModelCard) -> Bands:
        """Answers count from the model's own threshold; the band reaches as far around it as for YOLOX."""
        threshold = float(np.median(card.thresholds))
        return cls(must=threshold * 1.25, ignore=threshold * 0.5, answer=threshold)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one frame."""

    true_positive: int
    false_positive: int
    missed: int

    @property
    def f1(self) -> float:
        """1 when there was nothing to find and nothing was found."""
        return f1_of(self.true_positive, self.false_positive, self.missed)


def compare(reference: Detections, answer: Detections, bands: Bands = Bands()) -> Counts:
    """Count one frame's hits and misses."""
    reference = reference.take(reference.scores >= bands.ignore)
    answer = answer.take(answer.scores >= bands.answer)
    overlap = iou(answer.boxes, reference.boxes)
    # By name: models number their classes differently.
    names = np.array(answer.class_names, object), np.array(reference.class_names, object)
    overlap[names[0][:, None] != names[1][None, :]] = 0
    must = reference.scores >= bands.must
    free_answers, free_references = np.ones(len(answer), bool), np.ones(len(reference), bool)
    hits = 0
    # Required boxes are matched first, so that an ignored one cannot take their answer away.
    for wanted in (must, ~must):
        pairs = np.argwhere((overlap > IOU) & wanted[None, :])
        for row, column in pairs[np.argsort(-overlap[pairs[:, 0], pairs[:, 1]], kind="stable")]:
            if free_answers[row] and free_references[column]:
                free_answers[row] = free_references[column] = False
                hits += int(must[column])
    return Counts(hits, int(free_answers.sum()), int((free_references & must).sum()))


def iou(one: FloatArray, two: FloatArray) -> FloatArray:
    """Intersection over union of boxes [N, 4] and [M, 4], as [N, M]."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (one, two)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    ratio: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def f1_of(true_positive: float, false_positive: float, missed: float) -> float:
    """Of counts added up; 1 when there was nothing to find and nothing was found."""
    total = 2 * true_positive + false_positive + missed
    return 1.0 if total == 0 else float(2 * true_positive / total)


def f1_at_least(counts: NDArray[np.float64], block: int, alike: float = 0.0) -> float:
    """F1 of the scene that these frames are a draw of: its lower bound, with 90 % confidence.

    counts: hits, false alarms and misses of frames in order, [N, 3]; block: so many frames in a row count as
    one draw, since neighbours err alike; alike: errors that come together, as `errors_together` tells.

    The lower of two. Delete-a-block jackknife (Efron and Tibshirani, "An Introduction to the Bootstrap",
    1993, chapter 11) and Student's t, as a sample has few blocks: it says that what never erred never will.
    And the most that a scene may err of which a sample shows so few errors: quasi-Poisson, the upper bound of
    a Poisson count by Wilson and Hilferty (PNAS 1931).
    """
    blocks = _blocks(counts, block)
    number, total = len(blocks), blocks.sum(0)
    without = np.array([f1_of(*row) for row in total - blocks])
    error = np.sqrt((number - 1) / number * ((without - without.mean()) ** 2).sum())
    low = f1_of(*total) - _student(number - 1) * float(error)
    if alike > 0:
        hits, errors = float(total[0]), float(total[1:].sum())
        most = errors / alike + 1
        most = alike * most * (1 - 1 / (9 * most) + _Z / (3 * np.sqrt(most))) ** 3
        low = min(low, 1 - most / max(2 * hits + errors, most))
    return max(0.0, low)


def errors_together(tables: Sequence[NDArray[np.float64]], block: int) -> float:
    """How many errors come together: variance over mean of those in a block, of all these counts, at least 1.

    tables: as `f1_at_least` takes them, of several answers to the same frames. One alone has too few errors
    to tell, and the luckiest of many would be taken for a sure one.
    """
    squares = errors = 0.0
    for counts in tables:
        blocks = _blocks(counts, block)
        wrong, weight = blocks[:, 1:].sum(1), 2 * blocks[:, 0] + blocks[:, 1:].sum(1)
        expected = wrong.sum() / max(weight.sum(), 1.0) * weight
        squares += float(((wrong - expected) ** 2).sum()) * len(blocks) / (len(blocks) - 1)
        errors += float(wrong.sum())
    return max(1.0, squares / errors) if errors else 1.0


def _blocks(counts: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Sums of so many rows each, two at least, [B, 3]."""
    return np.array([it.sum(0) for it in np.array_split(counts, max(2, round(len(counts) / block)))])


def _student(degrees: int) -> float:
    """Student's t for the same confidence (Cornish and Fisher's expansion; within 0.04 from 2 degrees on)."""
    z = _Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
