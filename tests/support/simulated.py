"""A device as the cloud sees it: envelopes of a moving square, made without the agent's code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from eyeline.envelope import encode_envelope, message_id
from eyeline.subjects import frame_subject
from eyeline.v1 import frame_pb2

WIDTH, HEIGHT = 128, 96
FRAME_NS = 100_000_000
START_NS = 1_800_000_000_000_000_000


def left_of(sequence: int) -> int:
    """Left edge of the square, in pixels."""
    return 4 + 2 * (sequence % 40)


def picture(sequence: int) -> NDArray[np.uint8]:
    """uint8 [96, 128, 3] BGR: a bright square that moves two pixels a frame."""
    image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    left = left_of(sequence)
    image[30:60, left : left + 24] = 230
    return image


class Device:
    """Numbers and encodes frames as an agent does."""

    def __init__(
        self,
        *,
        tenant: str = "acme",
        site: str = "yard",
        device: str = "box",
        camera: str = "gate",
        counter: int = 1,
    ) -> None:
        self.tenant, self.site, self.device, self.camera = tenant, site, device, camera
        self.epoch = frame_pb2.Epoch(counter=counter, random_id=b"%08d" % counter)
        self.sequence = 0
        self._previous = 0
        self._chain = 0
        self._index = 0
        self._encoder: av.VideoCodecContext | None = None

    @property
    def subject(self) -> str:
        return frame_subject(self.site, self.device, self.camera)

    def pixels(self, *, keyframe: bool = False) -> frame_pb2.FrameItem:
        """The next frame, with its pixels."""
        self.sequence += 1
        if keyframe or self._encoder is None:
            self._open()
        else:
            self._index += 1
        frame = av.VideoFrame.from_ndarray(picture(self.sequence), format="bgr24").reformat(format="yuv420p")
        frame.pts = self._index
        assert self._encoder is not None
        (packet,) = self._encoder.encode(frame)
        unit = frame_pb2.AccessUnit(
            sequence=self.sequence,
            capture=self._capture(self.sequence),
            chain_id=self._chain,
            chain_index=self._index,
            keyframe=self._index == 0,
            gate_reason=frame_pb2.GATE_REASON_MOTION,
            data=bytes(packet),
        )
        return frame_pb2.FrameItem(access_unit=unit)

    def range(self, count: int, kind: frame_pb2.RangeKind.ValueType, reason: str = "") -> frame_pb2.FrameItem:
        """The next `count` frames, without pixels."""
        first, self.sequence = self.sequence + 1, self.sequence + count
        return frame_pb2.FrameItem(
            range=frame_pb2.FrameRange(
                first_sequence=first,
                last_sequence=self.sequence,
                first_capture=self._capture(first),
                last_capture=self._capture(self.sequence),
                kind=kind,
                reason=reason,
            )
        )

    def envelope(
        self, items: Sequence[frame_pb2.FrameItem], *, lane: frame_pb2.Lane.ValueType = frame_pb2.LANE_LIVE
    ) -> frame_pb2.FrameEnvelope:
        """Items as one message."""
        made = frame_pb2.FrameEnvelope(
            schema_major=1,
            tenant=self.tenant,
            site=self.site,
            device=self.device,
            camera=self.camera,
            epoch=self.epoch,
            format=frame_pb2.PictureFormat(
                codec=frame_pb2.CODEC_H264,
                color_matrix=frame_pb2.COLOR_MATRIX_BT601,
                color_range=frame_pb2.COLOR_RANGE_LIMITED,
                coded_width_px=WIDTH,
                coded_height_px=HEIGHT,
                source_width_px=2 * WIDTH,
                source_height_px=2 * HEIGHT,
                scale_x=2,
                scale_y=2,
            ),
            items=items,
            published=self._capture(self.sequence),
            lane=lane,
            previous_sequence=self._previous,
        )
        self._previous = self.sequence
        return made

    def frames(self, count: int, *, keyframe_first: bool = False) -> list[frame_pb2.FrameEnvelope]:
        """`count` frames with pixels, one message each."""
        return [self.envelope([self.pixels(keyframe=keyframe_first and step == 0)]) for step in range(count)]

    def _open(self) -> None:
        self._chain += 1
        self._index = 0
        encoder = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10, 1)
        encoder.options = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "crf": "20",
            "g": "1000",
            "sc_threshold": "0",
        }
        encoder.thread_count = 1
        self._encoder = encoder

    @staticmethod
    def _capture(sequence: int) -> frame_pb2.CaptureTime:
        at = sequence * FRAME_NS
        return frame_pb2.CaptureTime(monotonic_ns=at, wall_ns=START_NS + at)


async def publish(js: object, envelopes: Iterable[frame_pb2.FrameEnvelope]) -> list[int]:
    """Store envelopes in the hub, as a forwarder does; the stream sequence of each."""
    stored = []
    for envelope in envelopes:
        ack = await js.publish(  # type: ignore[attr-defined]
            frame_subject(envelope.site, envelope.device, envelope.camera),
            encode_envelope(envelope),
            headers={"Nats-Msg-Id": message_id(envelope)},
        )
        stored.append(ack.seq)
    return stored
