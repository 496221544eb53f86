"""COCO JSON (https://cocodataset.org/#format-data): an image a result, an annotation a detection.

Categories are the model's own classes, numbered from 1 (`class_id` + 1): of a COCO model they are the 80
classes in order, not the 91 numbers of the original files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eyeline.exports import frames
from eyeline.moments import format_moment
from eyeline.values import Result


def document(results: Iterable[Result], size: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """The dataset. Results without an answer are left out; size: of frames whose result does not tell it.

    An image is the first frame that a result covers; `frames` says how many it covers. Boxes are x, y, width,
    height in source pixels; `score` and `track_id` are additions of ours that readers pass over.
    """
    ordered, without = frames.answered(frames.in_order(results))
    categories = _Categories()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    known: dict[tuple[str, str], tuple[int, int]] = {}
    for result in ordered:
        if result.source_size[0]:
            known[result.site, result.camera] = result.source_size
    for result in ordered:
        width, height = result.source_size if result.source_size[0] else known.get(_name(result), size)
        frame = f"{result.epoch.counter:06d}-{result.sequence:09d}"
        image = {
            "id": len(images) + 1,
            "file_name": f"{result.site}/{result.camera}/{frame}.jpg",
            "width": width,
            "height": height,
            "date_captured": format_moment(result.captured_ns),
            "camera": f"{result.site}/{result.camera}",
            "sequence": result.sequence,
            "frames": result.frames,
            "provenance": result.provenance.name,
        }
        images.append(image)
        found = result.detections
        for row, (x1, y1, x2, y2) in enumerate(found.boxes.tolist()):
            box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": categories.number(int(found.class_ids[row]), found.class_names[row]),
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "segmentation": [],
                    "score": round(float(found.scores[row]), 4),
                    "track_id": int(found.track_ids[row]),
                }
            )
    return {
        "info": {
            "description": "Answers of Eyeline's cameras",
            "frames_without_answer": without,
            "models": sorted({f"{r.model} {r.model_version}".strip() for r in ordered if r.model}),
        },
        "licenses": [],
        "categories": categories.listed(),
        "images": images,
        "annotations": annotations,
    }


def write(path: Path, results: Iterable[Result]) -> dict[str, int]:
    """Write the dataset; how many images and annotations it has, and frames without an answer."""
    made = document(results)
    frames.write(path, json.dumps(made, separators=(",", ":")))
    return {
        "images": len(made["images"]),
        "annotations": len(made["annotations"]),
        "frames_without_answer": made["info"]["frames_without_answer"],
    }


class _Categories:
    """Numbers for classes: the class id plus one, unless another model's class has that number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str], int] = {}

    def number(self, class_id: int, name: str) -> int:
        key = (class_id, name)
        if key not in self._numbers:
            taken = set(self._numbers.values())
            number = class_id + 1
            while number in taken:
                number = max(taken) + 1
            self._numbers[key] = number
        return self._numbers[key]

    def listed(self) -> list[dict[str, Any]]:
        named = sorted((number, name) for (_, name), number in self._numbers.items())
        return [{"id": number, "name": name, "supercategory": ""} for number, name in named]


def _name(result: Result) -> tuple[str, str]:
    return result.site, result.camera
