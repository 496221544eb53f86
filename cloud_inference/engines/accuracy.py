"""What a precision costs: its answers against those of the float32 graph, on pictures it has not seen.

Measured in ONNX Runtime on this machine's CPU, with the definitions of `cloud_inference.accuracy`, and
without its optimizations. They would carry float16 in float32 from one operator to the next, so that nothing
seems lost; and its int8 kernels saturate on processors without VNNI, so that much does. As it is, every
result is rounded as on a GPU; within an operator sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import av
import av.error
import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cloud_inference.accuracy import IOU, Bands, Counts, compare, f1_of, iou
from eyeline.errors import ConfigError
from eyeline.values import Detections
from eyeline_models.catalogue import ModelCard, detections

T = TypeVar("T")

_RESAMPLES: Final = 1000
_BLOCKS: Final = 8
_STILLS: Final = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True, slots=True)
class Report:
    """Agreement with the float32 graph: micro-averaged F1 with its 95 % interval over blocks of pictures.

    score_shift: mean difference of the scores of objects that both found. objects: that had to be found.
    """

    precision: str
    pictures: int
    objects: int
    f1: float
    f1_low: float
    f1_high: float
    f1_frame_mean: float
    score_shift: float
    box_iou: float

    @property
    def loss(self) -> float:
        """F1 that is lost against float32, whose own is 1."""
        return 1.0 - self.f1

    def to_json(self) -> dict[str, Any]:
        """For the report file."""
        return asdict(self) | {"loss": round(self.loss, 4)}


def pictures(paths: Sequence[Path], most: int) -> list[NDArray[np.uint8]]:
    """At most so many pictures uint8 [H, W, 3] BGR, evenly spread over images, folders of images and videos.

    Raises `ConfigError` with one line for what cannot be read, and when there are none.
    """
    found: list[NDArray[np.uint8]] = []
    files = [file for path in paths for file in _files(path)]
    stills = [file for file in files if file.suffix.lower() in _STILLS]
    videos = [file for file in files if file not in stills]
    share = max(1, most // (len(videos) + (1 if stills else 0) or 1))
    for file in _spread(stills, share if videos else most):
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if image is None:
            raise ConfigError(f"{file} is not a picture that can be read")
        found.append(image)
    for file in videos:
        found += _spread(list(_frames(file)), share)
    if not found:
        raise ConfigError(f"no pictures in {', '.join(map(str, paths))}")
    return found


def split(
    given: Sequence[NDArray[np.uint8]],
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """To calibrate with, and held out: stretches by turns, so that neighbours in a video stay together."""
    stretch = max(1, len(given) // 8)
    parts = [given[start : start + stretch] for start in range(0, len(given), stretch)]
    if len(parts) < 2:
        raise ConfigError("at least two pictures are needed: some to calibrate with, some held out")
    return [it for part in parts[::2] for it in part], [it for part in parts[1::2] for it in part]


def prepared(card: ModelCard, images: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Each as the graph takes it, uint8 [1, H, W, 3]."""
    for image in images:
        yield card.letterbox(image.shape[1], image.shape[0]).apply(image)[None]


def measure(
    card: ModelCard, reference: bytes, converted: bytes, precision: str, held_out: Sequence[NDArray[np.uint8]]
) -> Report:
    """Run both graphs on the held-out pictures and compare."""
    bands = Bands.of(card)
    counts: list[Counts] = []
    shifts: list[float] = []
    overlaps: list[float] = []
    sessions = [_session(graph) for graph in (reference, converted)]
    for image in held_out:
        ours, theirs = (_answer(session, card, image) for session in sessions)
        counts.append(compare(ours, theirs, bands))
        for shift, overlap in _matched(ours, theirs, bands.must):
            shifts.append(shift)
            overlaps.append(overlap)
    table = np.array([[it.true_positive, it.false_positive, it.missed] for it in counts], float)
    low, high = _interval(table)
    return Report(
        precision=precision,
        pictures=len(counts),
        objects=int(table[:, 0].sum() + table[:, 2].sum()),
        f1=f1_of(*table.sum(0)),
        f1_low=low,
        f1_high=high,
        f1_frame_mean=float(np.mean([it.f1 for it in counts])),
        score_shift=float(np.mean(shifts)) if shifts else 0.0,
        box_iou=float(np.mean(overlaps)) if overlaps else 0.0,
    )


def _interval(table: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of F1, drawing stretches of neighbouring pictures with replacement."""
    blocks = np.array([part.sum(0) for part in np.array_split(table, min(_BLOCKS, len(table)))])
    draws = np.random.default_rng(1).integers(0, len(blocks), (_RESAMPLES, len(blocks)))
    low, high = np.percentile([f1_of(*row) for row in blocks[draws].sum(1)], [2.5, 97.5])
    return float(low), float(high)


def _matched(ours: Detections, theirs: Detections, floor: float) -> Iterator[tuple[float, float]]:
    """Difference of scores and overlap of what both found of one class."""
    overlap = iou(ours.boxes, theirs.boxes)
    if not overlap.size:
        return
    for row in np.flatnonzero(ours.scores >= floor):
        column = int(overlap[row].argmax())
        if overlap[row, column] > IOU and ours.class_names[row] == theirs.class_names[column]:
            yield float(theirs.scores[column] - ours.scores[row]), float(overlap[row, column])


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _answer(session: Any, card: ModelCard, image: NDArray[np.uint8]) -> Detections:
    letterbox = card.letterbox(image.shape[1], image.shape[0])
    boxes, count = session.run(["boxes", "count"], {"images": letterbox.apply(image)[None]})
    return detections(card, boxes[0], int(count[0]), letterbox, thresholds=0.0)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in _STILLS)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    return [path]


def _frames(file: Path) -> Iterator[NDArray[np.uint8]]:
    try:
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="bgr24")
    except (av.error.FFmpegError, OSError, IndexError) as problem:
        raise ConfigError(f"{file} is no picture and no video that can be read: {problem}") from None


def _spread(items: list[T], most: int) -> list[T]:
    if len(items) <= most:
        return items
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, most)]
