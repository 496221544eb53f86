"""Hardware video decoders: which of them this device has, and decoding through them.

Looked for in this order: VA-API, NVDEC (cuda) and DRM through FFmpeg's hwaccel, each only where its device
node exists and opens, then the V4L2 memory-to-memory decoders of small Arm boards. Decoded pictures
are copied to ordinary memory, since the gate and the encoder read them there.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import av
import structlog
from av.codec.hwaccel import HWAccel, hwdevices_available

_log = structlog.get_logger(__name__)

_NODES = {"vaapi": "/dev/dri/renderD*", "cuda": "/dev/nvidia[0-9]*", "drm": "/dev/dri/renderD*"}
_FAILURES = (av.error.FFmpegError, RuntimeError, NotImplementedError, ValueError)


@functools.cache
def accelerator() -> str | None:
    """FFmpeg's name of the first hwaccel whose device opens here; None when there is none."""
    codec = av.Codec("h264", "r")
    for kind in (kind for kind in _NODES if kind in hwdevices_available()):
        root, pattern = "/dev", _NODES[kind].removeprefix("/dev/")
        if not any(Path(root).glob(pattern)):
            continue
        try:
            HWAccel(device_type=kind).create(codec)
        except _FAILURES as problem:
            _log.info("hardware_decoder_unusable", kind=kind, problem=str(problem))
            continue
        return kind
    return None


def hwaccel() -> HWAccel | None:
    """Settings for `av.open`, with a silent fall-back to software for codecs the device cannot decode."""
    kind = accelerator()
    return HWAccel(device_type=kind, allow_software_fallback=True) if kind is not None else None


def v4l2_decoder(stream: Any) -> Any | None:
    """A V4L2 memory-to-memory decoder for this video stream, opened; None when there is none."""
    if not _has_v4l2_decoder():
        return None
    source = stream.codec_context
    try:
        decoder = av.CodecContext.create(f"{source.name}_v4l2m2m", "r")
        decoder.extradata = source.extradata
        decoder.width, decoder.height = source.width, source.height
        decoder.open(strict=False)
    except (*_FAILURES, LookupError) as problem:
        _log.info("hardware_decoder_unusable", kind="v4l2m2m", problem=str(problem))
        return None
    return decoder


@functools.cache
def _has_v4l2_decoder() -> bool:
    names = Path("/sys/class/video4linux").glob("video*/name")
    return any("dec" in _text(name) for name in names)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").lower()
    except (OSError, UnicodeDecodeError):
        return ""
