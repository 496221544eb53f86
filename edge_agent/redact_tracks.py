"""What is blurred stays blurred for a while: boxes over time, for when the detector loses somebody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]

# A box belongs to a track when they overlap by so much of the smaller one.
_SAME: Final = 0.3
# A track lives at least for so many looks, however fast or slow the looks come.
_LEAST_LOOKS: Final = 3
# The box of somebody who is not seen grows by this share of its size a second, both ways.
_GROWTH_PER_S: Final = 0.25
_LARGEST_GROWTH: Final = 0.5
# Since the last look people may have gone anywhere: so many of their longer sides a second.
_BLIND_PER_S: Final = 0.6
_LARGEST_BLIND: Final = 0.75
# Nobody goes on in one direction for longer.
_LONGEST_AHEAD_S: Final = 1.0


@dataclass(slots=True)
class _Track:
    box: Boxes
    # Pixels a second, of each side.
    speed: Boxes
    seen_ns: int
    missed: int = 0

    def at(self, now_ns: int) -> Boxes:
        """Where its box should be, as a float32 [4]."""
        ahead_s = min((now_ns - self.seen_ns) / 1e9, _LONGEST_AHEAD_S)
        moved: Boxes = self.box + self.speed * np.float32(ahead_s)
        return moved


class Tracks:
    """Boxes of one camera's looks in order. margin: boxes grow by this share of their size, on every side."""

    def __init__(self, *, margin: float, hold_s: float) -> None:
        self._margin = margin
        self._hold_ns = int(hold_s * 1e9)
        self._tracks: list[_Track] = []
        self._look_ns = 0

    def clear(self) -> None:
        """Forget everybody: the camera shows another picture."""
        self._tracks.clear()

    def look(self, boxes: Boxes, now_ns: int) -> None:
        """Take over what a detector found at a time, float32 [N, 4] in pixels."""
        self._look_ns = now_ns
        free = list(self._tracks)
        for track in free:
            track.missed += 1
        found = []
        for box in boxes:
            shares = [_overlap(box, track.at(now_ns)) for track in free]
            best = int(np.argmax(shares)) if shares else -1
            if best < 0 or shares[best] < _SAME:
                found.append(_Track(box, np.zeros(4, np.float32), now_ns))
                continue
            track = free.pop(best)
            passed_s = (now_ns - track.seen_ns) / 1e9
            if passed_s > 0:
                # Half of the old speed: boxes tremble.
                fresh = (box - track.box) / np.float32(passed_s)
                track.speed = (track.speed + fresh) / np.float32(2)
            track.box, track.seen_ns, track.missed = box, now_ns, 0
        self._tracks = [
            track
            for track in self._tracks
            if track.missed < _LEAST_LOOKS or now_ns - track.seen_ns <= self._hold_ns
        ] + found

    def cover(self, now_ns: int) -> Boxes:
        """What to hide at a time, float32 [M, 4]: where everybody was last seen, and where they should be."""
        covers = []
        blind = min(_BLIND_PER_S * max(0, now_ns - self._look_ns) / 1e9, _LARGEST_BLIND)
        for track in self._tracks:
            passed_s = max(0.0, (now_ns - track.seen_ns) / 1e9)
            ahead = track.at(now_ns)
            both = np.concatenate([np.minimum(track.box, ahead)[:2], np.maximum(track.box, ahead)[2:]])
            size = track.box[2:] - track.box[:2]
            grow = size * np.float32(self._margin + min(_GROWTH_PER_S * passed_s, _LARGEST_GROWTH))
            grow += size.max() * np.float32(blind)
            covers.append(np.concatenate([both[:2] - grow, both[2:] + grow]))
        return np.array(covers, np.float32).reshape(-1, 4)


def _overlap(one: Boxes, two: Boxes) -> float:
    """Shared area by the smaller area."""
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    if (sides <= 0).any():
        return 0.0
    smaller = min(float(np.prod(box[2:] - box[:2])) for box in (one, two))
    return float(np.prod(sides)) / smaller if smaller > 0 else 0.0
