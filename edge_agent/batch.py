"""Envelopes: one camera's items in sequence order, put into as few messages as its deadlines allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge_agent.gate import GateReason
from eyeline.envelope import (
    MAX_ENVELOPE_BYTES,
    MAX_ITEMS,
    SCHEMA_MAJOR,
    capture_of_one,
    first_sequence,
    last_sequence,
)
from eyeline.ladder import STILL_CODECS
from eyeline.v1 import detection_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections, Epoch

# Room for what is not data: names, formats, model references, the edge model's objects; all bounded.
ROOM_BYTES: Final = 65_536
MAX_ITEMS_BYTES: Final = MAX_ENVELOPE_BYTES - ROOM_BYTES
# Of an item, around its data: field numbers, lengths, sequence, times.
_ITEM_BYTES: Final = 128
_NEVER_NS: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class CameraIdentity:
    """What every envelope of a camera's run says."""

    tenant: str
    site: str
    device: str
    camera: str
    epoch: Epoch
    edge_model: detection_pb2.ModelRef | None = None
    planned_for_model: detection_pb2.ModelRef | None = None
    # From capture; 0 for none. in_order: the backlog is to be answered before what comes after it.
    deadline_ns: int = 0
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time on the device's two clocks, in nanoseconds."""

    monotonic_ns: int
    wall_ns: int

    def to_proto(self) -> pb.CaptureTime:
        """As a protobuf message."""
        return pb.CaptureTime(monotonic_ns=self.monotonic_ns, wall_ns=self.wall_ns)

    def to_item_proto(self) -> pb.CaptureTime:
        """For an item: the wall clock is left out, `published` of the envelope relates the two clocks."""
        return pb.CaptureTime(monotonic_ns=self.monotonic_ns)


@dataclass(frozen=True, slots=True)
class Unit:
    """One frame's pixels.

    edge: what the edge model saw, None when it did not look. reference_only: whether it goes along for the
    units that depend on it, and is answered as if it had been skipped.
    """

    sequence: int
    capture: Moment
    chain_id: int
    chain_index: int
    gate_reason: GateReason
    data: bytes
    edge: Detections | None = None
    reference_only: bool = False


class EnvelopeBuilder:
    """Collects items and says when an envelope is due. Pure: time comes in, envelopes come out.

    batch_ms: frames of their own (pixels, or the edge model's answer) wait at most so long for company, but
    a camera's first; heartbeat_s: ranges do; max_bytes: of the items of one envelope, at most
    `MAX_ITEMS_BYTES`.
    """

    def __init__(
        self,
        identity: CameraIdentity,
        *,
        batch_ms: float,
        heartbeat_s: float,
        max_bytes: int = MAX_ITEMS_BYTES,
        max_items: int = MAX_ITEMS,
    ) -> None:
        self._identity = identity
        self._batch_ns = int(batch_ms * 1e6)
        self._heartbeat_ns = int(heartbeat_s * 1e9)
        self._max_bytes = min(max_bytes, MAX_ITEMS_BYTES)
        self._max_items = min(max_items, MAX_ITEMS)
        self._ready: list[pb.FrameEnvelope] = []
        self._previous = 0
        self._last_sequence = 0
        self._clear()

    def _clear(self) -> None:
        self._items: list[pb.FrameItem] = []
        self._bytes = 0
        self._oldest_ns: int | None = None
        self._oldest_unit_ns: int | None = None
        self._at_once = False
        self._oldest_edge_ns: int | None = None
        self._format = pb.PictureFormat()
        self._rung = ""

    @property
    def waiting(self) -> int:
        """Number of items and envelopes not taken yet."""
        return len(self._items) + len(self._ready)

    def too_large(self, data: bytes) -> bool:
        """Whether an access unit fits no envelope."""
        return len(data) + _ITEM_BYTES > self._max_bytes

    def add_unit(self, unit: Unit, picture_format: pb.PictureFormat, rung: str) -> None:
        """Add a frame with pixels; raises ValueError when its data fits no envelope or its turn is wrong."""
        if self.too_large(unit.data):
            raise ValueError(f"access unit has {len(unit.data)} bytes, {self._max_bytes} fit an envelope")
        message = pb.AccessUnit(
            sequence=unit.sequence,
            capture=unit.capture.to_item_proto(),
            chain_id=unit.chain_id,
            chain_index=unit.chain_index,
            keyframe=unit.chain_index == 0,
            gate_reason=unit.gate_reason.value,
            data=unit.data,
            reference_only=unit.reference_only,
        )
        if unit.edge is not None:
            message.edge.CopyFrom(edge_answer(unit.edge))
        size = message.ByteSize() + _ITEM_BYTES
        # One format, one rung and one chain for all units of an envelope: a chain is kept, sent and purged
        # whole. A still is a chain of its own that nothing follows.
        begins = message.keyframe and picture_format.codec not in STILL_CODECS
        differs = picture_format != self._format or rung != self._rung or begins
        differs = differs and self._oldest_unit_ns is not None
        self._append(
            pb.FrameItem(access_unit=message),
            (unit.sequence, unit.sequence),
            size,
            unit.capture,
            differs=differs,
        )
        self._format, self._rung = picture_format, rung
        if self._oldest_unit_ns is None:
            self._oldest_unit_ns = unit.capture.monotonic_ns
        # Whoever starts a camera waits for its first answer.
        self._at_once = self._at_once or unit.gate_reason is GateReason.FIRST

    def add_range(
        self,
        kind: pb.RangeKind.ValueType,
        gate_reason: GateReason,
        first: tuple[int, Moment],
        last: tuple[int, Moment] | None = None,
        *,
        reason: str = "",
    ) -> None:
        """Add frames without pixels: `first` to `last` (sequence and time), merged with a like neighbour."""
        last = last or first
        open_range = self._items[-1].range if self._items and self._items[-1].HasField("range") else None
        if (
            open_range is not None
            and (open_range.kind, open_range.gate_reason, open_range.reason)
            == (kind, gate_reason.value, reason)
            and first[0] == self._last_sequence + 1
        ):
            open_range.last_sequence = last[0]
            open_range.last_capture.CopyFrom(last[1].to_item_proto())
            self._last_sequence = last[0]
            return
        message = pb.FrameRange(
            first_sequence=first[0],
            last_sequence=last[0],
            first_capture=first[1].to_item_proto(),
            last_capture=last[1].to_item_proto(),
            kind=kind,
            gate_reason=gate_reason.value,
            reason=reason,
        )
        self._append(pb.FrameItem(range=message), (first[0], last[0]), _ITEM_BYTES, first[1], differs=False)

    def add_edge(self, gate_reason: GateReason, frame: tuple[int, Moment], seen: Detections) -> None:
        """Add a frame that the edge model answers for the cloud; it travels like one with pixels."""
        message = pb.FrameRange(
            first_sequence=frame[0],
            last_sequence=frame[0],
            first_capture=frame[1].to_item_proto(),
            kind=pb.RANGE_KIND_EDGE,
            gate_reason=gate_reason.value,
            edge=edge_answer(seen),
        )
        size = message.ByteSize() + _ITEM_BYTES
        self._append(pb.FrameItem(range=message), (frame[0], frame[0]), size, frame[1], differs=False)
        if self._oldest_edge_ns is None:
            self._oldest_edge_ns = frame[1].monotonic_ns

    def _append(
        self, item: pb.FrameItem, span: tuple[int, int], size: int, capture: Moment, *, differs: bool
    ) -> None:
        first, last = span
        if self._last_sequence and first != self._last_sequence + 1:
            raise ValueError(f"frame {first} follows where {self._last_sequence + 1} should")
        if differs or self._bytes + size > self._max_bytes or len(self._items) >= self._max_items:
            self._seal()
        self._items.append(item)
        self._bytes += size
        self._last_sequence = last
        if self._oldest_ns is None:
            self._oldest_ns = capture.monotonic_ns

    def take(
        self, now: Moment, clock: pb.ClockEstimate | None = None, traceparent: str = "", *, end: bool = False
    ) -> list[pb.FrameEnvelope]:
        """The envelopes that are due at `now`, oldest first; with `end`, everything."""
        looked = min(self._oldest_unit_ns or _NEVER_NS, self._oldest_edge_ns or _NEVER_NS)
        unit_due = self._at_once or now.monotonic_ns - looked >= self._batch_ns
        beat_due = self._oldest_ns is not None and now.monotonic_ns - self._oldest_ns >= self._heartbeat_ns
        if self._items and (unit_due or beat_due or end):
            held = None if beat_due or end else self._hold_back()
            self._seal()
            if held is not None:
                self._items, self._bytes = [held], _ITEM_BYTES
                self._last_sequence = held.range.last_sequence
                self._oldest_ns = held.range.first_capture.monotonic_ns
        taken, self._ready = self._ready, []
        for envelope in taken:
            envelope.published.CopyFrom(now.to_proto())
            envelope.traceparent = traceparent
            if clock is not None:
                envelope.clock.CopyFrom(clock)
        return taken

    def _hold_back(self) -> pb.FrameItem | None:
        """Skipped frames at the end: only the next picture can answer them, so they travel with it."""
        last = self._items[-1]
        if len(self._items) > 1 and last.HasField("range") and last.range.kind == pb.RANGE_KIND_SKIPPED:
            return self._items.pop()
        return None

    def _seal(self) -> None:
        who = self._identity
        _leave_out_times(self._items)
        # Who saw what is only to be compared, the cloud need not know.
        answered_here = any(item.range.HasField("edge") for item in self._items)
        envelope = pb.FrameEnvelope(
            schema_major=SCHEMA_MAJOR,
            tenant=who.tenant,
            site=who.site,
            device=who.device,
            camera=who.camera,
            epoch=who.epoch.to_proto(),
            items=self._items,
            edge_model=who.edge_model if answered_here else None,
            planned_for_model=who.planned_for_model,
            lane=pb.LANE_LIVE,
            rung=self._rung,
            previous_sequence=self._previous,
            deadline_ns=who.deadline_ns,
            in_order=who.in_order,
        )
        if self._oldest_unit_ns is not None:
            envelope.format.CopyFrom(self._format)
        self._previous = last_sequence(envelope)
        self._ready.append(envelope)
        self._clear()


def _leave_out_times(items: list[pb.FrameItem]) -> None:
    """Skipped frames between two that were looked at count as evenly spaced: their times need not travel."""
    for before, item, after in zip(items, items[1:], items[2:], strict=False):
        between = capture_of_one(before) is not None and capture_of_one(after) is not None
        if between and item.HasField("range") and item.range.kind == pb.RANGE_KIND_SKIPPED:
            item.range.ClearField("first_capture")
            item.range.ClearField("last_capture")


def edge_answer(detections: Detections) -> pb.EdgeAnswer:
    """What the edge model saw, for the wire."""
    return pb.EdgeAnswer(detections=detections.to_proto())


def as_dropped(envelope: pb.FrameEnvelope, reason: str) -> pb.FrameEnvelope:
    """The same frames answered as dropped: what is sent in place of an envelope that cannot be delivered."""
    first, last = envelope.items[0], envelope.items[-1]
    dropped = pb.FrameEnvelope()
    dropped.CopyFrom(envelope)
    del dropped.items[:]
    dropped.ClearField("format")
    span = pb.FrameRange(
        first_sequence=first_sequence(envelope),
        last_sequence=last_sequence(envelope),
        first_capture=first.access_unit.capture
        if first.HasField("access_unit")
        else first.range.first_capture,
        last_capture=capture_of_one(last) or last.range.last_capture,
        kind=pb.RANGE_KIND_DROPPED,
        reason=reason,
    )
    dropped.items.append(pb.FrameItem(range=span))
    return dropped
