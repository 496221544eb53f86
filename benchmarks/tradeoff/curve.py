"""Curves of F1 over bytes: their monotone envelope, bytes at equal F1, and the Bjontegaard rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

# Bytes per frame and F1, both ascending.
Curve = list[tuple[float, float]]
# More F1 than this the envelopes differ by chance only.
_HIGHEST = 0.985


def envelope(points: Iterable[tuple[float, float]]) -> Curve:
    """The points that no other beats in both: (bytes per frame, F1), ascending in both."""
    kept: Curve = []
    for size, f1 in sorted(points, key=lambda it: (it[0], -it[1])):
        if not kept or f1 > kept[-1][1]:
            kept.append((size, f1))
    return kept


def bytes_at(curve: Curve, f1: float) -> float | None:
    """Bytes per frame at that F1, interpolated in log bytes; None above the curve's best.

    Below its worst, the cheapest point counts: nothing cheaper was measured.
    """
    if not curve or curve[-1][1] < f1:
        return None
    if curve[0][1] >= f1:
        return curve[0][0]
    f1s = [point[1] for point in curve]
    return float(math.exp(np.interp(f1, f1s, np.log([point[0] for point in curve]))))


def bd_rate(ours: Curve, theirs: Curve) -> float | None:
    """Mean difference of log bytes over the F1 range both envelopes have, in per cent; negative: fewer.

    Bjontegaard, VCEG-M33, with monotone cubic (PCHIP) interpolation of log bytes over F1.
    """
    low = max(ours[0][1], theirs[0][1]) if ours and theirs else 1.0
    high = min(ours[-1][1], theirs[-1][1], _HIGHEST) if ours and theirs else 0.0
    if len(ours) < 2 or len(theirs) < 2 or high - low < 0.005:
        return None
    means = [_mean_log(curve, low, high) for curve in (ours, theirs)]
    return (math.exp(means[0] - means[1]) - 1) * 100


def _mean_log(curve: Sequence[tuple[float, float]], low: float, high: float) -> float:
    line = PchipInterpolator([point[1] for point in curve], np.log([point[0] for point in curve]))
    return float(line.integrate(low, high)) / (high - low)
