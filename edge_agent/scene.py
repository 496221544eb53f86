"""What a camera looks at, as a fingerprint without pixels: it tells a new view from the same one.

A difference hash (Krawetz, "Kind of like that", 2013) of a picture averaged over minutes: the signs of the
brightness steps between the cells of a coarse grid, of those steps that are large enough to count. Lighting
that changes as a whole leaves the signs as they are; people who pass are averaged out.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from eyeline.v1 import calibration_pb2

_COLUMNS: Final = 16
_ROWS: Final = 12
# A step counts from this share of the picture's own contrast on.
_SURE: Final = 0.25
# So many frames a second are averaged, with this time constant.
_EVERY_NS: Final = 1_000_000_000
_MEAN_S: Final = 60.0
# A mean of fewer looks tells nothing.
_LEAST_LOOKS: Final = 20
# Of the steps that are sure on both sides, so many turned round: another scene.
DRIFT: Final = 0.15
# ... and when so few are sure any more, there is nothing to compare: night, fog, a covered lens.
_LEAST_SURE: Final = 0.25


class SceneMean:
    """A camera's view, averaged. Not thread-safe."""

    def __init__(self) -> None:
        self._mean: NDArray[np.float32] | None = None
        self._looks = 0
        self._last_ns = 0

    def reset(self) -> None:
        """Start afresh, as after the source was reopened."""
        self._mean, self._looks = None, 0

    def look(self, luma: NDArray[np.uint8], now_ns: int) -> None:
        """Take a frame in: uint8 [H, W], as it may leave the device."""
        if self._mean is not None and now_ns - self._last_ns < _EVERY_NS:
            return
        self._last_ns = now_ns
        grid = cv2.resize(luma, (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA).astype(np.float32)
        self._looks += 1
        if self._mean is None:
            self._mean = grid
        else:
            self._mean += (grid - self._mean) / np.float32(min(self._looks, _MEAN_S))

    def fingerprint(self, *, least_looks: int = _LEAST_LOOKS) -> calibration_pb2.SceneFingerprint | None:
        """Of the mean so far; None while it rests on too few looks."""
        if self._mean is None or self._looks < least_looks:
            return None
        mean = self._mean
        steps = np.concatenate([np.diff(mean, axis=0).ravel(), np.diff(mean, axis=1).ravel()])
        least = max(_SURE * float(mean.std()), 1.0)
        return calibration_pb2.SceneFingerprint(
            signs=np.packbits(steps > 0).tobytes(), sure=np.packbits(np.abs(steps) >= least).tobytes()
        )


def drift(before: calibration_pb2.SceneFingerprint, now: calibration_pb2.SceneFingerprint) -> float:
    """How different two views are, 0 to 1; above `DRIFT` they are not the same scene."""
    pairs = [
        np.unpackbits(np.frombuffer(part, np.uint8))
        for part in (before.signs, now.signs, before.sure, now.sure)
    ]
    if len({len(pair) for pair in pairs}) != 1 or not len(pairs[0]):
        return 1.0
    was, is_, was_sure, is_sure = (pair.astype(bool) for pair in pairs)
    both = was_sure & is_sure
    if both.sum() < _LEAST_SURE * max(int(was_sure.sum()), 1):
        return 1.0
    return float((was != is_)[both].mean())
