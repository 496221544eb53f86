"""Fitting a picture into a model's input, and boxes back out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from eyeline.values import FloatArray


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A picture of `source` size scaled to fit `model` size (width, height in pixels), the rest filled.

    scaled: size of the scaled picture; pad: its left and top edge inside the model's input.
    """

    source: tuple[int, int]
    model: tuple[int, int]
    scaled: tuple[int, int]
    pad: tuple[int, int]
    fill: int

    @classmethod
    def fit(cls, source: tuple[int, int], model: tuple[int, int], *, centred: bool, fill: int) -> Letterbox:
        """The largest picture of the same aspect; at the top left, or `centred`. fill: 0 to 255."""
        scale = min(model[0] / source[0], model[1] / source[1])
        width = min(model[0], max(1, round(source[0] * scale)))
        height = min(model[1], max(1, round(source[1] * scale)))
        pad = ((model[0] - width) // 2, (model[1] - height) // 2) if centred else (0, 0)
        return cls(source, model, (width, height), pad, fill)

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] of `source` size to uint8 [h, w, 3] of `model` size; else ValueError."""
        if picture.shape != (self.source[1], self.source[0], 3):
            raise ValueError(
                f"picture has shape {picture.shape}, expected {self.source[::-1]} and 3 channels"
            )
        if self.scaled != self.source:
            resized: Any = cv2.resize(picture, self.scaled, interpolation=cv2.INTER_LINEAR)
            picture = resized
        if self.scaled == self.model:
            return picture
        canvas = np.full((self.model[1], self.model[0], 3), self.fill, np.uint8)
        left, top = self.pad
        canvas[top : top + self.scaled[1], left : left + self.scaled[0]] = picture
        return canvas

    def to_source(self, boxes: FloatArray) -> FloatArray:
        """Boxes float32 [N, 4] in model-input pixels, in pixels of the picture and clipped to it."""
        scale = np.array([self.source[0] / self.scaled[0], self.source[1] / self.scaled[1]] * 2, np.float32)
        moved = (boxes - np.array([*self.pad, *self.pad], np.float32)) * scale
        placed: FloatArray = np.clip(moved, 0, np.array([*self.source, *self.source], np.float32))
        return placed
