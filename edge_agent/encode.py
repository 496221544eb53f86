"""Pictures in, access units out: exactly one for each, in order, with no delay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final, Protocol

import av
import av.error
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from edge_agent.errors import EncodeFailed
from edge_agent.plan import Rung
from edge_agent.redact import RedactedPicture, pixels_of
from eyeline.v1 import frame_pb2 as pb

_CODECS: Final = {
    "h264": pb.CODEC_H264,
    "hevc": pb.CODEC_HEVC,
    "jpeg": pb.CODEC_JPEG,
    "webp": pb.CODEC_WEBP,
}
# Far more frames than a chain may have: keyframes come where the plan wants them and nowhere else.
_NEVER: Final = 1_000_000
# Rate control without a buffer ignores time stamps, so each frame is one tick.
_TICK: Final = Fraction(1, 25)

_BT601: Final = frozenset({4, 5, 6})
_UNSPECIFIED_COLOUR: Final = frozenset({0, 2, 3})
# What players assume of a stream that does not say: larger than this is high definition.
_LARGEST_SD: Final = 576
_FULL_RANGE_FORMATS: Final = frozenset({"yuvj420p", "yuvj422p", "yuvj444p", "gray"})
_PLANAR: Final = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray"}
)

Bytes2D = NDArray[np.uint8]


class Encoder(Protocol):
    """One stream of coded pictures."""

    # What the decoder has to know; the same for every picture of this encoder.
    picture_format: pb.PictureFormat

    def encode(self, picture: RedactedPicture, *, keyframe: bool) -> bytes:
        """One access unit for this picture; raises `EncodeFailed`, after which the encoder is of no use.

        picture: through the redaction gate, of the size and colours this encoder was made for.
        """
        ...

    def close(self) -> None:
        """Free what the encoder holds."""
        ...


def open_encoder(rung: Rung, picture: av.VideoFrame) -> Encoder:
    """An encoder for pictures like this one, at this rung; raises `EncodeFailed`."""
    return _Still(rung, picture) if rung.is_still else _Video(rung, picture)


def fits(encoder: Encoder, picture: av.VideoFrame) -> bool:
    """Whether a picture has the size and colours that the encoder was made for."""
    made_for = encoder.picture_format
    if (made_for.source_width_px, made_for.source_height_px) != (picture.width, picture.height):
        return False
    if made_for.codec in {pb.CODEC_JPEG, pb.CODEC_WEBP}:
        return True
    return (made_for.color_matrix, made_for.color_range) == colours(picture)


def colours(picture: av.VideoFrame) -> tuple[pb.ColorMatrix.ValueType, pb.ColorRange.ValueType]:
    """Matrix and range of a picture's luma and chroma, as `Scaler` hands it on.

    A stream that does not say is taken as players take it: BT.601 up to 576 lines, BT.709 above.
    """
    name = picture.format.name
    if picture.format.is_rgb:
        return pb.COLOR_MATRIX_BT601, pb.COLOR_RANGE_LIMITED  # what reformatting makes of it
    full = name in _FULL_RANGE_FORMATS or int(picture.color_range) == int(ColorRange.JPEG)
    space = int(picture.colorspace)
    if space in _UNSPECIFIED_COLOUR:
        bt601 = min(picture.width, picture.height) <= _LARGEST_SD
    else:
        bt601 = space in _BT601
    return (
        pb.COLOR_MATRIX_BT601 if bt601 else pb.COLOR_MATRIX_BT709,
        pb.COLOR_RANGE_FULL if full else pb.COLOR_RANGE_LIMITED,
    )


def coded_size(source: tuple[int, int], longer_px: int) -> tuple[int, int]:
    """Coded width and height: even, the longer side at most `longer_px`, never larger than the source.

    The aspect ratio is kept within a pixel; what remains is in the format's scale, exactly.
    """
    width, height = source
    ratio = min(1.0, longer_px / max(width, height))
    return max(2, int(width * ratio / 2 + 0.5) * 2), max(2, int(height * ratio / 2 + 0.5) * 2)


class Scaler:
    """Brings captured pictures to the coded size as yuv420p, plane by plane.

    With OpenCV's INTER_LINEAR, as the models' own letterbox: on the street clip the cloud model then agrees
    with itself at F1 0.9995 (swscale bilinear and area 0.9989, fast bilinear 0.9973), at 0.39 ms a frame
    against 0.68, 0.63 and 0.51 ms.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        # Reused: encoders copy what they are given.
        self._picture = av.VideoFrame(*size, "yuv420p")
        self._planes = [_plane(self._picture, index) for index in range(3)]

    def scale(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The scaled picture, valid until the next call; matrix and range are `colours(picture)`."""
        name = picture.format.name
        if name not in _PLANAR:
            picture = picture.reformat(format="yuv420p")
            name = "yuv420p"
        luma, *chroma = self._planes
        _resize(_plane(picture, 0), luma)
        if name == "gray":
            for plane in chroma:
                plane.fill(128)
        elif name == "nv12":
            pairs = _plane(picture, 1)
            both = cv2.resize(
                pairs.reshape(pairs.shape[0], -1, 2), chroma[0].shape[::-1], interpolation=cv2.INTER_LINEAR
            )
            chroma[0][:], chroma[1][:] = both[..., 0], both[..., 1]
        else:
            for index, plane in enumerate(chroma, 1):
                _resize(_plane(picture, index), plane)
        return self._picture


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

    def encode(self, picture: RedactedPicture, *, keyframe: bool) -> bytes:
        pixels = pixels_of(picture)
        with _mapped("encoder failed"):
            scaled = self._scaler.scale(pixels)
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

    def encode(self, picture: RedactedPicture, *, keyframe: bool) -> bytes:
        pixels = pixels_of(picture)
        if not keyframe:
            raise EncodeFailed("a still is always a keyframe", retryable=False)
        with _mapped("encoder failed"):
            matrix, range_ = colours(pixels)
            scaled = self._scaler.scale(pixels)
            _to_bt601(scaled, matrix, full_in=range_ == pb.COLOR_RANGE_FULL, full_out=self._jpeg)
            if self._jpeg:
                scaled = _as_format(scaled, "yuvj420p")
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
        # Detail that only pleases the eye is of no use to a detector, and costs a tenth.
        return options | {"sc_threshold": "0"} | ({"psy": "0"} if rung.effort == "high" else {})
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


def _resize(source: Bytes2D, target: Bytes2D) -> None:
    if source.shape == target.shape:
        target[:] = source
    else:
        cv2.resize(source, target.shape[::-1], dst=target, interpolation=cv2.INTER_LINEAR)


def _plane(picture: av.VideoFrame, index: int) -> Bytes2D:
    plane: Any = picture.planes[index]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    # Of nv12's chroma, width counts pairs.
    width = plane.width * (2 if picture.format.name == "nv12" and index == 1 else 1)
    return rows[:, :width]


# Rows: luma, blue and red difference from RGB, each 0 to 1 (Rec. ITU-R BT.601-7 and BT.709-6).
def _rgb_to_ycc(red: float, blue: float) -> NDArray[np.float64]:
    green = 1 - red - blue
    luma = np.array([red, green, blue])
    return np.stack(
        [luma, (np.array([0, 0, 1]) - luma) / (2 - 2 * blue), (np.array([1, 0, 0]) - luma) / (2 - 2 * red)]
    )


_BT709_TO_BT601: Final = _rgb_to_ycc(0.299, 0.114) @ np.linalg.inv(_rgb_to_ycc(0.2126, 0.0722))


def _to_bt601(
    picture: av.VideoFrame, matrix: pb.ColorMatrix.ValueType, *, full_in: bool, full_out: bool
) -> None:
    """Bring a yuv420p picture to BT.601 of the range asked for, in place."""
    if matrix == pb.COLOR_MATRIX_BT601 and full_in == full_out:
        return
    planes = [_plane(picture, index) for index in range(3)]
    luma, blue, red = (plane.astype(np.float32) for plane in planes)
    if not full_in:
        luma = (luma - 16) * np.float32(255 / 219)
    gain = np.float32(1.0 if full_in else 255 / 224)
    blue, red = (blue - 128) * gain, (red - 128) * gain
    if matrix == pb.COLOR_MATRIX_BT709:
        # Luma takes its share of the colour at full size, chroma has no share of the luma.
        turn = _BT709_TO_BT601.astype(np.float32)
        blue_large, red_large = (cv2.resize(p, luma.shape[::-1]) for p in (blue, red))
        luma = luma + turn[0, 1] * blue_large + turn[0, 2] * red_large
        blue, red = turn[1, 1] * blue + turn[1, 2] * red, turn[2, 1] * blue + turn[2, 2] * red
    if not full_out:
        luma, blue, red = luma * (219 / 255) + 16, blue * (224 / 255), red * (224 / 255)
    for plane, values in zip(planes, (luma, blue + 128, red + 128), strict=True):
        plane[:] = np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _as_format(picture: av.VideoFrame, pixels: str) -> av.VideoFrame:
    """The same samples under another name of the same layout."""
    named = av.VideoFrame(picture.width, picture.height, pixels)
    for index in range(3):
        _plane(named, index)[:] = _plane(picture, index)
    named.color_range = int(ColorRange.JPEG)
    return named
