"""Drawing answers over the pictures that they are for."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from eyeline.moments import format_duration, format_moment
from eyeline.v1 import frame_pb2
from eyeline.values import Detections, Provenance, Result

# BGR. Tracks differ by hue; the bar at the top tells where the answer comes from.
BAR_COLOURS: Final = {
    Provenance.CLOUD: (90, 170, 60),
    Provenance.EDGE: (200, 150, 40),
    Provenance.PROPAGATED: (170, 120, 90),
    Provenance.DEGRADED: (50, 50, 210),
}
BAR_PX: Final = 22
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(image: NDArray[np.uint8], detections: Detections) -> None:
    """Draw boxes with class, score and track id into uint8 [H, W, 3] BGR, in place."""
    for row in range(len(detections)):
        colour = _colour(int(detections.track_ids[row]))
        x1, y1, x2, y2 = (round(float(value)) for value in detections.boxes[row])
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2, cv2.LINE_AA)
        track = f" #{detections.track_ids[row]}" if detections.track_ids[row] else ""
        label = f"{detections.class_names[row]} {detections.scores[row]:.2f}{track}"
        _label(image, label, (x1 - 1, y1 - 1 if y1 > BAR_PX + 14 else y2 + 13), colour)


def draw_bar(image: NDArray[np.uint8], words: str, colour: tuple[int, int, int]) -> None:
    """Write a line of words into a bar at the top, in place."""
    image[:BAR_PX] = colour
    cv2.putText(image, words, (6, 15), _FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA)


def annotated(
    image: NDArray[np.uint8],
    shows: tuple[float, float, float, float],
    result: Result | None,
    captured_ns: int,
) -> NDArray[np.uint8]:
    """A copy of a picture with its answer: boxes, when it was captured, and where the answer comes from.

    image: uint8 [H, W, 3] BGR; shows: the part of the source that it is, x1, y1, x2, y2 in source pixels.
    """
    drawn = image.copy()
    when = format_moment(captured_ns)
    if result is None:
        draw_bar(drawn, f"{when}  no answer yet", BAR_COLOURS[Provenance.DEGRADED])
        return drawn
    left, top, right, bottom = shows
    scale = image.shape[1] / (right - left), image.shape[0] / (bottom - top)
    boxes = (result.detections.boxes - np.array([left, top, left, top])) * np.array([*scale, *scale])
    found = result.detections
    draw(drawn, Detections.build(boxes, found.scores, found.class_ids, found.class_names, found.track_ids))
    words = f"{when}  {result.provenance.name}  {result.reason or result.model}"
    if result.captured_ns and result.answered_ns:
        words += f"  {format_duration(result.answered_ns - result.captured_ns)} after capture"
    draw_bar(drawn, words, BAR_COLOURS[result.provenance])
    return drawn


def unpadded(
    image: NDArray[np.uint8], picture: frame_pb2.PictureFormat
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """A coded picture without its padding, and the part of the source that it shows, in source pixels.

    Of a picture whose format says nothing, all of it, taken as the whole source.
    """
    height, width = image.shape[:2]
    if picture.scale_x <= 0 or picture.scale_y <= 0:
        return image, (0.0, 0.0, picture.source_width_px or width, picture.source_height_px or height)
    left, top = (max(0, round(value)) for value in (picture.pad_x_px, picture.pad_y_px))
    x1 = (left - picture.pad_x_px) * picture.scale_x + picture.origin_x_px
    y1 = (top - picture.pad_y_px) * picture.scale_y + picture.origin_y_px
    right = min(width, left + round((picture.source_width_px - x1) / picture.scale_x))
    bottom = min(height, top + round((picture.source_height_px - y1) / picture.scale_y))
    if right <= left or bottom <= top:
        return image, (0.0, 0.0, float(width), float(height))
    x2 = x1 + (right - left) * picture.scale_x
    y2 = y1 + (bottom - top) * picture.scale_y
    return image[top:bottom, left:right], (x1, y1, x2, y2)


def _colour(track: int) -> tuple[int, int, int]:
    hue = (track * 47) % 180
    pixel = cv2.cvtColor(np.array([[[hue, 200, 235]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def _label(image: NDArray[np.uint8], text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Text on a plate, its lower left corner at `at`."""
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.36, 1)
    x, y = min(at[0], image.shape[1] - width - 4), at[1]
    cv2.rectangle(image, (x, y - height - 4), (x + width + 3, y), colour, cv2.FILLED)
    cv2.putText(image, text, (x + 2, y - 3), _FONT, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
