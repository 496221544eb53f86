"""Zones and lines: what counts as coming in, being inside, and crossing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from cloud_inference.counting import Counter
from eyeline.v1 import detection_pb2, device_pb2, result_pb2

SIZE = 1000, 500


def point(x: float, y: float) -> device_pb2.MaskPoint:
    return device_pb2.MaskPoint(x=x, y=y)


SQUARE = [point(0.4, 0.2), point(0.6, 0.2), point(0.6, 0.8), point(0.4, 0.8)]
DRAWN = device_pb2.DesiredCamera(
    camera="gate",
    zones=[device_pb2.Zone(name="door", points=SQUARE)],
    # Straight down: its left, looking along it, is the right of the picture.
    lines=[device_pb2.Line(name="kerb", start=point(0.5, 0.1), end=point(0.5, 0.9))],
)
_sequences = itertools.count(1)


def frame(
    *stands: tuple[int, float, float], provenance: int = result_pb2.PROVENANCE_CLOUD
) -> result_pb2.Result:
    """An answer with tracks whose feet are at these places, in pixels of 1000 x 500."""
    sequence = next(_sequences)
    return result_pb2.Result(
        key=result_pb2.FrameKey(sequence=sequence),
        last_sequence=sequence,
        provenance=provenance,  # type: ignore[arg-type]
        source_width_px=SIZE[0],
        source_height_px=SIZE[1],
        times=result_pb2.StageTimes(captured_ns=sequence * 100_000_000),
        detections=[
            detection_pb2.Detection(
                track_id=track,
                class_name="person",
                box=detection_pb2.Box(x1_px=x - 10, x2_px=x + 10, y1_px=y - 50, y2_px=y),
            )
            for track, x, y in stands
        ],
    )


def counted(counter: Counter, frames: Iterable[result_pb2.Result]) -> list[result_pb2.Result]:
    kept = list(frames)
    for one in kept:
        counter.count(one, DRAWN)
    return kept


def walk(track: int, y: float, *xs: float) -> list[result_pb2.Result]:
    return [frame((track, x, y)) for x in xs]


def zone(result: result_pb2.Result) -> tuple[int, int, int, int]:
    (one,) = result.zones
    return one.inside, one.entered, one.left, one.entered_total


def line(result: result_pb2.Result) -> tuple[int, int, int, int]:
    (one,) = result.lines
    return one.forward, one.backward, one.forward_total, one.backward_total


def test_a_walk_through_a_zone() -> None:
    seen = counted(Counter(), walk(1, 250, 350, 390, 410, 500, 590, 650))
    assert [zone(one) for one in seen] == [
        (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 0, 1), (1, 0, 0, 1), (1, 0, 0, 1), (0, 0, 1, 1),
    ]  # fmt: skip


def test_feet_count_not_heads() -> None:
    """The middle of the box's lower edge is where it stands: its head alone is not inside."""
    assert zone(counted(Counter(), walk(1, 440, 300, 500))[-1])[0] == 0


def test_what_appears_inside_did_not_come_in() -> None:
    seen = counted(Counter(), walk(1, 250, 500, 520))
    assert [zone(one) for one in seen] == [(1, 0, 0, 0), (1, 0, 0, 0)]


def test_trembling_at_an_edge_counts_once() -> None:
    seen = counted(Counter(), walk(1, 250, 380, 402, 398, 402, 398, 401))
    assert [zone(one)[1:3] for one in seen] == [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0), (0, 0)]
    assert seen[-1].zones[0].entered_total == 1


def test_crossing_a_line_each_way() -> None:
    counter = Counter()
    there = counted(counter, walk(1, 250, 600, 560, 503, 499, 440))
    assert [line(one)[:2] for one in there] == [(0, 0), (0, 0), (0, 0), (0, 0), (1, 0)]
    back = counted(counter, walk(1, 250, 460, 540))
    assert line(back[-1]) == (0, 1, 1, 1)


def test_past_the_end_of_a_line_is_not_across_it() -> None:
    """Above its upper end, then down on the other side: nothing was crossed."""
    seen = counted(
        Counter(), [frame((1, 600, 60)), frame((1, 600, 30)), frame((1, 400, 30)), frame((1, 400, 300))]
    )
    assert line(seen[-1]) == (0, 0, 0, 0)


def test_each_track_counts() -> None:
    """Several at once, and a detection without a track not at all."""
    counter = Counter()
    counted(counter, [frame((1, 300, 250), (2, 300, 300), (0, 300, 320))])
    (seen,) = counted(counter, [frame((1, 450, 250), (2, 450, 300), (0, 450, 320))])
    assert zone(seen) == (2, 2, 0, 2)


def test_an_answer_that_says_nothing_counts_nothing() -> None:
    """DEGRADED is not "nobody there": tracks go on behind it."""
    counter = Counter()
    counted(counter, walk(1, 250, 390))
    (nothing,) = counted(counter, [frame(provenance=result_pb2.PROVENANCE_DEGRADED)])
    assert not nothing.zones
    assert not nothing.lines
    assert zone(counted(counter, walk(1, 250, 450))[0]) == (1, 1, 0, 1)


def test_a_new_owner_goes_on_where_the_last_one_stopped() -> None:
    """Totals come from the stored results, and tracks too: nothing is counted twice, nothing forgotten."""
    first = Counter()
    stored = counted(first, [*walk(1, 250, 350, 450), *walk(2, 250, 350, 450), *walk(3, 250, 390)])
    second = Counter()
    for one in stored[2:]:  # the last seconds alone
        second.restore(one, DRAWN)
    (seen,) = counted(second, [frame((2, 460, 250), (3, 450, 250))])
    assert zone(seen) == (2, 1, 0, 3)
    assert [one.zones[0].entered_total for one in stored] == [0, 1, 1, 2, 2]  # untouched


def test_what_is_drawn_anew_starts_at_nothing() -> None:
    counter = Counter()
    counted(counter, walk(1, 250, 350, 450))
    other = device_pb2.DesiredCamera(zones=[device_pb2.Zone(name="gate", points=SQUARE)], lines=DRAWN.lines)
    moved = frame((1, 700, 250))
    counter.count(moved, other)
    assert [it.zone for it in moved.zones] == ["gate"]
    assert zone(moved) == (0, 0, 0, 0)
    gone = frame((1, 700, 250))
    counter.count(gone, None)
    assert not gone.zones
    assert not gone.lines


def test_forgotten_tracks_take_no_memory() -> None:
    counter = Counter()
    for track in range(1, 5000):
        counted(counter, walk(track, 250, 300))
    assert len(counter._tracks) < 1000
