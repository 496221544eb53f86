"""Several spooled messages as one: what is under way to the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.segments import Segment
from eyeline.envelope import MAX_ENVELOPE_BYTES, MAX_ITEMS, first_sequence, last_sequence, message_id
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

# The clock's estimate for a moment of a run; uncertainty 0 when there is none.
ClockAt = Callable[[Epoch, pb.CaptureTime], pb.ClockEstimate]


@dataclass(frozen=True, slots=True)
class Message:
    """What is under way: spooled messages (sequence and payload each) as one envelope."""

    payload: bytes
    message_id: str
    parts: list[tuple[int, bytes]]
    lane: pb.Lane.ValueType
    epoch: Epoch
    last: int
    envelope: pb.FrameEnvelope

    @property
    def pictures(self) -> int:
        """Frames with pixels in it."""
        return sum(item.HasField("access_unit") for item in self.envelope.items)


def join(segment: Segment, parts: list[tuple[int, bytes]], reached: int | None, clock_at: ClockAt) -> Message:
    """As many of these messages as fit one envelope, in the segment's lane.

    reached: the last sequence that the hub has of this lane and epoch, None when nothing is known of it.
    """
    envelope = pb.FrameEnvelope.FromString(parts[0][1])
    original = (envelope.lane, envelope.previous_sequence)
    epoch = Epoch.from_proto(envelope.epoch)
    used = 1
    size = len(parts[0][1])
    for _, data in parts[1:]:
        following = pb.FrameEnvelope.FromString(data)
        size += len(data)
        if size > MAX_ENVELOPE_BYTES or not _joins(envelope, following):
            break
        if not envelope.HasField("format") and following.HasField("format"):
            envelope.format.CopyFrom(following.format)
            envelope.rung = following.rung
        if following.HasField("edge_model"):
            envelope.edge_model.CopyFrom(following.edge_model)
        envelope.items.extend(following.items)
        # The estimate holds for the moment at which its envelope was made.
        envelope.clock.CopyFrom(following.clock)
        envelope.published.CopyFrom(following.published)
        used += 1
    is_timed = envelope.clock.uncertainty_ns > 0
    if not is_timed:
        # Made before the hub was ever asked for its time: a device that starts without a link, say.
        envelope.clock.CopyFrom(clock_at(epoch, envelope.published))
    envelope.lane = segment.lane
    if reached is not None:
        # At most the frame before: a gap in the lane is a loss only when we say so.
        envelope.previous_sequence = min(reached, first_sequence(envelope) - 1)
    elif segment.whole:
        envelope.previous_sequence = 0
    if used == 1 and is_timed and (envelope.lane, envelope.previous_sequence) == original:
        payload = parts[0][1]
    else:
        payload = envelope.SerializeToString()
    name = message_id(envelope)
    if segment.lane == pb.LANE_BACKLOG:
        # A chain that was begun in the live lane before a crash must arrive here with its keyframe.
        name += ".backlog"
    return Message(payload, name, parts[:used], segment.lane, epoch, last_sequence(envelope), envelope)


def _joins(envelope: pb.FrameEnvelope, following: pb.FrameEnvelope) -> bool:
    """Whether the second continues the first without a gap and can share its fields."""
    same_format = (
        not envelope.HasField("format")
        or not following.HasField("format")
        or (envelope.format == following.format and envelope.rung == following.rung)
    )
    return (
        same_format
        and last_sequence(envelope) + 1 == first_sequence(following)
        and envelope.epoch == following.epoch
        # Named only where it answered.
        and (
            not envelope.HasField("edge_model")
            or not following.HasField("edge_model")
            or envelope.edge_model == following.edge_model
        )
        and envelope.planned_for_model == following.planned_for_model
        and len(envelope.items) + len(following.items) <= MAX_ITEMS
    )
