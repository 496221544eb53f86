"""Zones and lines drawn on a camera's picture: what comes in, what is inside, what crosses.

An object stands where the middle of its box's lower edge is. Detections tremble: a track is out of a zone
again, or across a line, only when it is clear of it by half a per cent of the picture's diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np

from eyeline.v1 import device_pb2, result_pb2

Place = tuple[float, float]
Size = tuple[int, int]

_CLEAR: Final = 0.005
# Tracks that were not seen for so long are forgotten, looked for when there are so many.
_FORGET_NS: Final = 60 * 1_000_000_000
_MANY: Final = 512


@dataclass(slots=True)
class _Seen:
    """One track: the zones it is in, and where it last stood clear of each line."""

    at_ns: int
    inside: dict[str, bool] = field(default_factory=dict)
    clear_of: dict[str, Place] = field(default_factory=dict)


class Counter:
    """One camera's zones and lines. Results go through it in the order in which they are stored."""

    def __init__(self) -> None:
        self._wanted: device_pb2.DesiredCamera | None = None
        self._tracks: dict[int, _Seen] = {}
        self._entered: dict[str, int] = {}
        self._crossed: dict[str, tuple[int, int]] = {}
        self._size: Size = (0, 0)

    def restore(self, stored: result_pb2.Result, wanted: device_pb2.DesiredCamera | None) -> None:
        """Replay a stored final result, oldest first: totals and tracks go on from there."""
        replayed = result_pb2.Result()
        replayed.CopyFrom(stored)
        self.count(replayed, wanted)
        self._entered |= {it.zone: it.entered_total for it in stored.zones}
        self._crossed |= {it.line: (it.forward_total, it.backward_total) for it in stored.lines}

    def count(self, result: result_pb2.Result, wanted: device_pb2.DesiredCamera | None) -> None:
        """Put into the result what happened at what is drawn; nothing into one without an answer."""
        self._draw(wanted)
        del result.zones[:], result.lines[:]
        if result.source_width_px and result.source_height_px:
            self._size = result.source_width_px, result.source_height_px
        if wanted is None or self._size == (0, 0) or result.provenance == result_pb2.PROVENANCE_DEGRADED:
            return
        moment = result.last_captured_ns or result.times.captured_ns
        stands = {
            one.track_id: ((one.box.x1_px + one.box.x2_px) / 2, one.box.y2_px)
            for one in result.detections
            if one.track_id
        }
        for zone in wanted.zones:
            result.zones.append(self._zone(zone, stands, moment))
        for line in wanted.lines:
            result.lines.append(self._line(line, stands, moment))
        if len(self._tracks) > _MANY:
            self._tracks = {
                track: seen for track, seen in self._tracks.items() if seen.at_ns > moment - _FORGET_NS
            }

    def _draw(self, wanted: device_pb2.DesiredCamera | None) -> None:
        """What is drawn now; what was taken away is forgotten."""
        if wanted is self._wanted:
            return
        if self._wanted is not None:
            zones = {it.name for it in wanted.zones} if wanted is not None else set()
            lines = {it.name for it in wanted.lines} if wanted is not None else set()
            self._entered = {name: total for name, total in self._entered.items() if name in zones}
            self._crossed = {name: totals for name, totals in self._crossed.items() if name in lines}
        # Where it is now may be on the other side without any step.
        self._tracks.clear()
        self._wanted = wanted

    def _zone(self, zone: device_pb2.Zone, stands: dict[int, Place], moment: int) -> result_pb2.ZoneCount:
        corners = np.array(self._places(zone.points), np.float32)
        counted = result_pb2.ZoneCount(zone=zone.name)
        for track, place in stands.items():
            seen = self._seen(track, moment)
            depth = cv2.pointPolygonTest(corners, place, True)
            was = seen.inside.get(zone.name)
            now = depth >= 0 or (bool(was) and depth > -self._clear)
            seen.inside[zone.name] = now
            counted.inside += now
            # One that appears inside was not seen to come in.
            counted.entered += now and was is False
            counted.left += was is True and not now
        self._entered[zone.name] = self._entered.get(zone.name, 0) + counted.entered
        counted.entered_total = self._entered[zone.name]
        return counted

    def _line(self, line: device_pb2.Line, stands: dict[int, Place], moment: int) -> result_pb2.LineCount:
        start, end = self._places([line.start, line.end])
        counted = result_pb2.LineCount(line=line.name)
        for track, place in stands.items():
            seen = self._seen(track, moment)
            side = _side(start, end, place)
            if abs(side) < self._clear:
                continue
            before = seen.clear_of.get(line.name)
            seen.clear_of[line.name] = place
            if before is None or _side(start, end, before) * side > 0 or not _meet(start, end, before, place):
                continue
            counted.forward += side > 0
            counted.backward += side < 0
        forward, backward = self._crossed.get(line.name, (0, 0))
        self._crossed[line.name] = forward + counted.forward, backward + counted.backward
        counted.forward_total, counted.backward_total = self._crossed[line.name]
        return counted

    def _seen(self, track: int, moment: int) -> _Seen:
        found = self._tracks.setdefault(track, _Seen(moment))
        found.at_ns = moment
        return found

    def _places(self, points: Sequence[device_pb2.MaskPoint]) -> list[Place]:
        width, height = self._size
        return [(point.x * width, point.y * height) for point in points]

    @property
    def _clear(self) -> float:
        return _CLEAR * math.hypot(*self._size)


def _side(start: Place, end: Place, place: Place) -> float:
    """Distance from a line in pixels: above 0 on its right, looking from start to end (y goes down)."""
    along = end[0] - start[0], end[1] - start[1]
    across = along[0] * (place[1] - start[1]) - along[1] * (place[0] - start[0])
    return across / (math.hypot(*along) or 1.0)


def _meet(start: Place, end: Place, before: Place, after: Place) -> bool:
    """Whether the step from before to after passes between the line's ends; it changes sides."""
    return _side(before, after, start) * _side(before, after, end) <= 0
