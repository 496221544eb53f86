"""Answers between two pictures: who was seen on one side only goes on as before, and comes as it goes on."""

from __future__ import annotations

import pytest

from cloud_inference.consume import restore_times
from cloud_inference.propagate import extrapolate, interpolate
from eyeline.v1 import frame_pb2
from eyeline.values import Detections


def people(**lefts: float) -> Detections:
    """By track id, as `t1=10.0`."""
    boxes = [[left, 20, left + 40, 100] for left in lefts.values()]
    ids = [int(name[1:]) for name in lefts]
    count = len(boxes)
    return Detections.build(boxes, [0.9] * count, [0] * count, ["person"] * count, ids)


def lefts(found: Detections) -> dict[int, float]:
    return {int(t): float(box[0]) for t, box in zip(found.track_ids, found.boxes, strict=True)}


def test_who_leaves_goes_on_until_the_middle() -> None:
    earlier, before, after = people(t1=0, t2=100), people(t1=10, t2=110), people(t1=20)
    foretold = extrapolate(earlier, before, 0.4, (640, 480))
    assert lefts(interpolate(before, after, 0.4, foretold)) == pytest.approx({1: 14, 2: 114})
    assert lefts(interpolate(before, after, 0.6, foretold)) == pytest.approx({1: 16})


def test_who_comes_is_traced_back_to_the_middle() -> None:
    before, after, beyond = people(t1=10), people(t1=20, t3=200), people(t1=30, t3=220)
    back = extrapolate(beyond, after, 0.4, (640, 480))
    assert lefts(interpolate(before, after, 0.6, None, back)) == pytest.approx({1: 16, 3: 192})
    assert lefts(interpolate(before, after, 0.4, None, back)) == pytest.approx({1: 14})


def test_times_that_did_not_travel_are_evenly_spaced() -> None:
    def unit(sequence: int, at_ns: int) -> frame_pb2.FrameItem:
        capture = frame_pb2.CaptureTime(monotonic_ns=at_ns)
        return frame_pb2.FrameItem(access_unit=frame_pb2.AccessUnit(sequence=sequence, capture=capture))

    between = frame_pb2.FrameRange(first_sequence=2, last_sequence=4, kind=frame_pb2.RANGE_KIND_SKIPPED)
    envelope = frame_pb2.FrameEnvelope(
        items=[unit(1, 1000), frame_pb2.FrameItem(range=between), unit(5, 1400)]
    )
    restore_times(envelope)
    times = envelope.items[1].range
    assert (times.first_capture.monotonic_ns, times.last_capture.monotonic_ns) == (1100, 1300)
