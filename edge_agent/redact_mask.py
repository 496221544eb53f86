"""Geometry of redaction: polygons and boxes into the samples of planes. Always too much, never too little.

A sample is hidden when the area it stands for touches what is to be hidden, and its neighbours are too:
chroma stands for several pixels, and cameras mix neighbours when they make it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.uint8]
Polygon = Sequence[tuple[float, float]]

# How many luma pixels a chroma sample stands for, across and down.
SUBSAMPLING: Final = {
    "yuv420p": (2, 2),
    "yuvj420p": (2, 2),
    "nv12": (2, 2),
    "yuv422p": (2, 1),
    "yuvj422p": (2, 1),
    "yuv444p": (1, 1),
    "yuvj444p": (1, 1),
    "gray": (1, 1),
}
# Black of limited range, and no colour: nearly black in full range too.
HIDDEN_LUMA: Final = 16
HIDDEN_CHROMA: Final = 128

# What is left of a blurred box: at most so many values along its longer side, of so many pixels at least.
_CELLS: Final = 8
_SMALLEST_CELL_PX: Final = 8
# Of polygon points: binary digits behind the point that OpenCV rasterises with.
_SHIFT: Final = 8


@dataclass(frozen=True, slots=True)
class Patch:
    """A masked part of a plane: rows `top` to `bottom`, columns `left` to `right`, half-open.

    hidden: bool [bottom - top, right - left], None when all of it.
    """

    top: int
    bottom: int
    left: int
    right: int
    hidden: NDArray[np.bool_] | None

    def fill(self, plane: NDArray[Any], value: int) -> None:
        """Overwrite the masked samples of uint8 [H, W] or [H, W, 2]."""
        part = plane[self.top : self.bottom, self.left : self.right]
        if self.hidden is None:
            part[...] = value
        else:
            np.copyto(part, value, where=self.hidden if part.ndim == 2 else self.hidden[..., None])


class Stencil:
    """Polygons made ready for pictures of one size. Points are fractions of width and height, 0 to 1."""

    def __init__(self, polygons: Sequence[Polygon], size: tuple[int, int], factors: tuple[int, int]) -> None:
        """size: width and height in pixels; factors: of `SUBSAMPLING`."""
        self.size = size
        self.hidden = np.zeros((size[1], size[0]), np.bool_)
        self._luma: list[Patch] = []
        self._chroma: list[Patch] = []
        for polygon in polygons:
            covered = rasterise(polygon, size)
            self.hidden |= covered
            self._luma += _patches(covered)
            self._chroma += _patches(subsample(covered, factors))

    def burn(self, planes: Sequence[NDArray[Any]]) -> None:
        """Overwrite what is masked: luma first, then chroma, as `planes_of` gives them."""
        for index, plane in enumerate(planes):
            for patch in self._chroma if index else self._luma:
                patch.fill(plane, HIDDEN_CHROMA if index else HIDDEN_LUMA)


def rasterise(polygon: Polygon, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels that a polygon touches, and their neighbours: bool [H, W]."""
    width, height = size
    # A margin, so that an edge on the border of the picture is drawn and has its neighbours.
    canvas = np.zeros((height + 4, width + 4), np.uint8)
    # OpenCV's pixel centres lie at whole numbers, ours at halves.
    points = np.array([[x * width + 1.5, y * height + 1.5] for x, y in polygon], np.float64)
    fixed = np.rint(points * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 1, lineType=cv2.LINE_8, shift=_SHIFT)
    grown: Any = cv2.dilate(canvas, np.ones((3, 3), np.uint8))
    hidden: NDArray[np.bool_] = grown[2:-2, 2:-2] > 0
    return hidden


def subsample(hidden: NDArray[np.bool_], factors: tuple[int, int]) -> NDArray[np.bool_]:
    """Chroma samples that stand for a hidden pixel; their neighbours too, where chroma is the coarser."""
    across, down = factors
    if factors == (1, 1):
        return hidden
    height, width = hidden.shape
    rows, columns = -(-height // down), -(-width // across)
    padded = np.zeros((rows * down, columns * across), np.bool_)
    padded[:height, :width] = hidden
    coarse = padded.reshape(rows, down, columns, across).any((1, 3))
    grown: Any = cv2.dilate(coarse.astype(np.uint8), np.ones((3, 3), np.uint8))
    chroma: NDArray[np.bool_] = grown > 0
    return chroma


def _patches(hidden: NDArray[np.bool_]) -> Iterator[Patch]:
    rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
    if not len(rows):
        return
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    part = hidden[top:bottom, left:right]
    yield Patch(top, bottom, left, right, None if part.all() else part.copy())


def planes_of(picture: Any) -> list[NDArray[Any]]:
    """The planes of a picture of one of `SUBSAMPLING`'s formats, uint8 [H, W]; nv12's chroma as [H, W, 2]."""
    views: list[NDArray[Any]] = []
    for index, plane in enumerate(picture.planes):
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        if picture.format.name == "nv12" and index == 1:
            views.append(rows[:, : plane.width * 2].reshape(plane.height, plane.width, 2))
        else:
            views.append(rows[:, : plane.width])
    return views


def conceal(
    planes: Sequence[NDArray[Any]],
    boxes: NDArray[np.float32],
    factors: tuple[int, int],
    *,
    solid: bool,
) -> None:
    """Make the insides of boxes [N, 4], in pixels, unrecognisable in place: a few values, or one colour."""
    height, width = planes[0].shape[:2]
    for box in boxes:
        left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
        if right <= left or bottom <= top:
            continue
        cell = max(_SMALLEST_CELL_PX, -(-max(right - left, bottom - top) // _CELLS))
        for index, plane in enumerate(planes):
            across, down = factors if index else (1, 1)
            part = plane[top // down : -(-bottom // down), left // across : -(-right // across)]
            if solid:
                part[...] = HIDDEN_CHROMA if index else HIDDEN_LUMA
                continue
            rows, columns = part.shape[:2]
            coarse = max(1, columns * across // cell), max(1, rows * down // cell)
            small = cv2.resize(part, coarse, interpolation=cv2.INTER_AREA)
            # Smooth rather than in squares: the same is lost, and edges would cost bytes.
            smooth = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)
            part[...] = smooth.reshape(part.shape)
