"""Frame envelopes as bytes: limits are checked on both sides, before sending and after receiving."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError, Message

from eyeline.errors import BadEnvelope, InvalidName
from eyeline.subjects import check_token
from eyeline.v1 import frame_pb2 as pb

SCHEMA_MAJOR: Final = 1
# Well under the broker's default of 1 MiB, so that subject and headers always fit.
MAX_ENVELOPE_BYTES: Final = 900_000
MAX_ITEMS: Final = 1_000
# A range longer than this is a mistake or an attack: a week at 120 frames a second.
MAX_RANGE_FRAMES: Final = 120 * 86_400 * 7
MAX_SIDE_PX: Final = 16_384
# Of a coded picture: what a decoder has to hold, and a worker to convert.
MAX_CODED_PX: Final = 4096 * 4096
# Of an edge answer.
MAX_DETECTIONS: Final = 1_000
MAX_CLASS_NAME: Final = 64
MAX_TEXT: Final = 200
# Nanoseconds since the Unix epoch, or of a monotonic clock: until the year 2116.
MAX_NS: Final = 1 << 62
RANDOM_ID_BYTES: Final = 8

_MOST_PX: Final = 1e6
_REASON: Final = re.compile(r"[a-z0-9_]{1,64}")


def item_range(item: pb.FrameItem) -> tuple[int, int]:
    """First and last sequence that an item answers for."""
    if item.WhichOneof("item") == "access_unit":
        return item.access_unit.sequence, item.access_unit.sequence
    return item.range.first_sequence, item.range.last_sequence


def capture_of_one(item: pb.FrameItem) -> pb.CaptureTime | None:
    """When an item's only frame was captured: an access unit's, or one that the edge model answered."""
    if item.WhichOneof("item") == "access_unit":
        return item.access_unit.capture
    frames = item.range
    single = frames.kind == pb.RANGE_KIND_EDGE and frames.first_sequence == frames.last_sequence
    return frames.first_capture if single else None


def first_sequence(envelope: pb.FrameEnvelope) -> int:
    """Sequence of the first frame in the envelope."""
    return item_range(envelope.items[0])[0]


def last_sequence(envelope: pb.FrameEnvelope) -> int:
    """Sequence of the last frame in the envelope."""
    return item_range(envelope.items[-1])[1]


def message_id(envelope: pb.FrameEnvelope) -> str:
    """`Nats-Msg-Id` of the envelope: the same frames of the same run always give the same id."""
    epoch = envelope.epoch
    return (
        f"{envelope.device}.{envelope.camera}.{epoch.counter}.{epoch.random_id.hex()}"
        f".{first_sequence(envelope)}-{last_sequence(envelope)}"
    )


def encode_envelope(envelope: pb.FrameEnvelope) -> bytes:
    """Serialize; raises `BadEnvelope` for what no reader would take."""
    check_envelope(envelope)
    data = envelope.SerializeToString()
    if len(data) > MAX_ENVELOPE_BYTES:
        raise BadEnvelope(
            "too_large", f"envelope has {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are allowed"
        )
    return data


def parse_envelope(data: bytes) -> pb.FrameEnvelope:
    """Parse and check; raises `BadEnvelope` with reason too_large, corrupt, newer_schema or invalid."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise BadEnvelope(
            "too_large", f"envelope has {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are allowed"
        )
    envelope = pb.FrameEnvelope()
    try:
        envelope.ParseFromString(data)
    except DecodeError:
        digest = hashlib.sha256(data).hexdigest()[:12]
        raise BadEnvelope(
            "corrupt", f"{len(data)} bytes (sha256 {digest}) are not a frame envelope"
        ) from None
    check_envelope(envelope)
    return envelope


def check_envelope(envelope: pb.FrameEnvelope) -> None:
    """Raise `BadEnvelope` unless every field is within bounds and the items are gapless."""
    if envelope.schema_major > SCHEMA_MAJOR:
        raise BadEnvelope(
            "newer_schema",
            f"envelope has schema {envelope.schema_major}, this side reads up to {SCHEMA_MAJOR}: update it",
        )
    if envelope.schema_major == 0:
        # Random bytes often parse as an empty message; a real writer always sets it.
        raise BadEnvelope("corrupt", "envelope has no schema number")
    for problem in _problems(envelope):
        raise BadEnvelope("invalid", problem)


def _problems(envelope: pb.FrameEnvelope) -> Iterator[str]:
    for what in ("tenant", "site", "device", "camera"):
        try:
            check_token(getattr(envelope, what), what)
        except InvalidName as error:
            yield str(error)
    if envelope.epoch.counter < 1 or len(envelope.epoch.random_id) != RANDOM_ID_BYTES:
        yield f"epoch needs a counter from 1 and {RANDOM_ID_BYTES} random bytes"
    if not 1 <= len(envelope.items) <= MAX_ITEMS:
        yield f"envelope has {len(envelope.items)} items, 1 to {MAX_ITEMS} are allowed"
        return
    clock = envelope.clock
    if abs(clock.offset_ns) > MAX_NS or clock.uncertainty_ns > MAX_NS:
        yield "the clock estimate is no time"
    yield from _time_problems(envelope.published, "the envelope")
    for what in ("traceparent", "rung"):
        if len(getattr(envelope, what)) > MAX_TEXT:
            yield f"{what} has more than {MAX_TEXT} letters"
    expected: int | None = None
    for item in envelope.items:
        if item.WhichOneof("item") is None:
            yield "an item is neither an access unit nor a range"
            return
        first, last = item_range(item)
        if first < 1 or last < first or last - first >= MAX_RANGE_FRAMES or last >= 2**63:
            yield f"frames {first} to {last} are no valid range"
        if expected is not None and first != expected:
            yield f"frame {first} follows where {expected} should"
        expected = last + 1
        yield from _item_problems(item)
    if any(_is_unit(item) for item in envelope.items):
        yield from _format_problems(envelope.format)


def _is_unit(item: pb.FrameItem) -> bool:
    return item.WhichOneof("item") == "access_unit"


def _item_problems(item: pb.FrameItem) -> Iterator[str]:
    if _is_unit(item):
        unit = item.access_unit
        if unit.keyframe != (unit.chain_index == 0):
            yield f"frame {unit.sequence}: a chain starts with its keyframe, and only there"
        if unit.keyframe and unit.reference_only:
            yield f"frame {unit.sequence}: a keyframe stands for itself"
        if not unit.data:
            yield f"frame {unit.sequence} has no data"
        yield from _time_problems(unit.capture, f"frame {unit.sequence}")
        yield from _answer_problems(unit.edge, unit.sequence)
        return
    first = item.range.first_sequence
    for capture in (item.range.first_capture, item.range.last_capture):
        yield from _time_problems(capture, f"range from frame {first}")
    yield from _answer_problems(item.range.edge, first)
    if item.range.reason and not _REASON.fullmatch(item.range.reason):
        yield f"range from frame {first}: its reason is no snake_case word"
    if item.range.kind == pb.RANGE_KIND_UNSPECIFIED:
        yield f"range from frame {item.range.first_sequence} has no kind"
    elif item.range.kind == pb.RANGE_KIND_DROPPED and not item.range.reason:
        yield f"dropped range from frame {item.range.first_sequence} has no reason"


def _time_problems(when: pb.CaptureTime, what: str) -> Iterator[str]:
    if when.monotonic_ns > MAX_NS or when.wall_ns > MAX_NS:
        yield f"{what} has no possible time"


def _answer_problems(answer: pb.EdgeAnswer, sequence: int) -> Iterator[str]:
    if len(answer.detections) > MAX_DETECTIONS:
        yield f"frame {sequence} has {len(answer.detections)} detections, at most {MAX_DETECTIONS} may be"
    for found in answer.detections:
        box = found.box
        numbers = (found.score, box.x1_px, box.y1_px, box.x2_px, box.y2_px)
        if not all(math.isfinite(number) and abs(number) <= _MOST_PX for number in numbers):
            yield f"frame {sequence} has a box that is none"
            return
        if len(found.class_name) > MAX_CLASS_NAME or found.class_id >= 1 << 31:
            yield f"frame {sequence} has a class that is none"
            return


def _format_problems(picture: pb.PictureFormat) -> Iterator[str]:
    sizes = (
        picture.coded_width_px,
        picture.coded_height_px,
        picture.source_width_px,
        picture.source_height_px,
    )
    if picture.codec == pb.CODEC_UNSPECIFIED:
        yield "format has no codec"
    if not all(1 <= size <= MAX_SIDE_PX for size in sizes):
        yield f"format has a picture size outside 1 to {MAX_SIDE_PX}: {sizes}"
    if picture.coded_width_px * picture.coded_height_px > MAX_CODED_PX:
        yield f"format has a coded picture of more than {MAX_CODED_PX} pixels: {sizes[:2]}"
    places = (picture.pad_x_px, picture.pad_y_px, picture.origin_x_px, picture.origin_y_px)
    if not all(math.isfinite(place) and abs(place) <= MAX_SIDE_PX for place in places):
        yield "format has padding or an origin outside any picture"
    if not (0 < picture.scale_x < MAX_SIDE_PX and 0 < picture.scale_y < MAX_SIDE_PX):
        yield f"format has scale {picture.scale_x} x {picture.scale_y}, it must be above 0"


def describe(message: Message) -> str:
    """One line about a message, for logs."""
    return str(message).replace("\n", " ")[:200]
