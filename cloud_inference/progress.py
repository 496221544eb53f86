"""What of a camera is answered, and what its next owner needs to go on: the checkpoint, as it grows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Final

from cloud_inference.answered import Answered, EpochKey
from cloud_inference.consume import Lane, Source, Work
from eyeline.v1 import frame_pb2, result_pb2

# No chain is longer; one that was not heard of for so long pins no pixels.
_CHAIN_NS: Final = 15 * 60 * 1_000_000_000


class _LaneState:
    """The open chain of one lane, as answered: what the next owner needs."""

    def __init__(self, stored: result_pb2.LaneCheckpoint) -> None:
        self.stored = stored
        self.heard_ns = time.time_ns()


class Progress:
    """Begins where a stored checkpoint ends."""

    def __init__(self, stored: result_pb2.Checkpoint, worker: str) -> None:
        self._worker = worker
        self._answered = Answered(stored.answered)
        self._track_ids = itertools.count(max(1, stored.next_track_id))
        self._next_track_id = max(1, stored.next_track_id)
        self._lanes = {lane.lane: _LaneState(lane) for lane in stored.lanes}
        self._answered_to = stored.frame_stream_sequence

    def take_track_id(self) -> int:
        """A new one."""
        taken = next(self._track_ids)
        self._next_track_id = taken + 1
        return taken

    def is_open(self, work: Work) -> bool:
        """Whether no frame of it has a final answer."""
        return self._answered.missing(work.source.key, work.first, work.last) == [(work.first, work.last)]

    def answered_through(self, sequence: int) -> None:
        """Every message up to this one is answered in full."""
        self._answered_to = max(self._answered_to, sequence)

    def note(self, work: Work) -> None:
        """Frames are answered."""
        source = work.source
        self._answered.add(source.key, work.first, work.last)
        state = self._lanes.get(source.lane)
        if state is None or _lane_key(state.stored) != source.key[1:]:
            stored = result_pb2.LaneCheckpoint(lane=source.lane, epoch=source.envelope.epoch)
            state = self._lanes[source.lane] = _LaneState(stored)
        state.stored.last_sequence = max(state.stored.last_sequence, work.last)
        state.heard_ns = time.time_ns()
        if work.unit is not None:
            state.stored.chain_id = work.unit.chain_id
            state.stored.keyframe_stream_sequence = work.keyframe_at

    def hand_over(self, source: Source, lane: Lane, *, results_to: int, busy: bool) -> None:
        """The overtaken lane is to go on with the chain of the live one, which will leave it behind.

        results_to: stream sequence of the newest results. busy: whether it is not through with an earlier
        one, which it needs until then.
        """
        before = self._lanes.get(frame_pb2.LANE_OVERTAKEN)
        if busy and before is not None and before.stored.keyframe_stream_sequence:
            return
        if before is not None and before.stored.results_stream_sequence:
            # A former owner was not through with it.
            results_to = before.stored.results_stream_sequence
        stored = result_pb2.LaneCheckpoint(
            lane=frame_pb2.LANE_OVERTAKEN,
            epoch=source.envelope.epoch,
            chain_id=lane.chain_id,
            keyframe_stream_sequence=lane.keyframe_at,
            results_stream_sequence=results_to,
        )
        self._lanes[frame_pb2.LANE_OVERTAKEN] = _LaneState(stored)

    def caught_up(self) -> None:
        """All that a newer picture overtook is answered."""
        overtaken = self._lanes.get(frame_pb2.LANE_OVERTAKEN)
        if overtaken is not None:
            overtaken.stored.results_stream_sequence = 0

    def checkpoint(self) -> result_pb2.Checkpoint:
        """As it is stored with each batch of results."""
        return result_pb2.Checkpoint(
            answered=self._answered.to_proto(),
            lanes=[state.stored for state in self._lanes.values()],
            frame_stream_sequence=self._answered_to,
            next_track_id=self._next_track_id,
            worker=self._worker,
        )

    def keep_from(self, *, overtaken: bool = False) -> int:
        """The oldest message that a new owner would need. overtaken: whether messages are put off."""
        oldest = time.time_ns() - _CHAIN_NS
        open_chains = [
            state.stored.keyframe_stream_sequence
            for state in self._lanes.values()
            if state.stored.keyframe_stream_sequence and (overtaken or state.heard_ns > oldest)
        ]
        return min([*open_chains, self._answered_to + 1])


def stored_lanes(
    checkpoint: result_pb2.Checkpoint,
) -> Iterator[tuple[frame_pb2.Lane.ValueType, EpochKey, result_pb2.LaneCheckpoint]]:
    """Each lane, the run that it is in and where it stands."""
    devices = {(e.epoch.counter, e.epoch.random_id): e.device for e in checkpoint.answered}
    for lane in checkpoint.lanes:
        yield lane.lane, (devices.get(_lane_key(lane), ""), *_lane_key(lane)), lane


def _lane_key(stored: result_pb2.LaneCheckpoint) -> tuple[int, bytes]:
    return stored.epoch.counter, stored.epoch.random_id
