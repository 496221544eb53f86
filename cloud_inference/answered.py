"""Which frames have a final answer: sets of sequences, kept as intervals."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from eyeline.v1 import frame_pb2, result_pb2

# Of one device; a frame of an epoch further back counts as answered.
_EPOCHS_KEPT = 8


class Intervals:
    """A set of integers as ascending, disjoint, non-adjacent ranges, both ends included."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._first, self._last, strict=True)

    def __contains__(self, value: int) -> bool:
        at = bisect_right(self._first, value) - 1
        return at >= 0 and value <= self._last[at]

    @property
    def highest(self) -> int:
        """The largest member; 0 when empty."""
        return self._last[-1] if self._last else 0

    def add(self, first: int, last: int) -> None:
        """Add `first` to `last`."""
        low = bisect_left(self._last, first - 1)
        high = bisect_right(self._first, last + 1)
        if low < high:
            first, last = min(first, self._first[low]), max(last, self._last[high - 1])
        self._first[low:high] = [first]
        self._last[low:high] = [last]

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """What of `first` to `last` is not in the set, ascending."""
        gaps = []
        at = bisect_left(self._last, first)
        while first <= last:
            if at == len(self._first) or self._first[at] > last:
                gaps.append((first, last))
                break
            if self._first[at] > first:
                gaps.append((first, self._first[at] - 1))
            first = self._last[at] + 1
            at += 1
        return gaps


EpochKey = tuple[str, int, bytes]


def epoch_key(device: str, epoch: frame_pb2.Epoch) -> EpochKey:
    """Identifies one run of one agent."""
    return device, epoch.counter, epoch.random_id


class Answered:
    """The answered frames of one camera, by device and epoch."""

    def __init__(self, epochs: Iterable[result_pb2.AnsweredEpoch] = ()) -> None:
        self._epochs: dict[EpochKey, Intervals] = {
            epoch_key(entry.device, entry.epoch): Intervals((r.first, r.last) for r in entry.ranges)
            for entry in epochs
        }

    def add(self, key: EpochKey, first: int, last: int) -> None:
        """Mark frames as answered."""
        if key not in self._epochs:
            self._epochs[key] = Intervals()
            mine = sorted((k for k in self._epochs if k[0] == key[0]), key=lambda k: (k[1], k[2]))
            for forgotten in mine[:-_EPOCHS_KEPT]:
                del self._epochs[forgotten]
        if key in self._epochs:
            self._epochs[key].add(first, last)

    def missing(self, key: EpochKey, first: int, last: int) -> list[tuple[int, int]]:
        """What of `first` to `last` has no answer yet."""
        known = self._epochs.get(key)
        if known is not None:
            return known.missing(first, last)
        mine = [k[1] for k in self._epochs if k[0] == key[0]]
        if len(mine) >= _EPOCHS_KEPT and key[1] < min(mine):
            return []
        return [(first, last)]

    def to_proto(self) -> list[result_pb2.AnsweredEpoch]:
        """For a checkpoint, oldest epoch first."""
        return [
            result_pb2.AnsweredEpoch(
                device=device,
                epoch=frame_pb2.Epoch(counter=counter, random_id=random_id),
                ranges=[result_pb2.SequenceRange(first=first, last=last) for first, last in intervals],
            )
            for (device, counter, random_id), intervals in sorted(
                self._epochs.items(), key=lambda e: e[0][1:]
            )
        ]
