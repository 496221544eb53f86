import itertools

from hypothesis import given
from hypothesis import strategies as st

from cloud_inference.answered import Answered, Intervals
from eyeline.v1 import frame_pb2

RANGES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1])), max_size=12
)


@given(RANGES, st.integers(1, 60), st.integers(0, 20))
def test_intervals_are_the_set_they_stand_for(ranges: list[tuple[int, int]], first: int, length: int) -> None:
    intervals = Intervals(ranges)
    members = {value for low, high in ranges for value in range(low, high + 1)}
    assert {value for low, high in intervals for value in range(low, high + 1)} == members
    kept = list(intervals)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(kept)), "disjoint and not adjacent"
    missing = {
        value for low, high in intervals.missing(first, first + length) for value in range(low, high + 1)
    }
    assert missing == set(range(first, first + length + 1)) - members
    assert all((value in intervals) == (value in members) for value in range(80))
    assert intervals.highest == max(members, default=0)


def key(counter: int) -> tuple[str, int, bytes]:
    return "device", counter, b"12345678"


def test_what_is_stored_comes_back() -> None:
    answered = Answered()
    answered.add(key(2), 5, 9)
    answered.add(key(1), 1, 3)
    again = Answered(answered.to_proto())
    assert again.missing(key(2), 1, 12) == [(1, 4), (10, 12)]
    assert again.missing(key(1), 1, 4) == [(4, 4)]
    assert again.missing(("other", 1, b"12345678"), 1, 4) == [(1, 4)]
    assert [entry.epoch for entry in again.to_proto()] == [
        frame_pb2.Epoch(counter=1, random_id=b"12345678"),
        frame_pb2.Epoch(counter=2, random_id=b"12345678"),
    ]


def test_epochs_long_past_count_as_answered() -> None:
    answered = Answered()
    for counter in range(1, 21):
        answered.add(key(counter), 1, 10)
    assert answered.missing(key(3), 1, 99) == []
    assert answered.missing(key(20), 1, 12) == [(11, 12)]
    assert answered.missing(key(21), 1, 2) == [(1, 2)]
