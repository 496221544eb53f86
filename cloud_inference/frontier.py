"""From scored rungs to a camera's frontier: evened out, then what nothing beats. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eyeline import ladder
from eyeline.ladder import Rung
from eyeline.v1 import calibration_pb2

_ROUNDS: Final = 200


@dataclass(frozen=True, slots=True)
class Scored:
    """A rung on the sample: bytes on the wire a second, F1, and what it is at least, as far as that tells."""

    rung: Rung
    bytes_per_s: float
    f1: float
    f1_low: float


def frontier(scored: Sequence[Scored]) -> list[calibration_pb2.ProfilePoint]:
    """The points that no other beats in both bytes and evened-out F1, cheapest first."""
    rungs = [one.rung for one in scored]
    even, low = even_out(rungs, [it.f1 for it in scored]), even_out(rungs, [it.f1_low for it in scored])
    best, kept = -1.0, []
    for index in sorted(range(len(scored)), key=lambda it: (scored[it].bytes_per_s, -even[it])):
        if even[index] > best + 1e-6:
            best = even[index]
            one = scored[index]
            kept.append(
                calibration_pb2.ProfilePoint(
                    rung=ladder.to_proto(one.rung),
                    bytes_per_s=one.bytes_per_s,
                    f1=one.f1,
                    f1_even=best,
                    f1_low=min(best, low[index]),
                )
            )
    return kept


def even_out(rungs: Sequence[Rung], f1: Sequence[float]) -> list[float]:
    """F1 as it would be if a finer quantiser and more frames never hurt.

    A static object is one draw of coding noise for the whole sample, so that F1 jumps from rung to rung.
    Least squares under order in both directions: isotonic regression along each in turn, corrected (Dykstra
    and Robertson, "An algorithm for isotonic regression for two or more independent variables", 1982).
    """
    even = list(f1)
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, rung in enumerate(rungs):
        groups[rung.codec, rung.width_px].append(index)
    for members in groups.values():
        rates = sorted({rungs[it].max_fps for it in members})
        grades = sorted({_grade(rungs[it]) for it in members})
        grid = np.zeros((len(rates), len(grades)))
        # A place of the grid that no rung takes hardly counts.
        weight = np.full_like(grid, 1e-6)
        where = {}
        for it in members:
            where[it] = rates.index(rungs[it].max_fps), grades.index(_grade(rungs[it]))
            grid[where[it]], weight[where[it]] = f1[it], 1.0
        fitted = _monotone(grid, weight)
        for it in members:
            even[it] = float(fitted[where[it]])
    return even


def _grade(rung: Rung) -> int:
    """Ascending with quality."""
    return rung.quality if rung.is_still else -rung.crf


def _monotone(grid: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    fitted = grid.copy()
    corrections = [np.zeros_like(grid), np.zeros_like(grid)]
    for _ in range(_ROUNDS):
        for axis, correction in enumerate(corrections):
            wanted = fitted - correction
            fitted = wanted.copy()
            for line in range(grid.shape[1 - axis]):
                at = (slice(None), line) if axis == 0 else (line, slice(None))
                fitted[at] = _pool(wanted[at], weight[at])
            correction[:] = fitted - wanted
    return fitted


def _pool(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ascending values closest to these: pool adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, w1, n1), (two, w2, n2) = blocks[-2:]
            blocks[-2:] = [((one * w1 + two * w2) / (w1 + w2), w1 + w2, n1 + n2)]
    return np.concatenate([np.full(count, value) for value, _, count in blocks])
