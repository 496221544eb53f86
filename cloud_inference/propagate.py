"""Answers for frames without pixels, derived from the answers beside them."""

from __future__ import annotations

import numpy as np

from eyeline.values import Detections, FloatArray


def interpolate(
    before: Detections,
    after: Detections,
    fraction: float,
    foretold: Detections | None = None,
    traced_back: Detections | None = None,
) -> Detections:
    """Objects `fraction` (0 to 1) of the way from `before` to `after`.

    A track seen on both sides moves linearly; one seen on one side only exists up to the middle, where
    it was last, or from the middle on, where it will be. Untracked objects count as seen on one side.
    foretold: the objects of `before`, row by row, where they would be by now if they went on as they did.
    traced_back: those of `after`, row by row, where they were if they had moved as they did afterwards.
    """
    moved = before if foretold is None else foretold
    rows_after = {int(t): row for row, t in enumerate(after.track_ids) if t}
    keep_before, boxes_before, matched = [], [], set()
    for row, track in enumerate(before.track_ids.tolist()):
        other = rows_after.get(track) if track else None
        if other is not None:
            matched.add(other)
            keep_before.append(row)
            boxes_before.append(before.boxes[row] * (1 - fraction) + after.boxes[other] * fraction)
        elif fraction < 0.5:
            keep_before.append(row)
            boxes_before.append(moved.boxes[row])
    kept = _moved(before.take(np.array(keep_before, int)), boxes_before)
    if fraction < 0.5:
        return kept
    new = [row for row in range(len(after)) if row not in matched]
    return _joined(kept, (after if traced_back is None else traced_back).take(np.array(new, int)))


def extrapolate(before: Detections, last: Detections, steps: float, size: tuple[int, int]) -> Detections:
    """Objects of `last` after `steps` more intervals like that from `before` to `last`, kept in the picture.

    size: width and height of the picture, in pixels. A track without a past stays where it is.
    """
    rows = {int(t): row for row, t in enumerate(before.track_ids) if t}
    limit = np.array([*size, *size], np.float32)
    boxes: list[FloatArray] = []
    for row, track in enumerate(last.track_ids.tolist()):
        box = last.boxes[row]
        past = rows.get(track) if track else None
        if past is not None:
            box = box + (box - before.boxes[past]) * np.float32(steps)
        boxes.append(np.clip(box, 0, limit) if all(size) else box)
    return _moved(last, boxes)


def _moved(detections: Detections, boxes: list[FloatArray]) -> Detections:
    return Detections.build(
        boxes, detections.scores, detections.class_ids, detections.class_names, detections.track_ids
    )


def _joined(one: Detections, two: Detections) -> Detections:
    return Detections.build(
        np.concatenate([one.boxes, two.boxes]),
        np.concatenate([one.scores, two.scores]),
        np.concatenate([one.class_ids, two.class_ids]),
        one.class_names + two.class_names,
        np.concatenate([one.track_ids, two.track_ids]),
    )
