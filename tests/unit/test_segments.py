"""The spool's index: chains whole, idle ranges apart, lanes for good."""

from __future__ import annotations

from edge_agent.segments import (
    CameraIndex,
    Entry,
    dropped_envelope,
    entry_from_headers,
    entry_of,
    headers_of,
)
from eyeline.envelope import check_envelope
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch
from tests.support.deliveries import Camera

EPOCH = Epoch(2, b"abcdefgh")


def entry(sequence: int, chain: int | None, *, starts: bool = False, at: float = 0.0) -> Entry:
    return Entry(sequence, EPOCH, sequence, sequence, chain, starts, 10, at)


def spans(index: CameraIndex) -> list[tuple[int | None, int, int, bool]]:
    return [(it.chain, it.first_seq, it.last_seq, it.whole) for it in index.segments]


def test_headers_are_enough() -> None:
    camera = Camera("gate", EPOCH)
    for envelope in (camera.frame(keyframe=True), camera.frame(), camera.idle(7)):
        expected = entry_of(envelope, 5, 100, 1.0)
        assert entry_from_headers(headers_of(envelope), 5, 100, 1.0) == expected


def test_chains_are_segments() -> None:
    index = CameraIndex("gate")
    for it in (entry(1, 1, starts=True), entry(2, 1), entry(3, None), entry(4, 1), entry(5, 2, starts=True)):
        index.append(it)
    assert spans(index) == [(1, 1, 4, True), (2, 5, 5, True)]
    assert (index.messages, index.size) == (5, 50)


def test_rest_of_a_chain_is_not_whole() -> None:
    index = CameraIndex("gate")
    for it in (entry(4, 1), entry(5, 1), entry(6, 2, starts=True)):
        index.append(it)
    assert spans(index) == [(1, 4, 5, False), (2, 6, 6, True)]


def test_long_idle_stands_apart_and_its_chain_goes_on_in_the_same_lane() -> None:
    index = CameraIndex("gate", split_after_s=4)
    index.assign(index.append(entry(1, 1, starts=True, at=0)), pb.LANE_LIVE)
    index.append(entry(2, None, at=3))
    index.append(entry(3, None, at=9))
    index.append(entry(4, 1, at=10))
    assert spans(index) == [(1, 1, 2, True), (None, 3, 3, True), (1, 4, 4, False)]
    assert index.lane_of_chain(index.segments[-1]) == pb.LANE_LIVE


def test_empty_open_segment_takes_what_follows() -> None:
    index = CameraIndex("gate")
    segment = index.append(entry(1, 1, starts=True))
    index.assign(segment, pb.LANE_LIVE)
    index.acknowledged(segment, 1, 1, 1, 10)
    assert index.oldest_unsent() is None
    assert index.append(entry(9, 1, at=50)) is segment
    assert (segment.cursor, segment.next_frame, segment.stored_s, segment.lane) == (9, 9, 50, pb.LANE_LIVE)
    index.acknowledged(segment, 9, 9, 1, 10)
    index.append(entry(10, 2, starts=True))
    assert spans(index) == [(2, 10, 10, True)]


def test_dropped_envelope_is_valid() -> None:
    camera = Camera("gate", EPOCH)
    first, last = camera.frame(keyframe=True), camera.idle(4)
    envelope = dropped_envelope(first, last, "spool_full")
    check_envelope(envelope)
    item = envelope.items[0].range
    assert (item.first_sequence, item.last_sequence, item.reason) == (1, 5, "spool_full")
    assert item.first_capture == first.items[0].access_unit.capture
