"""The ladder: what pixels may look like when they are sent, as values that both sides know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from eyeline.v1 import calibration_pb2
from eyeline.v1 import frame_pb2 as pb

StillCodec = Literal["jpeg", "webp"]
Effort = Literal["low", "high"]
Codec = Literal["h264", "hevc", "jpeg", "webp", "passthrough"]
# On the wire: of these, every picture stands alone.
STILL_CODECS: Final = frozenset({pb.CODEC_JPEG, pb.CODEC_WEBP})


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


# Frames a second times width squared up to which high effort is affordable: 3.4 frames a second at 416 px.
HIGH_EFFORT_RATE: Final = 3.4 * 416**2
# Frames with pixels a second: a calibration sample's rate, and what every n-th of its pictures makes.
SAMPLE_FPS: Final = 4.0
# Of all pictures of a sample together, at most: the cloud holds them decoded.
SAMPLE_PIXELS: Final = 250_000_000
FRAME_RATES: Final = (SAMPLE_FPS / 6, SAMPLE_FPS / 4, SAMPLE_FPS / 3, SAMPLE_FPS / 2, SAMPLE_FPS)
CRFS: Final = (26, 30, 34, 38, 42)
QUALITIES: Final = (40, 60, 80)
# Of the width that the settings name; with the outermost quantisers left out.
NARROW: Final = 0.77


def affordable_effort(max_fps: float, width_px: int) -> Effort:
    """High where it costs no more CPU than coding every frame the quick way."""
    return "high" if max_fps * width_px**2 <= HIGH_EFFORT_RATE else "low"


def ladder(base: Rung, crfs: Sequence[int] = CRFS, *, fixed_effort: Effort | None = None) -> tuple[Rung, ...]:
    """The rungs around one: frame rates, its width and a narrower one, and quantisers.

    fixed_effort: of all of them; by default what is affordable at each. The camera's own packets are no rung
    of it: what they are worth, a sample coded by us does not tell.
    """
    base = base.transcoded
    grades = QUALITIES if base.is_still else tuple(sorted(crfs))
    narrow = max(64, round(base.width_px * NARROW / 2) * 2)
    found = []
    for width, some in ((base.width_px, grades), (narrow, grades[1:-1])):
        for fps in FRAME_RATES:
            effort = fixed_effort or affordable_effort(fps, width)
            for grade in some:
                crf, quality = (base.crf, grade) if base.is_still else (grade, base.quality)
                found.append(Rung(base.codec, width, crf, quality, round(fps, 2), effort))
    return tuple(found)


def to_proto(rung: Rung) -> calibration_pb2.Rung:
    """As a protobuf message."""
    return calibration_pb2.Rung(
        codec=rung.codec,
        width_px=rung.width_px,
        crf=rung.crf,
        quality=rung.quality,
        max_fps=rung.max_fps,
        effort=rung.effort,
    )


def from_proto(message: calibration_pb2.Rung) -> Rung:
    """From a protobuf message; raises ValueError when no encoder could be set to it."""
    fps = round(message.max_fps, 2)
    bounds = 64 <= message.width_px <= 4096 and message.crf <= 51 and 1 <= message.quality <= 100
    if message.codec not in {*get_args(Codec)} - {"passthrough"} or message.effort not in get_args(Effort):
        raise ValueError(f"no rung has codec {message.codec[:20]!r} with effort {message.effort[:20]!r}")
    if not bounds or not 0 < fps <= 240:
        raise ValueError("a rung has values outside their bounds")
    return Rung(
        cast("Codec", message.codec),
        message.width_px,
        message.crf,
        message.quality,
        fps,
        cast("Effort", message.effort),
    )
