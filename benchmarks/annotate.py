"""Writing videos of answers over the pictures they are for."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from cloud_inference.draw import BAR_COLOURS, draw, draw_bar
from eyeline.values import Provenance, Result


def draw_answer(image: NDArray[np.uint8], result: Result | None, sequence: int) -> None:
    """Draw a frame's answer and where it comes from."""
    if result is None:
        colour, words = BAR_COLOURS[Provenance.DEGRADED], "no answer"
    else:
        draw(image, result.detections)
        delay = (result.answered_ns - result.captured_ns) / 1e6
        colour = BAR_COLOURS[result.provenance]
        words = f"{result.provenance.name}  {result.reason or result.model}  {delay:.0f} ms after capture"
    draw_bar(image, f"frame {sequence}  {words}", colour)


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
