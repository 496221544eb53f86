"""How a rung of the ladder turns pictures into access units: the agent's encoder, and the cloud's when it
scores a rung. Needs PyAV and OpenCV, which the extras bring.

Pictures in, access units out: exactly one for each, in order, with no delay. On the device every picture
comes through `edge_agent.encode`, which takes what passed the redaction gate and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, Protocol

import av
import av.error
import cv2
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace

from eyeline.errors import EncodeFailed
from eyeline.ladder import Rung
from eyeline.pictures import Scaler, as_format, coded_size, colours, to_bt601
from eyeline.v1 import frame_pb2 as pb

_CODECS: Final = {
    "h264": pb.CODEC_H264,
    "hevc": pb.CODEC_HEVC,
    "jpeg": pb.CODEC_JPEG,
    "webp": pb.CODEC_WEBP,
}
# Without adaptive quantisation, so much more gives the same bytes a picture.
_WITHOUT_AQ_CRF: Final = 2
_COARSEST_CRF: Final = 51
# Far more frames than a chain may have: keyframes come where the plan wants them and nowhere else.
_NEVER: Final = 1_000_000
# Rate control without a buffer ignores time stamps, so each frame is one tick.
_TICK: Final = Fraction(1, 25)


class Coder(Protocol):
    """One stream of coded pictures."""

    # What the decoder has to know; the same for every picture of this coder.
    picture_format: pb.PictureFormat

    def encode(self, picture: av.VideoFrame, *, keyframe: bool) -> bytes:
        """One access unit for this picture; raises `EncodeFailed`, after which the coder is of no use."""
        ...

    def close(self) -> None:
        """Free what the coder holds."""
        ...


def open_coder(rung: Rung, picture: av.VideoFrame) -> Coder:
    """A coder for pictures like this one, at this rung; raises `EncodeFailed`."""
    return _Still(rung, picture) if rung.is_still else _Video(rung, picture)


class _Video:
    """libx264 or libx265, tuned for one access unit out for each picture in."""

    def __init__(self, rung: Rung, picture: av.VideoFrame) -> None:
        matrix, range_ = colours(picture)
        self.picture_format = _picture_format(rung, picture, matrix, range_)
        size = self.picture_format.coded_width_px, self.picture_format.coded_height_px
        self._scaler = Scaler(size)
        self._codec = rung.codec
        self._ticks = 0
        with _mapped(f"{rung.name} encoder cannot be opened"):
            context = _context("libx264" if rung.codec == "h264" else "libx265", size, "yuv420p")
            context.gop_size = _NEVER
            context.max_b_frames = 0
            bt709 = matrix == pb.COLOR_MATRIX_BT709
            context.colorspace = int(Colorspace.ITU709 if bt709 else Colorspace.ITU601)
            # Transfer and primaries of the same standard, so that other decoders show the right colours.
            context.color_primaries = context.color_trc = 1 if bt709 else 6
            full = range_ == pb.COLOR_RANGE_FULL
            context.color_range = int(ColorRange.JPEG if full else ColorRange.MPEG)
            context.options = _video_options(rung)
            context.open()
        self._context = context

    def encode(self, picture: av.VideoFrame, *, keyframe: bool) -> bytes:
        with _mapped("encoder failed"):
            scaled = self._scaler.scale(picture)
            scaled.pict_type = PictureType.I if keyframe else PictureType.NONE
            scaled.pts = self._ticks
            scaled.time_base = _TICK
            self._ticks += 1
            packets = self._context.encode(scaled)
            if len(packets) != 1 or packets[0].is_keyframe != keyframe or not packets[0].size:
                got = [f"{'keyframe' if p.is_keyframe else 'frame'} of {p.size} bytes" for p in packets]
                raise EncodeFailed(
                    f"encoder gave {got} for one {'keyframe' if keyframe else 'frame'}, 1 is expected"
                )
            data = bytes(packets[0])
        return without_user_data(data) if keyframe and self._codec == "h264" else data

    def close(self) -> None:
        # Flushing ends the library's own state at once; the rest goes with the context.
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            self._context.encode(None)


class _Still:
    """JPEG (JFIF: BT.601, full range) or WebP (BT.601, limited range) as every reader takes them."""

    def __init__(self, rung: Rung, picture: av.VideoFrame) -> None:
        self._jpeg = rung.codec == "jpeg"
        range_ = pb.COLOR_RANGE_FULL if self._jpeg else pb.COLOR_RANGE_LIMITED
        self.picture_format = _picture_format(rung, picture, pb.COLOR_MATRIX_BT601, range_)
        self._size = self.picture_format.coded_width_px, self.picture_format.coded_height_px
        self._scaler = Scaler(self._size)
        self._ticks = 0
        with _mapped(f"{rung.name} encoder cannot be opened"):
            context = _context(
                "mjpeg" if self._jpeg else "libwebp", self._size, "yuvj420p" if self._jpeg else "yuv420p"
            )
            context.color_range = int(ColorRange.JPEG if self._jpeg else ColorRange.MPEG)
            if self._jpeg:
                context.qmin = context.qmax = jpeg_quantiser(rung.quality)
            else:
                context.options = {"quality": str(rung.quality), "compression_level": "2", "lossless": "0"}
            context.open()
        self._context = context

    def encode(self, picture: av.VideoFrame, *, keyframe: bool) -> bytes:
        if not keyframe:
            raise EncodeFailed("a still is always a keyframe", retryable=False)
        with _mapped("encoder failed"):
            matrix, range_ = colours(picture)
            scaled = self._scaler.scale(picture)
            to_bt601(scaled, matrix, full_in=range_ == pb.COLOR_RANGE_FULL, full_out=self._jpeg)
            if self._jpeg:
                scaled = as_format(scaled, "yuvj420p")
            scaled.pts = self._ticks
            scaled.time_base = _TICK
            self._ticks += 1
            packets = self._context.encode(scaled)
            if len(packets) != 1 or not packets[0].size:
                raise EncodeFailed(f"encoder gave {len(packets)} packets for one still, 1 is expected")
            return bytes(packets[0])

    def close(self) -> None:
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            self._context.encode(None)


def jpeg_quantiser(quality: int) -> int:
    """mjpeg's quantiser, 1 to 31, that gives about the size of libjpeg's quality 1 to 100."""
    # libjpeg's own scale of its tables in per cent; the line is fitted to sizes of street pictures.
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return min(max(round(1 + 0.047 * scale), 1), 31)


def without_user_data(data: bytes) -> bytes:
    """An H.264 access unit (Annex B) without unregistered user data: libx264 writes 700 bytes of settings."""
    kept = []
    for unit in data.split(b"\x00\x00\x01"):
        header = unit[:2]
        if len(header) == 2 and header[0] & 0x1F == 6 and header[1] == 5:
            continue
        kept.append(unit)
    return b"\x00\x00\x01".join(kept)


def _video_options(rung: Rung) -> dict[str, str]:
    preset = "slower" if rung.effort == "high" else "veryfast"
    options = {"preset": preset, "tune": "zerolatency", "crf": str(rung.crf), "forced-idr": "1"}
    if rung.codec == "h264":
        return options | _for_detectors(rung.crf)
    parameters = {
        "keyint": -1,
        "scenecut": 0,
        "bframes": 0,
        "rc-lookahead": 0,
        "repeat-headers": 1,
        "annexb": 1,
        "info": 0,
        "hrd": 0,
        "pools": "none",
        "frame-threads": 1,
        "wpp": 0,
        "log-level": "none",
    }
    return options | {"x265-params": ":".join(f"{key}={value}" for key, value in parameters.items())}


def _for_detectors(crf: int) -> dict[str, str]:
    """Much of what libx264 does is for the eye, and of no use to a detector.

    Psychovisual detail costs a tenth. Adaptive quantisation takes from objects what it spends on walls and
    sky. Most of a picture is coded once in a long chain, so the keyframe is made finer than usual (1.4). Of
    weighted prediction what follows changing light is kept; doubled references cost bits in every block.
    """
    return {
        "sc_threshold": "0",
        "crf": str(min(crf + _WITHOUT_AQ_CRF, _COARSEST_CRF)),
        "psy": "0",
        "aq-mode": "0",
        "weightp": "1",
        "x264-params": "ipratio=2.0",
    }


def _context(name: str, size: tuple[int, int], pixels: str) -> VideoCodecContext:
    context = VideoCodecContext.create(name, "w")
    if not isinstance(context, VideoCodecContext):
        raise EncodeFailed(f"{name} is no video encoder", retryable=False)
    context.width, context.height = size
    context.pix_fmt = pixels
    context.time_base = _TICK
    context.framerate = 1 / _TICK
    # More threads delay pictures or cut them into slices, which costs 3 % in size.
    context.thread_count = 1
    return context


def _picture_format(
    rung: Rung, picture: av.VideoFrame, matrix: pb.ColorMatrix.ValueType, range_: pb.ColorRange.ValueType
) -> pb.PictureFormat:
    width, height = coded_size((picture.width, picture.height), rung.width_px)
    return pb.PictureFormat(
        codec=_CODECS[rung.codec],
        color_matrix=matrix,
        color_range=range_,
        coded_width_px=width,
        coded_height_px=height,
        source_width_px=picture.width,
        source_height_px=picture.height,
        scale_x=picture.width / width,
        scale_y=picture.height / height,
    )


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, cv2.error, ValueError, MemoryError) as problem:
        raise EncodeFailed(f"{what}: {problem}") from None
