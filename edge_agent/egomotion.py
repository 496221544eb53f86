"""How the camera itself moves: the shift of the whole picture from one look to the next.

Normalized cross-correlation of each quarter of one look with the next, peak refined by a parabola; three
quarters have to agree, since somebody who walks through moves some of them too. Phase correlation (Kuglin and
Hines, 1975) follows walking people where little of the scene has texture. A look's pixel is about 1/128 of
the picture's width.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

# Largest shift between two looks that is found, in look pixels.
REACH: Final = 8
# What agrees less is no shift but another picture.
_LEAST_LIKENESS: Final = 0.8
# Quarters agree within so many look pixels; so many have to.
_AGREE: Final = 0.75
_LEAST_QUARTERS: Final = 3
# Of differences, three quarters have to be so many times smaller with the shift than without.
_CLOSER: Final = 1.25
# A camera moves when the shifts of a second add up to so much, and mostly in one direction.
_WINDOW_NS: Final = 1_000_000_000
_LEAST_PATH: Final = 1.5
_STRAIGHT: Final = 0.7
# Where it turns, it still moves.
_HOLD_NS: Final = 500_000_000


def shift(before: Plane, after: Plane) -> tuple[float, float] | None:
    """How far the picture has moved, (x, y) in look pixels; None when that cannot be told."""
    rows, columns = before.shape[0] // 2, before.shape[1] // 2
    reach = min(REACH, (min(rows, columns) - 4) // 3)
    if reach < 1:
        return None
    found = []
    for top in (0, before.shape[0] - rows):
        for left in (0, before.shape[1] - columns):
            part = slice(top, top + rows), slice(left, left + columns)
            one = best_shift(before[part], after[part], reach)
            if one is not None:
                found.append(one)
    if len(found) < _LEAST_QUARTERS:
        return None
    x, y = (float(np.median(axis)) for axis in zip(*found, strict=True))
    agree = [it for it in found if abs(it[0] - x) <= _AGREE and abs(it[1] - y) <= _AGREE]
    if len(agree) < _LEAST_QUARTERS:
        return None
    return sum(it[0] for it in agree) / len(agree), sum(it[1] for it in agree) / len(agree)


def best_shift(before: Plane, after: Plane, reach: int = REACH) -> tuple[float, float] | None:
    """The shift at which two pictures are most alike, (x, y) up to `reach`; None when they are not alike."""
    if 2 * reach + 4 > min(before.shape):
        return None
    middle = before[reach:-reach, reach:-reach]
    likeness = cv2.matchTemplate(after, middle, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(likeness)
    if not best >= _LEAST_LIKENESS:  # also where a flat picture gives no number
        return None
    return x + _peak(likeness[y], x) - reach, y + _peak(likeness[:, x], y) - reach


def moved(plane: Plane, by: tuple[float, float]) -> Plane:
    """The picture moved back by a shift; the border is repeated."""
    turn = np.array([[1, 0, -by[0]], [0, 1, -by[1]]], np.float32)
    size = plane.shape[1], plane.shape[0]
    back: Plane = cv2.warpAffine(plane, turn, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return back


class EgoMotion:
    """Tells a panning camera from one that trembles. Shifts are only measured while `suspect` says so."""

    def __init__(self) -> None:
        self._before: Plane | None = None
        self._path: deque[tuple[int, float, float]] = deque()
        self._suspect_ns = 0
        self._moves_until_ns = 0
        self.moves = False

    def suspect(self, now_ns: int) -> None:
        """Much of the picture differs: look at it more closely for a while."""
        self._suspect_ns = now_ns + _WINDOW_NS

    def update(self, look: Plane, now_ns: int) -> bool:
        """Whether the camera moves, as of this look."""
        before, self._before = self._before, look
        while self._path and now_ns - self._path[0][0] > _WINDOW_NS:
            self._path.popleft()
        if now_ns <= self._suspect_ns and before is not None and before.shape == look.shape:
            found = shift(before, look)
            if found is not None and _explains(before, look, found):
                self._path.append((now_ns, *found))
        across, down = sum(it[1] for it in self._path), sum(it[2] for it in self._path)
        path, travel = math.hypot(across, down), sum(math.hypot(x, y) for _, x, y in self._path)
        if path >= _LEAST_PATH and path >= _STRAIGHT * travel:
            self._moves_until_ns = now_ns + _HOLD_NS
        self.moves = now_ns < self._moves_until_ns
        if self.moves:
            self.suspect(now_ns)
        return self.moves


def _explains(before: Plane, after: Plane, by: tuple[float, float]) -> bool:
    """Whether the shift brings most of the picture closer, not only somebody large in the middle of it."""
    unmoved, brought = cv2.absdiff(after, before), cv2.absdiff(moved(after, by), before)
    at = unmoved.size * 3 // 4
    here, there = (float(np.partition(it, at, axis=None)[at]) for it in (unmoved, brought))
    return here > _CLOSER * there


def _peak(line: NDArray[np.float32], at: int) -> float:
    """Where between its neighbours the peak lies, -0.5 to 0.5."""
    if not 0 < at < len(line) - 1:
        return 0.0
    left, here, right = (float(it) for it in line[at - 1 : at + 2])
    bend = left - 2 * here + right
    return min(max((left - right) / (2 * bend), -0.5), 0.5) if bend < 0 else 0.0
