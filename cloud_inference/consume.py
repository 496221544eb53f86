"""From messages on frame subjects to work, in order: each frame that has no answer yet exactly once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from cloud_inference.answered import Answered, EpochKey, epoch_key
from cloud_inference.feed import StreamMessage
from eyeline.envelope import capture_of_one, first_sequence, item_range, last_sequence, parse_envelope
from eyeline.errors import BadEnvelope
from eyeline.subjects import parse_frame_subject
from eyeline.v1 import frame_pb2, result_pb2

LOST = "lost"
# Skipped frames are answered one by one, at most so many at a time; a range that is longer than is
# sensible gets one answer for all its frames.
MAX_FILLED = 50
_MAX_SPLIT = 1000
# ... and of one message so many; a batch of a device that was away has some thousand.
_MAX_SPLIT_OF_MESSAGE = 20_000


class Kind(Enum):
    """How frames are to be answered."""

    PIXELS = auto()
    IDLE = auto()
    SKIPPED = auto()
    EDGE = auto()
    DROPPED = auto()
    # Answers nothing: the message it belongs to has been taken in whole.
    END = auto()


_KINDS = {
    frame_pb2.RANGE_KIND_IDLE: Kind.IDLE,
    frame_pb2.RANGE_KIND_SKIPPED: Kind.SKIPPED,
    frame_pb2.RANGE_KIND_EDGE: Kind.EDGE,
}


@dataclass(frozen=True, slots=True)
class Source:
    """The message that frames came in. Times are nanoseconds since the Unix epoch."""

    envelope: frame_pb2.FrameEnvelope
    key: EpochKey
    stream_sequence: int
    stored_ns: int
    consumed_ns: int
    # Came live, but a newer picture goes first.
    overtaken: bool = False

    @property
    def provisional(self) -> bool:
        """Whether it answers frames that are still to come."""
        return self.envelope.provisional

    @property
    def lane(self) -> frame_pb2.Lane.ValueType:
        """The lane it travelled in, or was put into here."""
        if self.overtaken:
            return frame_pb2.LANE_OVERTAKEN
        is_backlog = self.envelope.lane == frame_pb2.LANE_BACKLOG
        return frame_pb2.LANE_BACKLOG if is_backlog else frame_pb2.LANE_LIVE

    @property
    def late(self) -> bool:
        """Whether the live picture goes before it."""
        return self.lane != frame_pb2.LANE_LIVE

    def part(self, start: int, stop: int, *, overtaken: bool) -> Source:
        """The message with items `start` to `stop` (not included) alone."""
        if (start, stop) == (0, len(self.envelope.items)):
            return replace(self, overtaken=overtaken)
        envelope = frame_pb2.FrameEnvelope()
        envelope.CopyFrom(self.envelope)
        del envelope.items[stop:], envelope.items[:start]
        return replace(self, envelope=envelope, overtaken=overtaken)


@dataclass(slots=True)
class Work:
    """Frames `first` to `last` of one message, to be answered together; one frame when they have pixels.

    wanted: false for a frame that only moves the decoder on: answered already, or to be filled in.
    keyframe_at: stream sequence of the message with the keyframe of its chain.
    """

    kind: Kind
    source: Source
    first: int
    last: int
    first_capture: frame_pb2.CaptureTime = field(default_factory=frame_pb2.CaptureTime)
    last_capture: frame_pb2.CaptureTime = field(default_factory=frame_pb2.CaptureTime)
    gate_reason: frame_pb2.GateReason.ValueType = frame_pb2.GATE_REASON_UNSPECIFIED
    reason: str = ""
    unit: frame_pb2.AccessUnit | None = None
    edge: frame_pb2.EdgeAnswer | None = None
    wanted: bool = True
    keyframe_at: int = 0


@dataclass(slots=True)
class Lane:
    """Where a lane stands in its messages."""

    key: EpochKey | None = None
    last_sequence: int = 0
    chain_id: int = 0
    keyframe_at: int = 0
    # The newest frame whose pixels this owner has had.
    seen: int = 0

    def is_after(self, key: EpochKey) -> bool:
        """Whether it has gone on to a later run of the same device."""
        return self.key is not None and self.key[0] == key[0] and self.key[1] > key[1]


class Intake:
    """One camera's messages, as work. `answered` is what had a final answer when the owner took over."""

    def __init__(
        self,
        *,
        tenant: str,
        answered: Answered,
        lanes: Iterator[tuple[frame_pb2.Lane.ValueType, EpochKey, result_pb2.LaneCheckpoint]] | None = None,
    ) -> None:
        self._tenant = tenant
        # Answered, or on the way to it; put off, and to be taken later.
        self._taken, self._promised = answered, Answered()
        self._split_left = 0
        self._lanes: dict[int, Lane] = {
            lane: Lane(key, stored.last_sequence) for lane, key, stored in lanes or ()
        }

    def read(self, message: StreamMessage) -> Source:
        """What a message says of itself; raises `BadEnvelope` for what cannot be used."""
        envelope = parse_envelope(message.data)
        restore_times(envelope)
        address = parse_frame_subject(message.subject)
        named = (envelope.tenant, envelope.site, envelope.device, envelope.camera)
        if named != (self._tenant, *address):
            raise BadEnvelope("wrong_subject", f"envelope of {'/'.join(named)} came on {message.subject}")
        key = epoch_key(envelope.device, envelope.epoch)
        return Source(envelope, key, message.sequence, message.stored_ns, time.time_ns())

    def accept(self, message: StreamMessage) -> list[Work]:
        """Work in sequence order, closed by an END; raises `BadEnvelope` for what cannot be used."""
        return self.work(self.read(message))

    def work(self, source: Source) -> list[Work]:
        """Work in sequence order, closed by an END; each lane's messages must come in their order."""
        envelope, key = source.envelope, source.key
        lane = self._lanes.setdefault(source.lane, Lane())
        end = last_sequence(envelope)
        work: list[Work] = []
        if source.provisional:
            return [*self._ahead(source), Work(Kind.END, source, end, end)]
        if not (lane.is_after(key) and not self._open(source, first_sequence(envelope), end)):
            if lane.key != key:
                self._lanes[source.lane] = lane = Lane(key)
            work += self._lost(source, lane)
            self._split_left = _MAX_SPLIT_OF_MESSAGE
            for item in envelope.items:
                work += self._item(source, lane, item)
            lane.last_sequence = max(lane.last_sequence, end)
        work.append(Work(Kind.END, source, end, end))
        return work

    # Live messages that a newer picture overtakes

    def put_off(self, source: Source) -> None:
        """The live lane goes on behind this message; its frames are answered in the overtaken lane alone."""
        envelope, key = source.envelope, source.key
        first, end = first_sequence(envelope), last_sequence(envelope)
        lane = self._lanes.setdefault(frame_pb2.LANE_LIVE, Lane())
        if lane.is_after(key) and not self._open(source, first, end):
            return
        if lane.key != key:
            self._lanes[frame_pb2.LANE_LIVE] = lane = Lane(key)
        lane.last_sequence = max(lane.last_sequence, end)
        lane.seen = max([lane.seen, *(unit.sequence for _, unit in _units(source))])
        self._promised.add(key, first, end)

    def wants_pixels(self, source: Source) -> bool:
        """Whether it brings pixels of frames that have no answer yet."""
        return any(self._open(source, unit.sequence, unit.sequence) for _, unit in _units(source))

    def fresh_start(self, source: Source) -> int | None:
        """Index of the first item from which on it needs nothing that came before; None without one."""
        for index, unit in _units(source):
            if unit.keyframe and self._open(source, unit.sequence, unit.sequence):
                return index
        return None

    @staticmethod
    def has_pixels(source: Source) -> bool:
        """Whether it brings any pixels."""
        return any(True for _ in _units(source))

    def hand_over(self) -> Lane:
        """Where the live lane stands, for the overtaken one to go on from."""
        return replace(self._lanes.get(frame_pb2.LANE_LIVE, Lane()))

    def take_up(self, lane: Lane) -> None:
        """The overtaken lane goes on from here."""
        self._lanes[frame_pb2.LANE_OVERTAKEN] = lane

    def rejoin(self) -> None:
        """The live lane goes on where the overtaken one ended."""
        live, overtaken = (self._lanes.get(it) for it in (frame_pb2.LANE_LIVE, frame_pb2.LANE_OVERTAKEN))
        if live is not None and overtaken is not None and live.key == overtaken.key:
            live.chain_id, live.keyframe_at = overtaken.chain_id, overtaken.keyframe_at

    def _open(self, source: Source, first: int, last: int) -> list[tuple[int, int]]:
        """Frames without an answer, nor the promise of one in the overtaken lane."""
        missing = self._taken.missing(source.key, first, last)
        if source.overtaken:
            return missing
        return [gap for one in missing for gap in self._promised.missing(source.key, *one)]

    def _ahead(self, source: Source) -> Iterator[Work]:
        """What the device answered by itself, of frames without an answer: they stay to be answered."""
        for item in source.envelope.items:
            frames = item.range
            if frames.kind not in {frame_pb2.RANGE_KIND_EDGE, frame_pb2.RANGE_KIND_SKIPPED}:
                continue
            for first, last in self._taken.missing(source.key, *item_range(item)):
                yield _range_work(source, frames, first, last)

    def _lost(self, source: Source, lane: Lane) -> Iterator[Work]:
        """Frames that this lane should have brought before this message."""
        envelope = source.envelope
        start, end = lane.last_sequence + 1, min(envelope.previous_sequence, first_sequence(envelope) - 1)
        if start > end:
            return
        when = _capture_of(envelope.items[0])
        for first, last in self._claim(source, start, end):
            yield Work(Kind.DROPPED, source, first, last, when, when, reason=LOST)

    def _claim(self, source: Source, first: int, last: int) -> list[tuple[int, int]]:
        missing = self._open(source, first, last)
        for start, end in missing:
            self._taken.add(source.key, start, end)
        return missing

    def _item(self, source: Source, lane: Lane, item: frame_pb2.FrameItem) -> Iterator[Work]:
        first, last = item_range(item)
        missing = self._claim(source, first, last)
        if item.WhichOneof("item") == "access_unit":
            unit = item.access_unit
            if not missing and unit.sequence <= lane.seen:
                # Come again, however late: the decoder has gone on from there.
                return
            lane.seen = max(lane.seen, unit.sequence)
            if unit.keyframe:
                lane.chain_id, lane.keyframe_at = unit.chain_id, source.stream_sequence
            yield Work(
                Kind.PIXELS,
                source,
                first,
                last,
                unit.capture,
                unit.capture,
                unit.gate_reason,
                unit=unit,
                wanted=bool(missing) and not unit.reference_only,
                keyframe_at=lane.keyframe_at if lane.chain_id == unit.chain_id else 0,
            )
            if missing and unit.reference_only:
                when = unit.capture
                yield Work(Kind.SKIPPED, source, first, last, when, when, unit.gate_reason)
            return
        frames = item.range
        count = last - first + 1
        if frames.kind == frame_pb2.RANGE_KIND_SKIPPED and count <= min(_MAX_SPLIT, self._split_left):
            self._split_left -= count
            missing = [piece for whole in missing for piece in _pieces(*whole)]
        for start, end in missing:
            yield _range_work(source, frames, start, end)


def _units(source: Source) -> Iterator[tuple[int, frame_pb2.AccessUnit]]:
    for index, item in enumerate(source.envelope.items):
        if item.WhichOneof("item") == "access_unit":
            yield index, item.access_unit


def _range_work(source: Source, frames: frame_pb2.FrameRange, first: int, last: int) -> Work:
    return Work(
        _KINDS.get(frames.kind, Kind.DROPPED),
        source,
        first,
        last,
        _between(frames, first),
        _between(frames, last),
        frames.gate_reason,
        frames.reason or "unknown_range",
        edge=frames.edge if frames.HasField("edge") else None,
    )


def restore_times(envelope: frame_pb2.FrameEnvelope) -> None:
    """Put in the capture times that the edge leaves out: of skipped frames between two looked at."""
    items = envelope.items
    for before, item, after in zip(items, items[1:], items[2:], strict=False):
        if item.WhichOneof("item") != "range" or item.range.HasField("first_capture"):
            continue
        when = capture_of_one(before), capture_of_one(after)
        if when[0] is None or when[1] is None:
            continue
        start, end = item_range(before)[1], item_range(after)[0]
        for sequence, capture in (
            (item.range.first_sequence, item.range.first_capture),
            (item.range.last_sequence, item.range.last_capture),
        ):
            part = (sequence - start) / max(end - start, 1)
            for clock in ("monotonic_ns", "wall_ns"):
                first, last = (getattr(one, clock) for one in when)
                setattr(capture, clock, max(0, first + int((last - first) * part)))


def _pieces(first: int, last: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last + 1, MAX_FILLED):
        yield start, min(start + MAX_FILLED - 1, last)


def _capture_of(item: frame_pb2.FrameItem) -> frame_pb2.CaptureTime:
    return capture_of_one(item) or item.range.first_capture


def _between(frames: frame_pb2.FrameRange, sequence: int) -> frame_pb2.CaptureTime:
    """Capture time of a frame inside a range, taken as evenly spaced."""
    span = frames.last_sequence - frames.first_sequence
    if span == 0:
        return frames.first_capture
    part = (sequence - frames.first_sequence) / span
    return part_way(frames.first_capture, frames.last_capture, part)


def part_way(first: frame_pb2.CaptureTime, last: frame_pb2.CaptureTime, part: float) -> frame_pb2.CaptureTime:
    """Between two times, `part` (0 to 1) of the way."""
    # In float, and rounded: a range that runs backwards may end just below zero.
    return frame_pb2.CaptureTime(
        monotonic_ns=max(0, first.monotonic_ns + int((last.monotonic_ns - first.monotonic_ns) * part)),
        wall_ns=max(0, first.wall_ns + int((last.wall_ns - first.wall_ns) * part)),
    )
