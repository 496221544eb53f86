"""How the camera itself moves: the shift of the whole picture from one look to the next.

Normalized cross-correlation of the middle of one look with the next, peak refined by a parabola: phase
correlation (Kuglin and Hines, 1975) follows walking people instead where little of the scene has texture. A
shift of a look's pixel is 1/128 of the picture's width.
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
# A camera moves when the shifts of a second add up to so much, and mostly in one direction.
_WINDOW_NS: Final = 1_000_000_000
_LEAST_PATH: Final = 1.0
_STRAIGHT: Final = 0.6


def shift(before: Plane, after: Plane) -> tuple[float, float] | None:
    """How far the picture has moved, (x, y) in look pixels; None when that cannot be told."""
    reach = min(REACH, (min(before.shape) - 1) // 4)
    if reach < 1:
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
            if found is not None:
                self._path.append((now_ns, *found))
        across, down = sum(it[1] for it in self._path), sum(it[2] for it in self._path)
        path, travel = math.hypot(across, down), sum(math.hypot(x, y) for _, x, y in self._path)
        self.moves = path >= _LEAST_PATH and path >= _STRAIGHT * travel
        if self.moves:
            self.suspect(now_ns)
        return self.moves


def _peak(line: NDArray[np.float32], at: int) -> float:
    """Where between its neighbours the peak lies, -0.5 to 0.5."""
    if not 0 < at < len(line) - 1:
        return 0.0
    left, here, right = (float(it) for it in line[at - 1 : at + 2])
    bend = left - 2 * here + right
    return min(max((left - right) / (2 * bend), -0.5), 0.5) if bend < 0 else 0.0
