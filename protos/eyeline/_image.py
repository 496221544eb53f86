"""Images as a `Detect` request takes them, with numpy and the standard library alone."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eyeline.errors import InvalidRequest

MAX_IMAGE_BYTES: Final = 8 << 20
MAX_PIXELS: Final = 50_000_000

Image = bytes | Path | NDArray[np.uint8]


def to_bytes(image: Image) -> bytes:
    """JPEG, PNG or WebP bytes; raises `InvalidRequest`.

    image: such bytes, a file with them, or uint8 [H, W, 3] BGR pixels, which become a PNG.
    """
    if isinstance(image, np.ndarray):
        data = encode_png(image)
    elif isinstance(image, Path):
        try:
            with image.open("rb") as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except OSError as problem:
            raise InvalidRequest(f"{image} cannot be read: {problem.strerror}") from None
    else:
        data = bytes(image)
    if not data:
        raise InvalidRequest("the image is empty; give a JPEG, PNG or WebP")
    if len(data) > MAX_IMAGE_BYTES:
        size = f"more than {MAX_IMAGE_BYTES}" if isinstance(image, Path) else str(len(data))
        raise InvalidRequest(
            f"the image has {size} bytes, at most {MAX_IMAGE_BYTES} are allowed;"
            " make it smaller, or encode it as JPEG"
        )
    return data


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG (ISO/IEC 15948) of uint8 [H, W, 3] BGR pixels; raises `InvalidRequest`."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InvalidRequest(f"pixels must be uint8 [H, W, 3] BGR, not {pixels.dtype} {list(pixels.shape)}")
    height, width, _ = pixels.shape
    if height * width > MAX_PIXELS:
        raise InvalidRequest(f"the image has {height * width} pixels, at most {MAX_PIXELS} are allowed")
    rows = pixels[:, :, ::-1].reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = 2  # filter "Up": each row as the difference to the one above
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 3)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
