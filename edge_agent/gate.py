"""The gate: a sub-millisecond look at each frame that tells a still scene from one worth sending.

A background model per pixel of the downscaled luma plane (INTER_AREA by a whole factor, about 128 px wide):
a running mean, and an envelope of what the pixel does while nothing happens (sensor noise, codec flicker,
leaves), which sets its own threshold. The scene's gain and offset are fitted and removed first, so that a
lighting change, automatic exposure or the brightness step of an intra frame is no motion. Pixels that differ
for long without changing further (a parked car) become background; whatever goes on moving does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent import egomotion
from edge_agent.config import GateSettings
from edge_agent.egomotion import EgoMotion
from eyeline.v1 import frame_pb2 as pb

# Longer side that the luma plane is brought down to, about: the factor is a whole number.
LOOK_SIDE_PX: Final = 128

# A pixel is foreground from max(FLOOR, FACTOR * envelope) grey levels. The envelope follows peaks: of
# Gaussian noise it settles near 1.7 sigma, so that FACTOR stands for about 4.5 sigma.
_FLOOR: Final = 5.0
_FACTOR: Final = 2.6
_FIRST_ENVELOPE: Final = 2.0
# A pixel that always moves never becomes blind to a full contrast change.
_LARGEST_ENVELOPE: Final = 14.0
# How fast the envelope follows a peak, and forgets it; of foreground pixels, a hundredth of the rise.
_RISE: Final = 0.25
_FALL_S: Final = 4.0
_FOREGROUND_RISE: Final = 0.01
# How fast the mean follows a pixel that is background.
_FOLLOW_S: Final = 3.0
# A pixel that differs and no longer changes is background after so long.
_ABSORB_S: Final = 4.0
# Foreground in so many of the tiles is no object but the whole picture: a cut, a moved camera, a pulse.
_TILES: Final = (6, 8)
_WHOLE_PICTURE: Final = 0.7
# From so many of them on, the camera itself may pan.
_SUSPECT: Final = 0.3
# From so many on, it may tremble: by so many look pixels, which are taken out where that leaves clearly less
# that differs. Where it is of no use, it is tried again after so many pictures.
_MUCH: Final = 0.1
_TREMBLE: Final = 3.0
_BETTER: Final = 0.6
_TRY_AGAIN: Final = 10
# What is brought back fits to a part of a pixel: along edges, so much of their slope is no motion.
_MISFIT: Final = 0.35
# A picture that stays different for so long is the new background.
_RESTART_S: Final = 1.0
# Longest step of time that one frame may stand for.
_LONGEST_STEP_S: Final = 1.0
# Bounds of a change of gain that is lighting, and how fast the background itself takes one over.
_SMALLEST_GAIN: Final = 0.4
_DRIFT_S: Final = 60.0

# Of the 9 pixels around, for a pixel to count.
_NEIGHBOURS: Final = 4

Plane = NDArray[np.float32]


class GateReason(Enum):
    """Why a frame is let through, or held back; the values are the wire's."""

    OFF = pb.GATE_REASON_UNSPECIFIED
    FIRST = pb.GATE_REASON_FIRST
    MOTION = pb.GATE_REASON_MOTION
    HOLD = pb.GATE_REASON_HOLD
    REFRESH = pb.GATE_REASON_REFRESH
    IDLE = pb.GATE_REASON_IDLE


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether the frame is worth sending, and why.

    area: share of the picture that moves, 0 to 1. whole_picture: the change is everywhere (a cut, a moving
    camera), so it says nothing about objects. camera_moves: it pans or is carried, so that no answer stands.
    """

    open: bool
    reason: GateReason
    area: float = 0.0
    whole_picture: bool = False
    camera_moves: bool = False


class Gate:
    """Looks at one camera's frames in order. Not thread-safe."""

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._model: _Background | None = None
        self._shape: tuple[int, int] = (0, 0)
        self._last_motion_ns: int | None = None
        self._last_open_ns = 0

    def reset(self) -> None:
        """Forget the scene, as after the source was reopened."""
        self._model = None

    def look(self, luma: NDArray[np.uint8], now_ns: int) -> GateDecision:
        """Decide about one frame.

        luma: uint8 [H, W], only read and not kept; now_ns: when it was captured, on a monotonic clock.
        """
        if not self._settings.enabled:
            return GateDecision(open=True, reason=GateReason.OFF)
        if self._model is None or luma.shape != self._shape:
            self._shape = (luma.shape[0], luma.shape[1])
            self._model = _Background(shrink(luma), now_ns)
            self._last_motion_ns = None
            return self._opened(GateReason.FIRST, now_ns)
        moving, whole = self._model.update(shrink(luma), now_ns)
        area = moving / self._model.size
        if area * 100 >= self._settings.min_area_percent or self._model.camera_moves:
            self._last_motion_ns = now_ns
            self._last_open_ns = now_ns
            return GateDecision(True, GateReason.MOTION, area, whole, self._model.camera_moves)
        motion_ns = self._last_motion_ns
        if motion_ns is not None and now_ns - motion_ns <= self._settings.hold_s * 1e9:
            return self._opened(GateReason.HOLD, now_ns, area)
        if now_ns - self._last_open_ns >= self._settings.refresh_s * 1e9:
            return self._opened(GateReason.REFRESH, now_ns, area)
        return GateDecision(open=False, reason=GateReason.IDLE, area=area)

    def _opened(self, reason: GateReason, now_ns: int, area: float = 0.0) -> GateDecision:
        self._last_open_ns = now_ns
        return GateDecision(open=True, reason=reason, area=area)


def shrink(luma: NDArray[np.uint8]) -> Plane:
    """Area-averaged luma, float32, by a whole factor to about `LOOK_SIDE_PX` wide; always a copy."""
    height, width = luma.shape
    factor = max(1, round(max(width, height) / LOOK_SIDE_PX))
    rows, columns = max(1, height // factor), max(1, width // factor)
    # A whole factor keeps INTER_AREA on its fast path; what does not fill a last cell is cut off.
    cut = luma[: rows * factor, : columns * factor]
    small: Plane = cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    return small


class _Background:
    """What the scene looks like while nothing happens, float32 planes [rows, columns]."""

    def __init__(self, look: Plane, now_ns: int) -> None:
        self.size = look.size
        self._now_ns = now_ns
        # About 800 pixels are enough for the fit.
        self._fit_step = max(1, round(math.sqrt(look.size / 800)))
        self._ego = EgoMotion()
        self._steady_in = 0
        self._start(look)

    def _start(self, look: Plane) -> None:
        self._mean = look.copy()
        self._envelope = np.full_like(look, _FIRST_ENVELOPE)
        # Where it differs: the value it took, and for how long it has kept that.
        self._candidate = look.copy()
        self._age_s = np.zeros_like(look)
        self._whole_s = 0.0

    def update(self, look: Plane, now_ns: int) -> tuple[int, bool]:
        """Learn from a picture; returns the number of moving pixels, and whether the whole picture moves."""
        step_s = min(max((now_ns - self._now_ns) / 1e9, 0.0), _LONGEST_STEP_S)
        self._now_ns = now_ns
        self._ego.update(look, now_ns)
        level = self._level(look, step_s)
        residual = cv2.absdiff(level, self._mean)
        threshold = np.maximum(self._envelope * _FACTOR, np.float32(_FLOOR))
        differs = cv2.compare(residual, threshold, cv2.CMP_GT)
        moving, whole = 0, False
        if count := cv2.countNonZero(differs):
            spread = _spread(differs)
            if spread >= _SUSPECT:
                self._ego.suspect(now_ns)
            if spread >= _MUCH:
                steady = self._steadied(level)
                if steady is not None:
                    other = cv2.absdiff(steady, self._mean)
                    threshold += _slope(self._mean) * np.float32(_MISFIT)
                    fewer = cv2.compare(other, threshold, cv2.CMP_GT)
                    if cv2.countNonZero(fewer) < _BETTER * count:
                        level, residual, differs, spread = steady, other, fewer, _spread(fewer)
                        self._steady_in = 0
            moving = _solid(differs)
            whole = moving > 0 and spread >= _WHOLE_PICTURE
            self._absorb(level, threshold, differs, step_s)
        self._learn(level, residual, differs, step_s)
        self._whole_s = self._whole_s + step_s if whole else 0.0
        if self._whole_s >= _RESTART_S:
            self._start(look)
        return moving, whole

    @property
    def camera_moves(self) -> bool:
        """Whether the camera itself moves, as of the last picture."""
        return self._ego.moves

    def _steadied(self, level: Plane) -> Plane | None:
        """The picture brought back over the background, where a trembling camera has moved it a little."""
        if self._steady_in > 0:
            self._steady_in -= 1
            return None
        self._steady_in = _TRY_AGAIN
        by = egomotion.best_shift(self._mean, level)
        if by is None or math.hypot(*by) > _TREMBLE:
            return None
        return egomotion.moved(level, by)

    def _level(self, look: Plane, step_s: float) -> Plane:
        """The picture with the scene's change of gain and offset taken out: least squares on what agrees."""
        step = self._fit_step
        seen = look[::step, ::step].ravel()
        known = self._mean[::step, ::step].ravel()
        middle = len(seen) // 2
        gain, offset = _fit(seen, known)
        for _ in range(2):
            error = np.abs(seen * np.float32(gain) + np.float32(offset) - known)
            median = float(np.partition(error, middle)[middle])
            near = error <= max(3.0 * median, 1.0)
            gain, offset = _fit(seen[near], known[near])
        if not _SMALLEST_GAIN <= gain <= 1 / _SMALLEST_GAIN:
            return look
        level: Plane = look * np.float32(gain) + np.float32(offset)
        # The background itself follows slowly, so that dusk does not run out of the gain's bounds.
        drift = min(step_s / _DRIFT_S, 1.0)
        self._mean *= np.float32(1 + drift * (1 / gain - 1))
        self._mean -= np.float32(drift * offset / gain)
        return level

    def _learn(self, level: Plane, residual: Plane, differs: NDArray[np.uint8], step_s: float) -> None:
        quiet = cv2.bitwise_not(differs)
        cv2.accumulateWeighted(level, self._mean, 1 - math.exp(-step_s / _FOLLOW_S), quiet)
        change = residual - self._envelope
        rise = np.maximum(change, np.float32(0))
        # Of quiet pixels (255 in the mask) quickly, of foreground hardly.
        rise *= quiet * np.float32((_RISE - _FOREGROUND_RISE) / 255) + np.float32(_FOREGROUND_RISE)
        self._envelope += rise
        np.minimum(change, np.float32(0), out=change)
        change *= np.float32(1 - math.exp(-step_s / _FALL_S))
        self._envelope += change
        np.minimum(self._envelope, np.float32(_LARGEST_ENVELOPE), out=self._envelope)

    def _absorb(self, level: Plane, threshold: Plane, differs: NDArray[np.uint8], step_s: float) -> None:
        # A pixel at the threshold is not foreground in every picture: it ages backwards meanwhile.
        age_plane = self._age_s.ravel()
        where = np.flatnonzero(differs)
        here = level.ravel()[where]
        candidate = self._candidate.ravel()[where]
        stays = np.abs(here - candidate) <= threshold.ravel()[where]
        age = np.where(stays, age_plane[where] + np.float32(step_s), np.float32(0))
        candidate = np.where(stays, candidate + (here - candidate) * np.float32(0.1), here)
        np.subtract(age_plane, np.float32(step_s), out=age_plane)
        np.maximum(age_plane, np.float32(0), out=age_plane)
        done = age >= _ABSORB_S
        age[done] = 0
        age_plane[where] = age
        self._candidate.ravel()[where] = candidate
        self._mean.ravel()[where[done]] = candidate[done]


def _slope(plane: Plane) -> Plane:
    """Grey levels a pixel, across and down together."""
    across = cv2.Sobel(plane, cv2.CV_32F, 1, 0, ksize=1, scale=0.5)
    down = cv2.Sobel(plane, cv2.CV_32F, 0, 1, ksize=1, scale=0.5)
    return np.asarray(np.abs(across) + np.abs(down), np.float32)


def _solid(differs: NDArray[np.uint8]) -> int:
    """Number of pixels that differ together with their neighbours: noise is scattered, objects are not."""
    density = cv2.boxFilter(differs, cv2.CV_16U, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    solid = cv2.compare(density, 255 * _NEIGHBOURS - 1, cv2.CMP_GT)
    return int(cv2.countNonZero(cv2.bitwise_and(solid, differs)))


def _spread(differs: NDArray[np.uint8]) -> float:
    """Share of the picture's tiles of which at least a twentieth differs."""
    rows, columns = _TILES
    tiles = cv2.resize(differs, (columns, rows), interpolation=cv2.INTER_AREA)
    return float(np.count_nonzero(tiles > 255 // 20)) / (rows * columns)


def _fit(seen: Plane, known: Plane) -> tuple[float, float]:
    """Gain and offset that bring `seen` closest to `known`; both float32 [N]."""
    count = len(seen)
    seen_mean, known_mean = float(seen.sum()) / count, float(known.sum()) / count
    centred = seen - np.float32(seen_mean)
    spread = float(centred @ centred)
    # A flat picture has no gain to measure.
    flat = spread <= 4.0 * count
    gain = 1.0 if flat else float(centred @ (known - np.float32(known_mean))) / spread
    return gain, known_mean - gain * seen_mean
