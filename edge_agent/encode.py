"""Pictures that passed the redaction gate in, access units out: exactly one for each, in order."""

from __future__ import annotations

from typing import Protocol

import av
import cv2

from edge_agent.redact import RedactedPicture, pixels_of
from eyeline import coding
from eyeline.ladder import STILL_CODECS, Rung
from eyeline.pictures import colours
from eyeline.v1 import frame_pb2 as pb


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
    return _Sealed(coding.open_coder(rung, picture))


def fits(encoder: Encoder, picture: av.VideoFrame) -> bool:
    """Whether a picture has the size and colours that the encoder was made for."""
    made_for = encoder.picture_format
    if (made_for.source_width_px, made_for.source_height_px) != (picture.width, picture.height):
        return False
    if made_for.codec in STILL_CODECS:
        return True
    return (made_for.color_matrix, made_for.color_range) == colours(picture)


class _Sealed:
    """The contract's own coder, behind the gate."""

    def __init__(self, coder: coding.Coder) -> None:
        self._coder = coder
        self.picture_format = coder.picture_format

    def encode(self, picture: RedactedPicture, *, keyframe: bool) -> bytes:
        return self._coder.encode(pixels_of(picture), keyframe=keyframe)

    def close(self) -> None:
        self._coder.close()


def jpeg_size(picture: av.VideoFrame, quality: int) -> int:
    """How many bytes a picture would have as a JPEG; 0 when it cannot be coded.

    The one place where a picture that passed no gate is coded: only the number leaves this function.
    """
    try:
        done, jpeg = cv2.imencode(
            ".jpg", picture.to_ndarray(format="bgr24"), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
    except (av.error.FFmpegError, ValueError, cv2.error):
        return 0
    return len(jpeg) if done else 0
