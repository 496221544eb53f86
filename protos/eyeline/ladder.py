"""The ladder: what pixels may look like when they are sent, as values that both sides know."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

StillCodec = Literal["jpeg", "webp"]
Effort = Literal["low", "high"]
Codec = Literal["h264", "hevc", "jpeg", "webp"]


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder: what pixels look like when they are sent.

    width_px: longer side of the coded picture; crf: of inter-coded video; quality: of stills, 1 to 100;
    max_fps: frames with pixels a second; effort: how hard the video encoder searches.
    """

    codec: Codec
    width_px: int
    crf: int
    quality: int
    max_fps: float
    effort: Effort = "low"

    @property
    def is_still(self) -> bool:
        """Whether every picture stands alone."""
        return self.codec in {"jpeg", "webp"}

    @property
    def name(self) -> str:
        """For display: `h264 416px crf30 2fps`."""
        grade = f"q{self.quality}" if self.is_still else f"crf{self.crf}"
        return f"{self.codec} {self.width_px}px {grade} {self.max_fps:g}fps"

    def same_stream(self, other: Rung) -> bool:
        """Whether a chain can go on from one to the other: they differ in frame rate at most."""
        return dataclasses.replace(self, max_fps=other.max_fps) == other
