"""How far the edge model agrees with the cloud's on one camera: learned from samples, and doubted by default.

A frame's condition is what the edge model itself says of it: how many objects, and how many things that it is
in two minds about. For each condition the agreement with the cloud is estimated from frames that both models
saw: a score says little about how right a model is on a given camera, how often the cloud agreed does.

The bounds are Wilson's (E. B. Wilson, JASA 1927), one-sided, of the mean F1 of a frame. They know of no more
than agreed or not, so that the upper one comes down late where frames are alike: there Student's, of how they
really scatter, counts as well. That way it is only given up sooner, never trusted. Neighbouring frames show
the same scene, so samples count for less when they follow each other soon; old ones fade; and two audits in a
row that disagree put a condition on trial again, whatever came before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

# One-sided 90 %: 31 samples without a flaw prove an agreement of 0.95.
_Z: Final = 1.282
# A sample counts in full when the condition's last one is so long ago.
FULL_AFTER_S: Final = 1.0
# From so many samples on their scatter says something, which is taken for so much at least.
_LEAST_SAMPLES: Final = 5.0
_LEAST_SCATTER: Final = 0.1
# Memory, in samples: what is older fades.
_MOST: Final = 200.0
# Of the running mean of audits: how much the newest counts, and how far below the target it ends the trust.
_NEWEST: Final = 0.2
_SLACK: Final = 0.2
# What stays of the evidence then, in samples.
_ON_TRIAL: Final = 8.0

_MOST_OBJECTS: Final = 4
_MOST_DOUBTFUL: Final = 2


class Condition(NamedTuple):
    """What the edge model says of a frame, coarsely: objects, and doubtful ones, each up to a few."""

    objects: int
    doubtful: int

    @classmethod
    def of(cls, objects: int, doubtful: int) -> Condition:
        """The condition of a frame with so many."""
        return cls(min(objects, _MOST_OBJECTS), min(doubtful, _MOST_DOUBTFUL))


class Trust(Enum):
    """What is known of a condition. SURE: the agreement is at least the target. UNSURE: it is below."""

    SURE = "sure"
    OPEN = "open"
    UNSURE = "unsure"


@dataclass(slots=True)
class _Evidence:
    """weight: samples so far, in full ones; agreed, squares: sums of their F1, and of its square; audits:
    running mean while sure."""

    weight: float = 0.0
    agreed: float = 0.0
    squares: float = 0.0
    audits: float = 1.0
    last_s: float = -1e9

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest agreement that the samples leave open, 0 to 1."""
        if self.weight <= 0:
            return 0.0, 1.0
        n, p, z = self.weight, self.agreed / self.weight, _Z
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n))
        low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
        if n >= _LEAST_SAMPLES:
            variance = max(self.squares / n - p * p, 0.0) * n / (n - 1)
            student = z * (1 + (z * z + 1) / (4 * (n - 1)))
            high = min(high, p + student * math.sqrt(max(variance, _LEAST_SCATTER**2) / n))
        return max(0.0, low), min(1.0, high)

    def shrink(self, most: float) -> None:
        """Keep at most so many samples' worth."""
        if self.weight > most:
            self.agreed *= most / self.weight
            self.squares *= most / self.weight
            self.weight = most


class Agreement:
    """One camera's. target: mean F1 against the cloud's answers that an edge answer must be worth, 0 to 1."""

    def __init__(self, target: float) -> None:
        self._target = target
        self._known: dict[Condition, _Evidence] = defaultdict(_Evidence)
        self.trials = 0

    def reset(self) -> None:
        """Forget everything: another model, another agreement."""
        self._known.clear()

    def trust(self, condition: Condition) -> Trust:
        """What is known of this condition."""
        low, high = self.bounds(condition)
        if low >= self._target:
            return Trust.SURE
        return Trust.UNSURE if high < self._target else Trust.OPEN

    def bounds(self, condition: Condition) -> tuple[float, float]:
        """Lowest and highest agreement that the samples leave open."""
        return self._known[condition].bounds() if condition in self._known else (0.0, 1.0)

    def observe(self, condition: Condition, f1: float, at_s: float, *, audit: bool = False) -> bool:
        """Take a frame that both models saw; whether it ended the trust in its condition.

        f1: of the edge's objects against the cloud's in this frame. audit: the edge model was sure of it.
        """
        known = self._known[condition]
        was_sure = self.trust(condition) is Trust.SURE
        weight = min(max((at_s - known.last_s) / FULL_AFTER_S, 0.0), 1.0)
        known.last_s = max(known.last_s, at_s)
        known.weight += weight
        known.agreed += weight * f1
        known.squares += weight * f1 * f1
        known.shrink(_MOST)
        if audit and was_sure:
            known.audits += _NEWEST * (f1 - known.audits)
            if known.audits < self._target - _SLACK:
                known.shrink(_ON_TRIAL)
                known.audits = 1.0
                self.trials += 1
        return was_sure and self.trust(condition) is not Trust.SURE


def frame_f1(agreed: int, extra: int, missed: int) -> float:
    """F1 of one frame; 1 when both models saw nothing."""
    total = 2 * agreed + extra + missed
    return 1.0 if total == 0 else 2 * agreed / total
