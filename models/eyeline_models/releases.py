"""Detectors that their authors publish, as entries of the catalogue; `fetching` gets and verifies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Release:
    """A published ONNX file.

    sha256: None where we have not seen the digest from a source we trust: then whoever fetches it must state
    the digest. input_size: width and height in pixels.
    """

    name: str
    url: str
    sha256: str | None
    form: str
    input_size: tuple[int, int]
    licence: str
    source: str
    notes: str = ""


_YOLOX: Final = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"


def _yolox(size: str, what: str) -> Release:
    return Release(
        name=f"yolox-{size}",
        url=f"{_YOLOX}/yolox_{size}.onnx",
        sha256=None,
        form="yolox",
        input_size=(640, 640),
        licence="Apache-2.0",
        source=f"github.com/Megvii-BaseDetection/YOLOX, release 0.1.1rc0, yolox_{size}.onnx",
        notes=what,
    )


RELEASES: Final = {
    release.name: release
    for release in (
        _yolox("s", "COCO's 80 classes; 9.0 M parameters, 26.8 GFLOPs by its authors' account."),
        _yolox("m", "COCO's 80 classes; 25.3 M parameters, 73.8 GFLOPs by its authors' account."),
        _yolox("l", "COCO's 80 classes; 54.2 M parameters, 155.6 GFLOPs by its authors' account."),
        _yolox("x", "COCO's 80 classes; 99.1 M parameters, 281.9 GFLOPs by its authors' account."),
    )
}
