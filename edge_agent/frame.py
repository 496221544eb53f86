"""A captured frame, as every stage sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.own import NO_OWN_PICTURE, OwnPicture

# Formats whose first plane is luma, one byte a pixel.
_PLANAR_YUV = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "nv21", "gray"}
)


class CapturedPicture(Protocol):
    """What we use of a decoder's `av.VideoFrame`. A type of its own, so that mypy tells it from pictures that
    passed the redaction gate: PyAV's are `Any` to it.
    """

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def format(self) -> Any: ...

    @property
    def planes(self) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame that the source presented.

    sequence: from 1, per camera and epoch, one for each presented frame. monotonic_ns, wall_ns: when it was
    captured, on the device's two clocks. picture: the decoded frame, in the decoder's own pixel format.
    opened: true for the first frame after the source was (re)opened. gate_picture: of a camera with a
    substream, the substream's latest picture: the same scene, smaller; None when there is none that is fresh.
    own: the camera's own coded picture, or in one line why it cannot be passed on. behind: frames of a live
    source that wait for the pipeline behind this one, so that it leaves out what it can before any are lost.
    """

    sequence: int
    monotonic_ns: int
    wall_ns: int
    picture: CapturedPicture
    opened: bool = False
    gate_picture: CapturedPicture | None = None
    own: OwnPicture | str = NO_OWN_PICTURE
    behind: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.picture.width, self.picture.height

    def luma(self) -> NDArray[np.uint8]:
        """Luma, uint8 [H, W]; a view of the decoder's buffer where its format allows."""
        return _luma(self.picture)

    def gate_luma(self) -> NDArray[np.uint8]:
        """Luma of the substream's picture where there is one, else the same as `luma`."""
        return _luma(self.picture if self.gate_picture is None else self.gate_picture)


def _luma(picture: Any) -> NDArray[np.uint8]:
    if picture.format.name not in _PLANAR_YUV:
        picture = picture.reformat(format="gray")
    plane = picture.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]
