"""Tracks across pauses: a walker seen twice a second stays one person."""

from __future__ import annotations

import itertools

from cloud_inference.track import Tracker, Tracks
from eyeline.values import Detections


def tracker() -> Tracker:
    ids = itertools.count(1)
    return Tracks().new(lambda: next(ids))


def people(*lefts: float, name: str = "person", width: float = 20) -> Detections:
    boxes = [[left, 50, left + width, 110] for left in lefts]
    return Detections.build(boxes, [0.9] * len(boxes), [0] * len(boxes), [name] * len(boxes))


def test_someone_who_walked_on_beyond_overlap_is_the_same_person() -> None:
    ours = tracker()
    ids = [ours.update(people(10 + 25 * step), 1 + 5 * step).track_ids.tolist() for step in range(6)]
    assert ids == [[1]] * 6


def test_two_who_pass_each_other_keep_their_ids() -> None:
    ours = tracker()
    seen = [ours.update(people(10 + 24 * step, 250 - 24 * step), 1 + 5 * step) for step in range(11)]
    assert {tuple(found.track_ids.tolist()) for found in seen} == {(1, 2)}


def test_a_class_or_a_shape_apart_is_another_track() -> None:
    ours = tracker()
    assert ours.update(people(10), 1).track_ids.tolist() == [1]
    assert ours.update(people(10, name="car"), 2).track_ids.tolist() == [2]
    assert ours.update(people(10, width=80), 3).track_ids.tolist() == [3]


def test_a_track_outlives_a_miss_and_no_long_absence() -> None:
    ours = tracker()
    ours.update(people(10), 1)
    ours.update(people(), 2)
    assert ours.update(people(12), 3).track_ids.tolist() == [1]
    for at in range(4, 8):
        ours.update(people(), at)
    assert ours.update(people(12), 8).track_ids.tolist() == [2]


def test_the_nearest_is_taken_whatever_the_order() -> None:
    ours = tracker()
    ours.update(people(100, 130), 1)
    assert ours.update(people(133, 103, 400), 2).track_ids.tolist() == [2, 1, 3]


def test_stored_answers_bring_their_ids() -> None:
    ours = tracker()
    ours.replay(people(10).with_tracks([41]), 1)
    assert ours.update(people(14), 2).track_ids.tolist() == [41]
    ours.replay(people(16).with_tracks([57]), 3)
    assert ours.update(people(18), 4).track_ids.tolist() == [57]
