"""A camera's calibration sample: a short stretch of pictures at high quality, taken while something moves.

Taken in the camera's own thread, beside the live pictures and through the same redaction gate; what is kept
are coded pictures that may leave the device.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from edge_agent.config import AgentSettings
from edge_agent.encode import Encoder, fits, open_encoder
from edge_agent.frame import Frame
from edge_agent.plan import Pace
from edge_agent.redact import RedactedPicture
from eyeline.ladder import SAMPLE_FPS, SAMPLE_PIXELS, Rung
from eyeline.v1 import calibration_pb2
from eyeline.v1 import frame_pb2 as pb

_log = structlog.get_logger()

# A stretch that stays shorter for so long is given up, and begun anew.
_GIVE_UP_NS: Final = 15 * 60 * 1_000_000_000
# After an encoder failed.
_REST_NS: Final = 60_000_000_000
# Enough to tell rungs apart when no more moves.
_LEAST_PICTURES: Final = 20
_MOST_BYTES: Final = 8 << 20
# How much wider than the model's picture; and of the quantiser, for each doubling.
_WIDER: Final = 2.0
_COARSER: Final = 8.0


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """What a sample is to be, and how long it lasts.

    rung: the picture at the model's width (its frame rate is the sample's); `of` says what is coded.
    """

    rung: Rung
    seconds: float

    def of(self, longer_px: int) -> Rung:
        """Of a camera whose pictures are so large, their longer side: wider than the model's, but coarser.

        At about the same bytes it is a better likeness, as the coder's noise averages out when it is scaled
        down. On the doorway and the street, yolox_nano's answers to the untouched frames score F1 0.996 and
        0.997 against those to a sample of 768 px (CRF 30), 0.981 and 0.995 against 416 px (CRF 22).
        """
        wider = min(max(longer_px / self.rung.width_px, 1.0), _WIDER)
        crf = min(51, self.rung.crf + round(_COARSER * math.log2(wider)))
        return dataclasses.replace(self.rung, width_px=round(self.rung.width_px * wider), crf=crf)

    @property
    def pictures(self) -> int:
        """How many pictures make a whole one."""
        return max(_LEAST_PICTURES, round(self.seconds * self.rung.max_fps))


def sample_spec(settings: AgentSettings) -> SampleSpec:
    """As the settings say: at the width of the camera's own rung, which is the model's."""
    rung = Rung("h264", settings.encode.width_px, settings.calibration.crf, 80, SAMPLE_FPS, "high")
    return SampleSpec(rung, settings.calibration.seconds)


class Sampler:
    """Takes one sample at a time. `wants` and `take` belong to the camera's thread.

    done: called there with a finished sample, its ladder, models and scene still missing.
    """

    def __init__(
        self,
        camera: str,
        spec: SampleSpec,
        done: Callable[[calibration_pb2.CalibrationSample], None],
        *,
        encoders: Callable[[Rung, Any], Encoder] = open_encoder,
    ) -> None:
        self._camera, self._spec, self._done, self._open = camera, spec, done, encoders
        self._asked = False
        self._rest_until_ns = 0
        self._clear()

    def _clear(self) -> None:
        self._encoder: Encoder | None = None
        self._pictures: list[calibration_pb2.SamplePicture] = []
        self._bytes = 0
        self._first_ns = 0
        self._pace = Pace()

    @property
    def taken(self) -> float:
        """Share of the sample that is taken, 0 to 1."""
        return min(1.0, len(self._pictures) / self._spec.pictures)

    @property
    def asked(self) -> bool:
        """Whether a sample is wanted or being taken."""
        return self._asked

    def ask(self) -> None:
        """Take a sample from the next motion on."""
        self._asked = True

    def wants(self, frame: Frame, *, moving: bool) -> bool:
        """Whether this frame's picture belongs into the sample. moving: the gate is open."""
        if not self._asked or frame.monotonic_ns < self._rest_until_ns:
            return False
        if self._pictures and (frame.opened or frame.monotonic_ns - self._first_ns > _GIVE_UP_NS):
            if not frame.opened and len(self._pictures) >= _LEAST_PICTURES:
                self._finish()
                return False
            self._drop("the source was opened anew" if frame.opened else "too little moved")
        return self._pace.pick(frame.monotonic_ns, self._spec.rung.max_fps) and moving

    def take(self, frame: Frame, picture: RedactedPicture) -> None:
        """Code a picture that `wants` asked for; raises nothing, a sample that fails is begun anew."""
        try:
            if self._encoder is not None and not fits(self._encoder, frame.picture):
                self._drop("the picture's format changed")
            if self._encoder is None:
                rung = self._spec.of(max(frame.picture.width, frame.picture.height))
                self._encoder, self._first_ns = self._open(rung, frame.picture), frame.monotonic_ns
            data = self._encoder.encode(picture, keyframe=not self._pictures)
        except Exception as problem:  # noqa: BLE001  # codecs raise much; the live pictures go on
            self._drop(f"{problem}"[:300])
            self._rest_until_ns = frame.monotonic_ns + _REST_NS
            return
        self._pictures.append(
            calibration_pb2.SamplePicture(offset_ns=frame.monotonic_ns - self._first_ns, data=data)
        )
        self._bytes += len(data)
        coded = self._encoder.picture_format
        room = SAMPLE_PIXELS // max(1, coded.coded_width_px * coded.coded_height_px)
        if len(self._pictures) >= min(self._spec.pictures, room) or self._bytes >= _MOST_BYTES:
            self._finish()

    def close(self) -> None:
        """Free the encoder; a sample that is not finished is lost."""
        if self._encoder is not None:
            self._encoder.close()
        self._clear()

    def _finish(self) -> None:
        assert self._encoder is not None  # noqa: S101  # it coded the pictures
        picture_format = pb.PictureFormat()
        picture_format.CopyFrom(self._encoder.picture_format)
        sample = calibration_pb2.CalibrationSample(
            sample_id=os.urandom(8),
            format=picture_format,
            pictures=self._pictures,
            fps=self._spec.rung.max_fps,
        )
        _log.info("sample_taken", camera=self._camera, pictures=len(self._pictures), bytes=self._bytes)
        self._asked = False
        self.close()
        self._done(sample)

    def _drop(self, reason: str) -> None:
        _log.warning("sample_given_up", camera=self._camera, pictures=len(self._pictures), reason=reason)
        self.close()
