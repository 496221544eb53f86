"""From work to results, in order within each lane: one final result for each frame, with its provenance.

No I/O: the camera appends work with pictures on the way to the model, and collects what can be answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cloud_inference.consume import MAX_FILLED, Kind, Source, Work, part_way
from cloud_inference.infer import DEADLINE
from cloud_inference.propagate import extrapolate, interpolate
from cloud_inference.track import Tracker, Tracks
from eyeline.capture_time import on_hub
from eyeline.v1 import detection_pb2, frame_pb2, result_pb2
from eyeline.values import Detections

# Provisional results count up from 1, below this.
FINAL_REVISION = 1000
NO_REFERENCE = "no_reference"
# One batch of results stays well under the broker's largest message.
_MAX_OBJECTS = 4000
# A prediction further than this from what was seen is no better than the last sight.
_MAX_STEPS = 2.0


@dataclass(slots=True)
class Seen:
    """What a model saw, in source pixels, and when each stage was passed (nanoseconds)."""

    detections: Detections
    decoded_ns: int
    infer_start_ns: int
    infer_end_ns: int
    # Which one it was, if not the one that answers as a rule.
    model: detection_pb2.ModelRef | None = None


@dataclass(slots=True)
class Pending:
    """Work on its way. `outcome` is None until it can be answered: `Seen`, or the reason why not."""

    work: Work
    arrived_s: float
    outcome: Seen | str | None = None
    tracked: Detections | None = None


@dataclass(frozen=True, slots=True)
class _Standing:
    """The answer that holds until the next one; `reason` says why there is none to trust."""

    sequence: int
    detections: Detections
    model: detection_pb2.ModelRef
    reason: str = ""


@dataclass(slots=True)
class _Lane:
    tracker: Tracker
    key: object = None
    standing: _Standing | None = None
    before: _Standing | None = None
    # The last frame answered in it.
    reached: int = 0


@dataclass(slots=True)
class Collected:
    """Results in order, and the work they finish (with ENDs), for the checkpoint."""

    results: list[result_pb2.Result] = field(default_factory=list)
    done: list[Work] = field(default_factory=list)


class Answers:
    """Answers one camera's work, in the order it was appended to each lane; the live lane first.

    is_late: whether an answer for this work now comes later than its user wants.
    """

    def __init__(
        self,
        *,
        tracks: Tracks,
        next_track_id: Callable[[], int],
        model: detection_pb2.ModelRef,
        mode: Literal["causal", "smooth"] = "smooth",
        smooth_wait_s: float = 2.0,
        is_late: Callable[[Work], bool] = lambda work: work.source.late,
    ) -> None:
        self._tracks, self._next_track_id = tracks, next_track_id
        self._model, self._mode, self._smooth_wait_s = model, mode, smooth_wait_s
        self._is_late = is_late
        # By lane, the live one first: it waits for nothing of the others.
        self._pending: dict[int, deque[Pending]] = {frame_pb2.LANE_LIVE: deque()}
        self._lanes: dict[int, _Lane] = {}
        # What `collect` was at last.
        self.answering: Work | None = None
        # What stood where a lane left a run, or left frames out: these may come after, in the backlog.
        self._past: deque[tuple[object, _Standing]] = deque(maxlen=64)

    def __len__(self) -> int:
        return sum(len(pending) for pending in self._pending.values())

    def append(self, work: Work, now_s: float) -> Pending:
        """Queue work; the caller sets `outcome` of frames with pixels when it is known."""
        pending = Pending(work, now_s)
        if work.kind is Kind.EDGE:
            pending.outcome = _seen_at_the_edge(work)
        self._pending.setdefault(work.source.lane, deque()).append(pending)
        return pending

    def restore(self, stored: result_pb2.Result, key: object) -> None:
        """Replay a stored final result, oldest first, so that tracks and the standing answer survive."""
        lane = self._lane(stored.lane or frame_pb2.LANE_LIVE, key)
        self._leave_out(lane, stored.key.sequence)
        lane.reached = stored.last_sequence
        detections = Detections.from_proto(stored.detections)
        if stored.provenance in {result_pb2.PROVENANCE_CLOUD, result_pb2.PROVENANCE_EDGE}:
            lane.tracker.replay(detections, stored.last_sequence)
        if stored.provenance == result_pb2.PROVENANCE_PROPAGATED and lane.standing is None:
            # Of an idle camera there may be no newer sight than what was held here.
            self._stand(lane, _Standing(stored.last_sequence, detections, stored.model))
        elif stored.provenance in {result_pb2.PROVENANCE_CLOUD, result_pb2.PROVENANCE_EDGE}:
            self._stand(lane, _Standing(stored.last_sequence, detections, stored.model))
        elif stored.provenance == result_pb2.PROVENANCE_DEGRADED:
            self._stand(lane, _Standing(stored.last_sequence, detections, stored.model, stored.reason))

    def rejoin(self) -> None:
        """The live lane goes on where the overtaken one ended: with its tracks."""
        overtaken = self._lanes.get(frame_pb2.LANE_OVERTAKEN)
        if overtaken is not None and not self._pending[frame_pb2.LANE_LIVE]:
            self._lanes[frame_pb2.LANE_LIVE] = self._lanes.pop(frame_pb2.LANE_OVERTAKEN)

    def oldest_unseen(self, lane: int) -> Work | None:
        """The oldest frame of a lane with pixels that the model has not answered yet."""
        return next(
            (
                it.work
                for it in self._pending.get(lane, ())
                if it.work.kind is Kind.PIXELS and it.outcome is None
            ),
            None,
        )

    def wait_s(self, now_s: float) -> float | None:
        """When to collect again though nothing comes; None when only news can help.

        Skipped frames wait for a next picture no longer than this; one that is with the model is waited for.
        """
        waits = [
            max(0.0, head.arrived_s + self._smooth_wait_s - now_s)
            for pending in self._pending.values()
            if (head := pending[0] if pending else None) is not None
            and head.work.kind is Kind.SKIPPED
            and self._next_decisive(head) is None
        ]
        return min(waits, default=None)

    def collect(self, now_s: float, most: int = 300) -> Collected:
        """Take off what can be answered now, about `most` results."""
        out = Collected()
        objects = 0
        for pending in self._pending.values():
            while pending and len(out.results) < most and objects < _MAX_OBJECTS:
                head = pending[0]
                self.answering = head.work
                results = self._answer(head, now_s)
                if results is None:
                    break
                pending.popleft()
                if results:
                    self._lanes[head.work.source.lane].reached = head.work.last
                out.results += results
                objects += sum(len(result.detections) for result in results)
                out.done.append(head.work)
        return out

    def _answer(self, head: Pending, now_s: float) -> list[result_pb2.Result] | None:
        work = head.work
        if work.kind is Kind.END or (work.kind is Kind.PIXELS and not work.wanted):
            return []
        lane = self._lane(work.source.lane, work.source.key)
        self._leave_out(lane, work.first)
        if work.kind is Kind.PIXELS:
            return self._seen(lane, head)
        if isinstance(head.outcome, Seen):
            tracked = self._track(lane, head, head.outcome)
            model = work.source.envelope.edge_model
            self._stand(lane, _Standing(work.last, tracked, model))
            return [self._result(work, result_pb2.PROVENANCE_EDGE, tracked, model)]
        if work.kind is Kind.DROPPED or work.kind is Kind.EDGE:
            return [self._degraded(work, work.reason)]
        standing = self._standing_for(lane, work)
        if standing is None or standing.reason:
            return [self._degraded(work, standing.reason if standing else NO_REFERENCE)]
        if work.kind is Kind.SKIPPED:
            return self._skipped(lane, standing, head, now_s)
        return [self._held(work, standing)]

    def _seen(self, lane: _Lane, head: Pending) -> list[result_pb2.Result] | None:
        work, outcome = head.work, head.outcome
        if outcome is None:
            return None
        if isinstance(outcome, str):
            self._stand(lane, _Standing(work.last, Detections.empty(), self._model, outcome))
            given_up = self._degraded(work, outcome)
            # As it was when it was given up: the hub's time is an estimate, and may be an earlier one by now.
            given_up.late = given_up.late or outcome == DEADLINE
            return [given_up]
        tracked = self._track(lane, head, outcome)
        model = outcome.model or self._model
        self._stand(lane, _Standing(work.last, tracked, model))
        result = self._result(work, result_pb2.PROVENANCE_CLOUD, tracked, model)
        result.times.decoded_ns = outcome.decoded_ns
        result.times.infer_start_ns = outcome.infer_start_ns
        result.times.infer_end_ns = outcome.infer_end_ns
        result.coded_bytes = len(work.unit.data) if work.unit else 0
        return [result]

    def _track(self, lane: _Lane, head: Pending, seen: Seen) -> Detections:
        if head.tracked is None:
            head.tracked = lane.tracker.update(seen.detections, head.work.last)
        return head.tracked

    def _skipped(
        self, lane: _Lane, standing: _Standing, head: Pending, now_s: float
    ) -> list[result_pb2.Result] | None:
        work = head.work
        frames = work.last - work.first + 1
        if frames > MAX_FILLED or frames * len(standing.detections) > _MAX_OBJECTS:
            return [self._held(work, standing)]
        if standing.sequence >= work.first:
            # Late, behind what was answered already: there is nothing to lie between.
            return [self._held(work, standing)]
        if self._mode == "causal":
            return self._fill(work, standing, lambda s: self._predicted(lane, standing, work, s))
        after = self._next_decisive(head)
        if after is None and now_s - head.arrived_s < self._smooth_wait_s:
            return None
        if after is not None and after.work.kind in {Kind.PIXELS, Kind.EDGE}:
            if after.outcome is None:
                return None
            if isinstance(after.outcome, Seen):
                return self._interpolated(lane, standing, head, after)
        return [self._held(work, standing)]

    def _interpolated(
        self, lane: _Lane, standing: _Standing, head: Pending, after: Pending
    ) -> list[result_pb2.Result]:
        work, end = head.work, after.work.first
        assert isinstance(after.outcome, Seen)  # noqa: S101  # the caller looked
        tracked = self._track(lane, after, after.outcome)
        # Of the picture after the next one, what is known already: nothing waits for it.
        beyond = self._next_decisive(after)
        following = None
        if beyond is not None and isinstance(beyond.outcome, Seen):
            following = beyond.work.first, self._track(lane, beyond, beyond.outcome)
        size = _source_size(work)

        def at(sequence: int) -> Detections:
            back = None
            if following is not None:
                steps = (end - sequence) / (following[0] - end)
                back = extrapolate(following[1], tracked, min(steps, _MAX_STEPS), size)
            fraction = (sequence - standing.sequence) / (end - standing.sequence)
            foretold = self._predicted(lane, standing, work, sequence)
            return interpolate(standing.detections, tracked, fraction, foretold, back)

        return self._fill(work, standing, at)

    def _next_decisive(self, head: Pending) -> Pending | None:
        """The first work after skipped frames, in their lane, that says what came of the objects."""
        for other in self._pending[head.work.source.lane]:
            same = other.work.source.key == head.work.source.key
            if same and other.work.first > head.work.last and other.work.kind not in {Kind.SKIPPED, Kind.END}:
                return other
        return None

    @staticmethod
    def _predicted(lane: _Lane, standing: _Standing, work: Work, sequence: int) -> Detections:
        before = lane.before
        if before is None or before.reason or before.sequence >= standing.sequence:
            return standing.detections
        steps = (sequence - standing.sequence) / (standing.sequence - before.sequence)
        size = _source_size(work)
        return extrapolate(before.detections, standing.detections, min(steps, _MAX_STEPS), size)

    def _fill(
        self, work: Work, standing: _Standing, at: Callable[[int], Detections]
    ) -> list[result_pb2.Result]:
        return [
            self._result(one, result_pb2.PROVENANCE_PROPAGATED, at(one.first), standing.model)
            for one in _frames(work)
        ]

    def _held(self, work: Work, standing: _Standing) -> result_pb2.Result:
        return self._result(work, result_pb2.PROVENANCE_PROPAGATED, standing.detections, standing.model)

    def _degraded(self, work: Work, reason: str) -> result_pb2.Result:
        result = self._result(work, result_pb2.PROVENANCE_DEGRADED, Detections.empty(), None)
        result.reason = reason
        return result

    def _lane(self, lane: int, key: object) -> _Lane:
        """The lane's state; a new epoch starts afresh."""
        state = self._lanes.get(lane)
        if state is None or state.key != key:
            if state is not None and state.standing is not None:
                self._past.append((state.key, state.standing))
            state = self._lanes[lane] = _Lane(self._tracks.new(self._next_track_id), key)
        return state

    def _leave_out(self, lane: _Lane, first: int) -> None:
        """Remember what stood when a lane goes on behind frames that it left out."""
        if lane.standing is None or not lane.reached or first <= lane.reached + 1:
            return
        left = (lane.key, lane.standing)
        if not self._past or self._past[-1] != left:
            self._past.append(left)

    def _standing_for(self, lane: _Lane, work: Work) -> _Standing | None:
        """The answer that stood before these frames, whichever lane it came in."""
        known = [(other.key, other.standing) for other in self._lanes.values()]
        earlier = [
            standing
            for key, standing in (*known, *self._past)
            if key == lane.key and standing is not None and standing.sequence < work.first
        ]
        return max(earlier, key=lambda it: it.sequence, default=lane.standing)

    @staticmethod
    def _stand(lane: _Lane, standing: _Standing) -> None:
        lane.before, lane.standing = lane.standing, standing

    def _result(
        self,
        work: Work,
        provenance: result_pb2.Provenance.ValueType,
        detections: Detections,
        model: detection_pb2.ModelRef | None,
    ) -> result_pb2.Result:
        return result_of(work, provenance, detections, model, late=self._is_late(work))


def result_of(
    work: Work,
    provenance: result_pb2.Provenance.ValueType,
    detections: Detections,
    model: detection_pb2.ModelRef | None,
    *,
    late: bool,
) -> result_pb2.Result:
    """The final result for these frames, stage times of the model apart."""
    source, envelope = work.source, work.source.envelope
    return result_pb2.Result(
        key=result_pb2.FrameKey(
            tenant=envelope.tenant,
            site=envelope.site,
            camera=envelope.camera,
            epoch=envelope.epoch,
            sequence=work.first,
        ),
        last_sequence=work.last,
        revision=FINAL_REVISION,
        final=True,
        provenance=provenance,
        model=model,
        detections=detections.to_proto(),
        times=result_pb2.StageTimes(
            captured_ns=on_hub(work.first_capture, envelope),
            published_ns=on_hub(envelope.published, envelope),
            hub_stored_ns=source.stored_ns,
            consumed_ns=source.consumed_ns,
        ),
        last_captured_ns=on_hub(work.last_capture, envelope),
        source_width_px=envelope.format.source_width_px,
        source_height_px=envelope.format.source_height_px,
        clock_uncertainty_ns=envelope.clock.uncertainty_ns,
        gate_reason=work.gate_reason,
        lane=source.lane,
        late=late,
        device=envelope.device,
        traceparent=envelope.traceparent,
    )


def _seen_at_the_edge(work: Work) -> Seen | str:
    if work.edge is None:
        return work.reason
    return Seen(Detections.from_proto(work.edge.detections), 0, 0, 0)


def _source_size(work: Work) -> tuple[int, int]:
    picture = work.source.envelope.format
    return picture.source_width_px, picture.source_height_px


def captured_ns(when: frame_pb2.CaptureTime, source: Source) -> int:
    """When it was by the hub's clock, for deadlines.

    A device that never asked the hub for its time may be wrong by anything: then the frame is as old as it
    was when its envelope was made, which the monotonic clock knows, and as the envelope has become since.
    """
    envelope = source.envelope
    if envelope.clock.uncertainty_ns:
        return on_hub(when, envelope)
    return source.stored_ns - max(0, envelope.published.monotonic_ns - when.monotonic_ns)


def _frames(work: Work) -> list[Work]:
    """A range as single frames, capture times evenly spaced."""
    count = work.last - work.first + 1
    frames = []
    for step in range(count):
        part = step / (count - 1) if count > 1 else 0.0
        when = part_way(work.first_capture, work.last_capture, part)
        sequence = work.first + step
        frames.append(Work(work.kind, work.source, sequence, sequence, when, when, work.gate_reason))
    return frames
