"""A generated test picture: objects that move over a still background, with sensor noise.

Deterministic: the same address gives the same pixels for the same frame number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import SourceInvalid

_ADDRESS = re.compile(r"pattern:(\d{1,5})x(\d{1,5})@(\d{1,3}(?:\.\d{1,3})?)")
_SEED = 20_240_611
# The noise field is larger than the picture by so much; each frame shows another part of it.
_NOISE_MARGIN_PX = 61


@dataclass(frozen=True, slots=True)
class PatternSpec:
    """Size in pixels, even on both sides, and frames a second."""

    width: int
    height: int
    fps: float


def parse(source: str) -> PatternSpec:
    """Read `pattern:WIDTHxHEIGHT@FPS`; raises `SourceInvalid`."""
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise SourceInvalid(f"{source} is not a test pattern: write pattern:WIDTHxHEIGHT@FPS, as 1280x720@25")
    spec = PatternSpec(int(match[1]), int(match[2]), float(match[3]))
    if spec.width % 2 or spec.height % 2 or not (32 <= spec.width <= 7680 and 32 <= spec.height <= 4320):
        raise SourceInvalid(f"{source}: both sides must be even, from 32x32 to 7680x4320 pixels")
    if not 0 < spec.fps <= 240:
        raise SourceInvalid(f"{source}: frames a second must be above 0 and at most 240")
    return spec


class Pattern:
    """Draws the frames of one pattern."""

    def __init__(self, spec: PatternSpec) -> None:
        self.spec = spec
        random = np.random.default_rng(_SEED)
        rows, columns = np.mgrid[0 : spec.height, 0 : spec.width].astype(np.float32)
        texture = 12 * np.sin(columns / 23) * np.cos(rows / 31)
        self._background = (90 + 50 * rows / spec.height + texture).astype(np.int16)
        field = random.standard_normal(
            (spec.height + _NOISE_MARGIN_PX, spec.width + _NOISE_MARGIN_PX), np.float32
        )
        self._noise = (2 * field).round().astype(np.int8)
        self._objects = [
            (random.uniform(0.1, 0.9), random.uniform(0.15, 0.6), random.uniform(0, 6.3), random.integers(2))
            for _ in range(4)
        ]

    def picture(self, index: int) -> av.VideoFrame:
        """Frame number `index` (from 0) as yuv420p, limited range."""
        spec = self.spec
        down, right = (index * 17) % _NOISE_MARGIN_PX, (index * 29) % (_NOISE_MARGIN_PX - 2)
        luma = self._background + self._noise[down : down + spec.height, right : right + spec.width]
        chroma = np.full((2, spec.height // 2, spec.width // 2), 128, np.uint8)
        seconds = index / spec.fps
        for number, (lane, speed, phase, upright) in enumerate(self._objects):
            self._draw(luma, chroma, number, lane, seconds * speed + phase, upright=bool(upright))
        planes = np.concatenate([np.clip(luma, 16, 235).astype(np.uint8).ravel(), chroma.ravel()])
        picture = av.VideoFrame.from_ndarray(planes.reshape(-1, spec.width), format="yuv420p")
        picture.pts, picture.time_base = index, Fraction(1) / Fraction(spec.fps).limit_denominator(1000)
        return picture

    def _draw(
        self,
        luma: NDArray[np.int16],
        chroma: NDArray[np.uint8],
        number: int,
        lane: float,
        angle: float,
        *,
        upright: bool,
    ) -> None:
        spec = self.spec
        size = min(spec.width, spec.height) / 6
        width, height = (size / 2, size) if upright else (size, size / 2)
        centre_x = (0.5 + 0.4 * math.sin(angle)) * spec.width
        centre_y = lane * (spec.height - height) + height / 2
        left, top = int(max(0.0, centre_x - width / 2)), int(max(0.0, centre_y - height / 2))
        right, bottom = int(centre_x + width / 2), int(centre_y + height / 2)
        luma[top:bottom, left:right] = 40 if number % 2 else 200
        chroma[number % 2, top // 2 : bottom // 2, left // 2 : right // 2] = 100 if upright else 170
