"""What the spool holds, in short: one entry for each chain, not for each message.

A segment is a chain (a keyframe and what depends on it, with the ranges between), or a run of ranges without
pixels. It travels whole in one lane, and when the spool is full it is purged whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from eyeline.envelope import capture_of_one, first_sequence, item_range, last_sequence, message_id
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

ID_HEADER: Final = "Nats-Msg-Id"
CHAIN_HEADER: Final = "Eyeline-Chain"
_MAX_RANGE_MESSAGES: Final = 1000
_REMEMBERED_CHAINS: Final = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One spooled message. chain: of its first access unit, None without; starts: that unit is a keyframe.

    size: payload in bytes; stored_s: when, on this process's monotonic clock.
    """

    sequence: int
    epoch: Epoch
    first: int
    last: int
    chain: int | None
    starts: bool
    size: int
    stored_s: float


def headers_of(envelope: pb.FrameEnvelope) -> dict[str, str]:
    """Headers that let the index be rebuilt without reading payloads."""
    headers = {ID_HEADER: message_id(envelope)}
    unit = next(
        (item.access_unit for item in envelope.items if item.WhichOneof("item") == "access_unit"), None
    )
    if unit is not None:
        headers[CHAIN_HEADER] = f"{unit.chain_id}:{int(unit.keyframe)}"
    return headers


def entry_of(envelope: pb.FrameEnvelope, sequence: int, size: int, stored_s: float) -> Entry:
    """Entry of an envelope that was just spooled."""
    chain, starts = _chain(headers_of(envelope).get(CHAIN_HEADER))
    return Entry(
        sequence,
        Epoch.from_proto(envelope.epoch),
        first_sequence(envelope),
        last_sequence(envelope),
        chain,
        starts,
        size,
        stored_s,
    )


def entry_from_headers(headers: dict[str, str], sequence: int, size: int, stored_s: float) -> Entry:
    """Entry of a message that an earlier run spooled; raises ValueError for headers that are not ours."""
    _, _, counter, random_id, frames = headers.get(ID_HEADER, "").split(".")
    first, last = (int(part) for part in frames.split("-"))
    chain, starts = _chain(headers.get(CHAIN_HEADER))
    return Entry(
        sequence, Epoch(int(counter), bytes.fromhex(random_id)), first, last, chain, starts, size, stored_s
    )


def _chain(text: str | None) -> tuple[int | None, bool]:
    if not text:
        return None, False
    chain, _, starts = text.partition(":")
    return int(chain), starts == "1"


@dataclass(slots=True, eq=False)
class Segment:
    """Consecutive messages of one camera.

    whole: its first message can be decoded (or needs no decoding). lane: given with the first attempt to send
    it. cursor, next_frame: first spool sequence and first frame sequence that the hub does not have.
    busy: being sent right now.
    """

    epoch: Epoch
    chain: int | None
    whole: bool
    first_seq: int
    last_seq: int
    next_frame: int
    last_frame: int
    stored_s: float
    last_stored_s: float
    last_unit_s: float
    lane: pb.Lane.ValueType = pb.LANE_UNSPECIFIED
    cursor: int = 0
    messages: int = 0
    size: int = 0
    busy: bool = False

    @property
    def pending(self) -> bool:
        """Whether anything of it waits for the hub."""
        return self.messages > 0


@dataclass(slots=True, eq=False)
class CameraIndex:
    """One camera's segments, oldest first; the last one is open and stays even when it is empty."""

    camera: str
    split_after_s: float = 4.0
    segments: deque[Segment] = field(default_factory=deque)
    _lanes: dict[tuple[Epoch, int], pb.Lane.ValueType] = field(default_factory=dict)

    def append(self, entry: Entry) -> Segment:
        """Take a new message in; returns its segment."""
        last = self.segments[-1] if self.segments else None
        if last is None or self._begins(entry, last):
            self._close()
            last = Segment(
                entry.epoch,
                entry.chain,
                entry.starts or entry.chain is None,
                entry.sequence,
                entry.sequence,
                entry.first,
                entry.last,
                entry.stored_s,
                entry.stored_s,
                entry.stored_s,
                cursor=entry.sequence,
            )
            self.segments.append(last)
        if not last.pending:
            last.stored_s, last.cursor, last.next_frame = entry.stored_s, entry.sequence, entry.first
        if entry.chain is not None:
            last.last_unit_s = entry.stored_s
        last.last_seq, last.last_frame, last.last_stored_s = entry.sequence, entry.last, entry.stored_s
        last.messages += 1
        last.size += entry.size
        return last

    def _begins(self, entry: Entry, last: Segment) -> bool:
        if entry.epoch != last.epoch or entry.starts:
            return True
        if entry.chain is not None:
            return entry.chain != last.chain
        if last.chain is None:
            return last.messages >= _MAX_RANGE_MESSAGES
        # Ranges between access units stay with them; an idle camera's do not, for they may be sent apart.
        return entry.stored_s - last.last_unit_s > self.split_after_s

    def _close(self) -> None:
        if self.segments and not self.segments[-1].pending:
            self.segments.pop()

    def assign(self, segment: Segment, lane: pb.Lane.ValueType) -> None:
        """Put a segment into a lane, for good."""
        segment.lane = lane
        if segment.chain is not None:
            self._lanes[segment.epoch, segment.chain] = lane
            while len(self._lanes) > _REMEMBERED_CHAINS:
                del self._lanes[next(iter(self._lanes))]

    def lane_of_chain(self, segment: Segment) -> pb.Lane.ValueType:
        """Lane that the start of its chain went into; LANE_UNSPECIFIED when unknown."""
        if segment.chain is None:
            return pb.LANE_UNSPECIFIED
        return self._lanes.get((segment.epoch, segment.chain), pb.LANE_UNSPECIFIED)

    def acknowledged(self, segment: Segment, upto: int, last_frame: int, messages: int, size: int) -> None:
        """The hub has its messages up to spool sequence `upto`."""
        segment.cursor, segment.next_frame = upto + 1, last_frame + 1
        # Of what is left, the oldest: messages are taken as evenly spaced.
        share = min(1.0, messages / max(segment.messages, 1))
        segment.stored_s += (segment.last_stored_s - segment.stored_s) * share
        segment.messages = max(0, segment.messages - messages)
        segment.size = max(0, segment.size - size)
        if segment.messages == 0:
            self.discard(segment)

    def discard(self, segment: Segment) -> None:
        """Forget what it held."""
        segment.messages = segment.size = 0
        segment.cursor = segment.last_seq + 1
        if self.segments and segment is not self.segments[-1] and segment in self.segments:
            self.segments.remove(segment)

    def waiting(self) -> Iterator[Segment]:
        """Segments with something for the hub, oldest first."""
        return (segment for segment in list(self.segments) if segment.pending)

    @property
    def messages(self) -> int:
        """Messages that wait for the hub."""
        return sum(segment.messages for segment in self.segments)

    @property
    def size(self) -> int:
        """Payload bytes that wait for the hub."""
        return sum(segment.size for segment in self.segments)

    def oldest_unsent(self) -> int | None:
        """Lowest spool sequence that is still needed."""
        return min((segment.cursor for segment in self.segments if segment.pending), default=None)


def dropped_item(first: pb.FrameItem, last: pb.FrameItem, reason: str) -> pb.FrameItem:
    """A DROPPED range from the first frame of one item to the last frame of another."""
    start, end = item_range(first)[0], item_range(last)[1]
    return pb.FrameItem(
        range=pb.FrameRange(
            first_sequence=start,
            last_sequence=end,
            first_capture=_captures(first)[0],
            last_capture=_captures(last)[1],
            kind=pb.RANGE_KIND_DROPPED,
            reason=reason,
        )
    )


def dropped_envelope(first: pb.FrameEnvelope, last: pb.FrameEnvelope, reason: str) -> pb.FrameEnvelope:
    """An envelope that answers all frames from one envelope to another as dropped."""
    envelope = pb.FrameEnvelope()
    envelope.CopyFrom(last)
    envelope.ClearField("items")
    envelope.ClearField("format")
    envelope.items.append(dropped_item(first.items[0], last.items[-1], reason))
    envelope.lane = pb.LANE_BACKLOG
    return envelope


def last_capture(envelope: pb.FrameEnvelope) -> pb.CaptureTime:
    """When the newest frame of an envelope was captured."""
    return _captures(envelope.items[-1])[1]


def _captures(item: pb.FrameItem) -> tuple[pb.CaptureTime, pb.CaptureTime]:
    alone = capture_of_one(item)
    if alone is not None:
        return alone, alone
    return item.range.first_capture, item.range.last_capture
