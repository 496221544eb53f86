"""Joining detections over time: SORT, from the similari library, with track ids of our own.

Bewley et al., "Simple Online and Realtime Tracking", ICIP 2016. Our ids survive a change of worker: the new
owner replays stored answers, and each track goes on under the id that was stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from similari import BoundingBox, PositionalMetricType, Sort

from eyeline.values import Detections

_MIN_IOU = 0.2
_MAX_IDLE = 10


class Tracks:
    """Trackers of all cameras of a process share one engine and its threads."""

    def __init__(self) -> None:
        self._engine = Sort(
            shards=1,
            bbox_history=1,
            max_idle_epochs=_MAX_IDLE,
            method=PositionalMetricType.iou(threshold=_MIN_IOU),
            min_confidence=0.01,
        )
        self._scenes = itertools.count(1)
        self._updates = 0

    def new(self, next_id: Callable[[], int]) -> Tracker:
        """A tracker for one camera's lane; `next_id` gives track ids."""
        return Tracker(self, next_id)

    def scene(self) -> int:
        """A scene that nobody used yet."""
        return next(self._scenes)

    def predict(self, scene: int, detections: Detections, rows: list[int]) -> list[tuple[int, int]]:
        """Row and engine id of each detection."""
        self._updates += 1
        if self._updates % 1000 == 0:
            self._engine.clear_wasted()
        if not rows:
            self._engine.skip_epochs_for_scene(scene, 1)
            return []
        boxes = []
        for row in rows:
            x1, y1, x2, y2 = detections.boxes[row].tolist()
            size = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
            score = min(max(float(detections.scores[row]), 0.02), 1.0)
            boxes.append((BoundingBox.new_with_confidence(x1, y1, *size, score).as_xyaah(), row))
        return [(track.custom_object_id, track.id) for track in self._engine.predict_with_scene(scene, boxes)]


class Tracker:
    """One lane's tracks. Classes are tracked apart, by name: a person never becomes a car."""

    def __init__(self, tracks: Tracks, next_id: Callable[[], int]) -> None:
        self._tracks, self._next_id = tracks, next_id
        self._scenes: dict[str, int] = {}
        self._ids: dict[int, int] = {}

    def update(self, detections: Detections) -> Detections:
        """The same detections with track ids."""
        ids = [0] * len(detections)
        for row, engine_id in self._assign(detections):
            ids[row] = self._ids.get(engine_id) or self._ids.setdefault(engine_id, self._next_id())
        self._forget()
        return detections.with_tracks(ids)

    def replay(self, detections: Detections) -> None:
        """Take over tracks from a stored answer, ids included."""
        for row, engine_id in self._assign(detections):
            stored = int(detections.track_ids[row])
            if stored:
                self._ids[engine_id] = stored

    def _assign(self, detections: Detections) -> list[tuple[int, int]]:
        classes = detections.class_names
        for name in classes:
            if name not in self._scenes:
                self._scenes[name] = self._tracks.scene()
        found = []
        for name, scene in self._scenes.items():
            rows = [row for row, other in enumerate(classes) if other == name]
            found += self._tracks.predict(scene, detections, rows)
        return found

    def _forget(self) -> None:
        if len(self._ids) > 4096:
            newest = sorted(self._ids)[-2048:]
            self._ids = {engine_id: self._ids[engine_id] for engine_id in newest}
