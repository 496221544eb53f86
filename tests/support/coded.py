"""Small coded clips of a moving scene, as cameras and recorders make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

from tests.support.scenes import as_luma, background, picture, with_box

SIZE = 320, 240


def write_clip(
    path: Path, codec: str = "libx264", *, frames: int = 40, gop: int = 10, b_frames: int = 0, fps: int = 10
) -> Path:
    """A bright square that crosses the picture; the container is the path's suffix."""
    scene = background(*SIZE)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.options = {"preset": "veryfast", "crf": "24"}
        if codec == "libx265":
            keys = f"keyint={gop}:min-keyint={gop}"
            stream.options |= {"x265-params": f"log-level=none:bframes={b_frames}:{keys}"}
        elif codec == "libx264":
            stream.options |= {"sc_threshold": "0", "forced-idr": "1"}
            stream.options |= {} if b_frames else {"tune": "zerolatency"}
        for n in range(frames):
            shown = picture(as_luma(with_box(scene, 4 * n % SIZE[0], 80, (40, 60), 240)))
            shown.pts = n
            file.mux(stream.encode(shown))
        file.mux(stream.encode(None))
    return path
