"""Drawing answers over the pictures they are for."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from eyeline.values import Detections, Provenance, Result

# BGR. Tracks differ by hue; the bar at the top tells where the answer comes from.
_BAR = {
    Provenance.CLOUD: (90, 170, 60),
    Provenance.EDGE: (200, 150, 40),
    Provenance.PROPAGATED: (170, 120, 90),
    Provenance.DEGRADED: (50, 50, 210),
}
_BAR_PX = 22
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(image: NDArray[np.uint8], detections: Detections) -> None:
    """Draw boxes with class, score and track id into uint8 [H, W, 3] BGR, in place."""
    for row in range(len(detections)):
        colour = _colour(int(detections.track_ids[row]))
        x1, y1, x2, y2 = (round(float(value)) for value in detections.boxes[row])
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2, cv2.LINE_AA)
        track = f" #{detections.track_ids[row]}" if detections.track_ids[row] else ""
        label = f"{detections.class_names[row]} {detections.scores[row]:.2f}{track}"
        _label(image, label, (x1 - 1, y1 - 1 if y1 > _BAR_PX + 14 else y2 + 13), colour)


def draw_answer(image: NDArray[np.uint8], result: Result | None, sequence: int) -> None:
    """Draw a frame's answer and where it comes from."""
    if result is None:
        colour, words = (50, 50, 210), "no answer"
    else:
        draw(image, result.detections)
        delay = (result.answered_ns - result.captured_ns) / 1e6
        colour = _BAR[result.provenance]
        words = f"{result.provenance.name}  {result.reason or result.model}  {delay:.0f} ms after capture"
    image[:_BAR_PX] = colour
    cv2.putText(image, f"frame {sequence}  {words}", (6, 15), _FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA)


def write_video(path: Path, images: Iterable[NDArray[np.uint8]], fps: float) -> None:
    """Write uint8 [H, W, 3] BGR pictures as H.264 that any player opens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = None
        for image in images:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                stream.height, stream.width = (side - side % 2 for side in image.shape[:2])
                stream.pix_fmt = "yuv420p"
                stream.options = {"preset": "veryfast", "crf": "23"}
            even = image[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="bgr24")))
        if stream is not None:
            container.mux(stream.encode())


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
