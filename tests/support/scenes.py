"""Synthetic scenes for the frame path: a textured background, things that move, and sensor noise."""

from __future__ import annotations

from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]


def background(width: int = 640, height: int = 480, seed: int = 1) -> NDArray[np.float32]:
    """A still scene with structure at several scales, grey levels 40 to 200, float32 [H, W]."""
    random = np.random.default_rng(seed)
    scene = np.zeros((height, width), np.float32)
    for cells in (4, 16, 64):
        coarse = random.normal(0, 1, (cells, cells)).astype(np.float32)
        scene += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / np.sqrt(cells)
    low, high = float(scene.min()), float(scene.max())
    return 40 + (scene - low) * np.float32(160 / (high - low))


def with_box(
    scene: NDArray[np.float32], x: float, y: float, size: tuple[int, int], level: float
) -> NDArray[np.float32]:
    """The scene with a plain box of `size` (width, height) at x, y; what lies outside is cut off."""
    shown = scene.copy()
    left, top = round(x), round(y)
    shown[max(top, 0) : max(top + size[1], 0), max(left, 0) : max(left + size[0], 0)] = level
    return shown


def as_luma(
    scene: NDArray[np.float32], *, noise: float = 0.0, random: np.random.Generator | None = None
) -> Luma:
    """What a sensor with Gaussian noise of that sigma makes of it, uint8 [H, W]."""
    if noise and random is not None:
        scene = scene + random.standard_normal(scene.shape, np.float32) * np.float32(noise)
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8)


def picture(luma: Luma, pixels: str = "yuv420p") -> av.VideoFrame:
    """A picture with this luma and a smooth colour gradient; of a planar 4:2:0 format."""
    height, width = luma.shape
    made = av.VideoFrame(width, height, pixels)
    gradient = np.linspace(90, 166, width, dtype=np.float32)[None].repeat(height, 0)
    for index, values in enumerate((luma, gradient, 256 - gradient)):
        plane: Any = made.planes[index]
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        scaled: Any = values if index == 0 else cv2.resize(values, (plane.width, plane.height))
        rows[:] = scaled.astype(np.uint8)
    return made
