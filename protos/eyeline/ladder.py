"""The ladder: what pixels may look like when they are sent, as values that both sides know."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

StillCodec = Literal["jpeg", "webp"]
Effort = Literal["low", "high"]
Codec = Literal["h264", "hevc", "jpeg", "webp", "passthrough"]


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder: what pixels look like when they are sent.

    width_px: longer side of the coded picture; crf: of inter-coded video; quality: of stills, 1 to 100;
    max_fps: frames with pixels a second; effort: how hard the video encoder searches. Of `passthrough`, the
    camera's own packets: max_fps counts the frames that the model sees, the rest is for what takes its place
    where they cannot be passed on.
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
    def is_own(self) -> bool:
        """Whether the camera's own packets are passed on."""
        return self.codec == "passthrough"

    @property
    def transcoded(self) -> Rung:
        """The same, with an encoder of ours: what takes the place of packets that cannot be passed on."""
        return dataclasses.replace(self, codec="h264") if self.is_own else self

    @property
    def name(self) -> str:
        """For display: `h264 416px crf30 2fps`, or `passthrough 2fps`."""
        if self.is_own:
            return f"passthrough {self.max_fps:g}fps"
        grade = f"q{self.quality}" if self.is_still else f"crf{self.crf}"
        return f"{self.codec} {self.width_px}px {grade} {self.max_fps:g}fps"

    def same_stream(self, other: Rung) -> bool:
        """Whether a chain can go on from one to the other: they differ in frame rate at most."""
        return dataclasses.replace(self, max_fps=other.max_fps) == other
