"""What is fuzzed: each target takes any bytes, and raises only when there is a bug.

Everything that comes from outside has one way to be refused, and no other exception may leave it.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from cloud_inference import config as cloud_config
from cloud_inference.answer import Answers, Seen
from cloud_inference.answered import Answered
from cloud_inference.api.errors import Refusal
from cloud_inference.api.inference import decode_image
from cloud_inference.consume import Intake, Kind
from cloud_inference.decode import CannotDecode, ChainDecoder, to_source
from cloud_inference.feed import StreamMessage
from cloud_inference.track import Tracks
from edge_agent import config as edge_config
from eyeline import creds, releases, subjects
from eyeline.envelope import SCHEMA_MAJOR, parse_envelope
from eyeline.errors import BadEnvelope, BadRelease, ConfigError, InvalidName
from eyeline.v1 import detection_pb2, frame_pb2, result_pb2
from eyeline.values import Detections
from eyeline_models.letterbox import Letterbox

NOW_NS: Final = 1_800_000_000_000_000_000
_CODECS: Final = (
    frame_pb2.CODEC_H264,
    frame_pb2.CODEC_HEVC,
    frame_pb2.CODEC_AV1,
    frame_pb2.CODEC_JPEG,
    frame_pb2.CODEC_WEBP,
)
_MOST_RESULTS: Final = 50_000
_MOST_BATCH_BYTES: Final = 1_000_000


def envelope(data: bytes) -> None:
    """A message on a frame subject, as the worker takes it, up to the batch that it would store."""
    with contextlib.suppress(BadEnvelope, InvalidName):
        parsed = parse_envelope(data)
        names = parsed.site, parsed.device, parsed.camera
        intake = Intake(tenant=parsed.tenant, answered=Answered())
        answers = Answers(tracks=Tracks(), next_track_id=lambda: 1, model=detection_pb2.ModelRef(name="m"))
        picture = parsed.format
        for sequence in (1, 2):  # and once more, as a duplicate
            message = StreamMessage(subjects.frame_subject(*names), data, {}, sequence, NOW_NS, 0)
            for work in intake.accept(message):
                pending = answers.append(work, 0.0)
                if work.kind is Kind.PIXELS:
                    pending.outcome = Seen(to_source(_one_object(), picture), NOW_NS, NOW_NS, NOW_NS)
        count = 0
        while len(answers):
            collected = answers.collect(100.0)
            assert collected.done, "nothing waits for news"
            count += len(collected.results)
            assert count <= _MOST_RESULTS, f"{count} results of one message"
            batch = result_pb2.ResultBatch(schema_major=SCHEMA_MAJOR, results=collected.results)
            assert len(batch.SerializeToString()) <= _MOST_BATCH_BYTES


def fields(data: bytes) -> None:
    """The same with an envelope whose fields are made from the bytes, so that more of them hold."""
    made = _Reader(data).envelope()
    envelope(made.SerializeToString())


class _Reader:
    """Numbers from bytes; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, most: int) -> int:
        """0 to `most`; small ones, round ones and extreme ones are likely."""
        how = self._take(1)
        if how < 160:
            return min(most, how % 8)
        if how < 200:
            return most - min(most, how % 4)
        return self._take(8) % (most + 1)

    def signed(self, most: int) -> int:
        """-most to most."""
        return self.number(most) * (-1 if self._take(1) & 1 else 1)

    def real(self) -> float:
        """Any, those that are no numbers too."""
        how = self._take(1)
        if how < 200:
            return (how - 100) / 7
        return float(struct.unpack(">d", self._take(8).to_bytes(8))[0])

    def _take(self, count: int) -> int:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return int.from_bytes(taken)

    def capture(self) -> frame_pb2.CaptureTime:
        """A moment."""
        return frame_pb2.CaptureTime(
            monotonic_ns=self.number((1 << 64) - 1), wall_ns=self.number((1 << 64) - 1)
        )

    def answer(self) -> frame_pb2.EdgeAnswer:
        """Some objects."""
        made = frame_pb2.EdgeAnswer()
        for _ in range(self.number(60) % 60):
            box = detection_pb2.Box(
                x1_px=self.real(), y1_px=self.real(), x2_px=self.real(), y2_px=self.real()
            )
            made.detections.add(
                class_id=self.number((1 << 32) - 1),
                class_name="c" * self.number(80),
                score=self.real(),
                box=box,
            )
        return made

    def envelope(self) -> frame_pb2.FrameEnvelope:
        """A whole one."""
        made = frame_pb2.FrameEnvelope(
            schema_major=1,
            tenant="acme",
            site="yard",
            device="box1",
            camera="gate",
            epoch=frame_pb2.Epoch(counter=1 + self.number(1 << 62), random_id=b"12345678"),
            clock=frame_pb2.ClockEstimate(
                offset_ns=self.signed((1 << 63) - 1), uncertainty_ns=self.number((1 << 64) - 1)
            ),
            published=self.capture(),
            lane=self.number(2),  # type: ignore[arg-type]  # any of them
        )
        sides = {
            name: 1 + self.number(1 << 15)
            for name in ("coded_width_px", "coded_height_px", "source_width_px", "source_height_px")
        }
        reals = {
            name: self.real()
            for name in ("scale_x", "scale_y", "pad_x_px", "pad_y_px", "origin_x_px", "origin_y_px")
        }
        made.format.CopyFrom(frame_pb2.PictureFormat(codec=1, **sides, **reals))
        sequence = 1 + self.number(1 << 62)
        made.previous_sequence = self.number((1 << 64) - 1)
        while self._at < len(self._data) and len(made.items) < 1000:
            item = made.items.add()
            if self._take(1) & 1:
                keyframe = bool(self._take(1) & 1)
                unit = item.access_unit
                unit.sequence, unit.chain_id, unit.keyframe = sequence, self.number(9), keyframe
                unit.chain_index = 0 if keyframe else 1 + self.number(9)
                unit.data = b"x"
                unit.capture.CopyFrom(self.capture())
                unit.edge.CopyFrom(self.answer())
            else:
                item.range.kind = self.number(6)  # type: ignore[assignment]  # any of them
                item.range.first_sequence = sequence
                sequence = min((1 << 64) - 2, sequence + self.number(1 << 40))
                item.range.last_sequence = sequence
                item.range.reason = "r" * self.number(70)
                if self._take(1) & 1:
                    item.range.first_capture.CopyFrom(self.capture())
                    item.range.last_capture.CopyFrom(self.capture())
                if self._take(1) & 1:
                    item.range.edge.CopyFrom(self.answer())
            sequence += 1
        return made


def _one_object() -> Detections:
    return Detections.build(
        np.array([[1, 2, 30, 40]], np.float32), np.array([0.5], np.float32), np.array([0], np.int32), ("x",)
    )


def video(data: bytes) -> None:
    """Access units of a chain, as the worker decodes and letterboxes them.

    A byte for the codec, two for each side, then units: two bytes of length each.
    """
    if len(data) < 5:
        return
    codec, width, height = struct.unpack_from(">BHH", data)
    width, height = width % 640 + 1, height % 640 + 1
    picture = frame_pb2.PictureFormat(
        codec=_CODECS[codec % len(_CODECS)],
        color_matrix=codec // 5 % 3,  # type: ignore[arg-type]  # any of them
        color_range=codec // 15 % 3,  # type: ignore[arg-type]  # any of them
        coded_width_px=width,
        coded_height_px=height,
        source_width_px=width,
        source_height_px=height,
        scale_x=1,
        scale_y=1,
    )
    decoder, at, index = ChainDecoder(), 5, 0
    while at + 2 <= len(data) and index < 8:
        (size,) = struct.unpack_from(">H", data, at)
        payload = data[at + 2 : at + 2 + size]
        at += 2 + size
        if not payload:
            continue
        unit = frame_pb2.AccessUnit(
            sequence=index + 1, chain_id=1, chain_index=index, keyframe=index == 0, data=payload
        )
        index += 1
        with contextlib.suppress(CannotDecode):
            image = decoder.decode(unit, picture)
            assert image is not None
            assert image.shape == (height, width, 3)
            Letterbox.fit((width, height), (416, 416), centred=True, fill=114).apply(image)


def image(data: bytes) -> None:
    """An image given to Detect."""
    with contextlib.suppress(Refusal):
        found = decode_image(data, 1 << 20)
        assert found.ndim == 3
        assert found.dtype == np.uint8


def config(data: bytes) -> None:
    """A configuration file, of the agent and of the cloud."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_bytes(data)
        for load in (edge_config.load, cloud_config.load):
            with contextlib.suppress(ConfigError):
                load(path)


def credentials(data: bytes) -> None:
    """A credentials file."""
    with contextlib.suppress(ConfigError):
        found = creds.parse(data.decode("utf-8", "replace"), "file")
        assert isinstance(found.claims, dict)


_KEY: Final = "OCMKLYEF4W2CYLCCOZFFTLEDB3NM3S3TLYZPLRFTXZ2EGKLSFDYWNLEN"


def release(data: bytes) -> None:
    """An entry of the bucket RELEASES."""
    with contextlib.suppress(BadRelease):
        releases.verify(data, _KEY, tenant="acme", site="yard", device="box1", kind="config")
        raise AssertionError("nobody has that key")


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "envelope": envelope,
    "fields": fields,
    "video": video,
    "image": image,
    "config": config,
    "credentials": credentials,
    "release": release,
}
