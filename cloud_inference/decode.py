"""Decoding one lane's chains: a decoder does not notice a missing packet, so the chain index decides.

A unit whose chain has a gap is not decoded at all: its pixels would be wrong without any flag.
"""

from __future__ import annotations

from typing import Any, Final

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from eyeline.v1 import frame_pb2
from eyeline.values import Detections

CHAIN_GAP: Final = "chain_gap"
DECODE_ERROR: Final = "decode_error"

_DECODERS: Final[dict[int, str]] = {
    frame_pb2.CODEC_H264: "h264",
    frame_pb2.CODEC_HEVC: "hevc",
    frame_pb2.CODEC_AV1: "libdav1d",
    frame_pb2.CODEC_JPEG: "mjpeg",
    frame_pb2.CODEC_WEBP: "webp",
}
_MATRIX: Final[dict[int, str]] = {
    frame_pb2.COLOR_MATRIX_BT601: "ITU601",
    frame_pb2.COLOR_MATRIX_BT709: "ITU709",
}
_RANGE: Final[dict[int, str]] = {frame_pb2.COLOR_RANGE_LIMITED: "MPEG", frame_pb2.COLOR_RANGE_FULL: "JPEG"}
# Decoders round coded sizes up to whole macroblocks or coding tree units.
_ALIGN_PX: Final = 64


class CannotDecode(Exception):
    """A unit without a trustworthy picture; `reason` is stable and snake_case."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ChainDecoder:
    """Turns access units into pictures, in order. Not thread-safe; one call at a time."""

    def __init__(self) -> None:
        self._codec: Any = None
        self._opened: tuple[int, int, int] | None = None
        self._chain_id = 0
        self._next_index = 0
        self._broken = True
        # Kept, and on one thread: a fresh one for each picture costs more than the conversion, and starts a
        # thread for each core (measured at 416x312: 0.20 ms and at times 4 ms, against 0.06 ms).
        self._reformatter: Any = VideoReformatter()

    def decode(
        self, unit: frame_pb2.AccessUnit, picture: frame_pb2.PictureFormat, *, wanted: bool = True
    ) -> NDArray[np.uint8] | None:
        """The picture, uint8 [H, W, 3] BGR at its coded size, or None when it is not `wanted`.

        An unwanted unit still moves the decoder on. Raises `CannotDecode`: chain_gap when a unit of its chain
        is missing, decode_error when the decoder refused this one or one before it.
        """
        frame = self.frame(unit, picture)
        return self.to_bgr(frame, picture) if wanted else None

    def frame(self, unit: frame_pb2.AccessUnit, picture: frame_pb2.PictureFormat) -> av.VideoFrame:
        """The picture as the decoder has it; raises `CannotDecode`."""
        self._follow(unit)
        try:
            return self._decode(unit, picture)
        except (av.error.FFmpegError, ValueError, MemoryError):
            self._broken = True
            raise CannotDecode(DECODE_ERROR) from None

    def to_bgr(self, frame: Any, picture: frame_pb2.PictureFormat) -> NDArray[np.uint8]:
        """A decoded picture as uint8 [H, W, 3] BGR; raises `CannotDecode`."""
        try:
            return self._to_bgr(frame, picture)
        except (av.error.FFmpegError, ValueError, MemoryError):
            self._broken = True
            raise CannotDecode(DECODE_ERROR) from None

    def _follow(self, unit: frame_pb2.AccessUnit) -> None:
        if unit.keyframe:
            self._broken = False
        elif unit.chain_id != self._chain_id or unit.chain_index != self._next_index:
            self._broken = True
        self._chain_id, self._next_index = unit.chain_id, unit.chain_index + 1
        if self._broken:
            raise CannotDecode(CHAIN_GAP)

    def _decode(self, unit: frame_pb2.AccessUnit, picture: frame_pb2.PictureFormat) -> Any:
        key = (picture.codec, picture.coded_width_px, picture.coded_height_px)
        if unit.keyframe and (self._codec is None or self._opened != key):
            self._open(*key)
        if self._codec is None or self._opened != key:
            raise ValueError("the format changed inside a chain")
        frames = self._codec.decode(av.Packet(unit.data))
        if len(frames) != 1:
            raise ValueError(f"{len(frames)} pictures in one access unit")
        if (frames[0].width, frames[0].height) != key[1:]:
            raise ValueError("coded size is not what the envelope says")
        return frames[0]

    def _open(self, codec: int, width: int, height: int) -> None:
        name = _DECODERS.get(codec)
        if name is None:
            raise ValueError(f"no decoder for codec {codec}")
        context = av.CodecContext.create(name, "r")
        context.thread_count = 1  # more add no speed at these sizes, and frame threads add delay
        side = [(value + _ALIGN_PX - 1) // _ALIGN_PX * _ALIGN_PX for value in (width, height)]
        context.options = {"max_pixels": str(side[0] * side[1])}
        context.flags |= av.codec.context.Flags.low_delay
        self._codec, self._opened = context, (codec, width, height)

    def _to_bgr(self, frame: Any, picture: frame_pb2.PictureFormat) -> NDArray[np.uint8]:
        converted = self._reformatter.reformat(
            frame,
            format="bgr24",
            src_colorspace=_MATRIX.get(picture.color_matrix, "ITU601"),
            src_color_range=_RANGE.get(picture.color_range, "MPEG"),
            threads=1,
        )
        array: NDArray[np.uint8] = converted.to_ndarray()
        return array


def to_source(found: Detections, picture: frame_pb2.PictureFormat) -> Detections:
    """Boxes of a coded picture in source pixels, clipped to the source frame."""
    scale = np.array([picture.scale_x, picture.scale_y] * 2, np.float32)
    pad = np.array([picture.pad_x_px, picture.pad_y_px] * 2, np.float32)
    origin = np.array([picture.origin_x_px, picture.origin_y_px] * 2, np.float32)
    limit = np.array([picture.source_width_px, picture.source_height_px] * 2, np.float32)
    boxes = np.clip((found.boxes - pad) * scale + origin, 0, limit)
    return Detections.build(boxes, found.scores, found.class_ids, found.class_names, found.track_ids)
