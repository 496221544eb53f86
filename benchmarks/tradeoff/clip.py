"""The pictures of a video file as the camera gives them, and the cloud model's answers on them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from benchmarks.score import Bands
from eyeline.errors import ConfigError
from eyeline.values import Detections
from eyeline_models.catalogue import ModelCard, detections
from eyeline_models.runtime import Detector


class Pictures:
    """A clip's first pictures as yuv420p, on disk, so that every run sees exactly the same ones.

    noise: sigma of Gaussian noise added to the red, green and blue of each pixel, in grey levels.
    pan: a window of two thirds of the picture moves to and fro over it, by so many pixels a frame; 0 shows
    all of it, still.
    """

    def __init__(self, path: Path, frames: int | None, noise: float, pan: float = 0.0) -> None:
        """Raises `ConfigError` when the file cannot be read."""
        self.path, self.noise, self.pan = path, noise, pan
        # Removed by the system when this object goes.
        self._file = tempfile.TemporaryFile(prefix="eyeline-tradeoff-")  # noqa: SIM115
        digest = hashlib.sha256(f"noise {noise}{f' pan {pan}' if pan else ''}".encode())
        count = 0
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or stream.guessed_rate or 0)
                for shown in container.decode(stream):
                    if count == frames:
                        break
                    shown = self._as_captured(shown, count)  # noqa: PLW2901
                    data = _bytes_of(shown)
                    digest.update(data)
                    self._file.write(data)
                    count += 1
        except (av.error.FFmpegError, OSError, IndexError) as problem:
            raise ConfigError(f"{path} is not a video that can be read: {problem}") from None
        if not count or self.fps <= 0:
            raise ConfigError(f"{path} has no pictures in it")
        self._file.flush()
        self.digest = digest.hexdigest()
        self._shape = self.size[0] * self.size[1] * 3 // 2
        self._pixels = np.memmap(self._file, np.uint8, "r", shape=(count, self._shape))

    def _as_captured(self, shown: av.VideoFrame, index: int) -> av.VideoFrame:
        if index == 0:
            self._colours = int(shown.colorspace), int(shown.color_range)
        if self.pan > 0:
            shown = av.VideoFrame.from_ndarray(self._window(bgr(shown), index), format="bgr24")
        if index == 0:
            self.size = shown.width, shown.height
        if self.noise > 0:
            random = np.random.default_rng(index)
            values = bgr(shown).astype(np.float32)
            values += random.standard_normal(values.shape, np.float32) * np.float32(self.noise)
            noisy = np.clip(np.rint(values), 0, 255).astype(np.uint8)
            shown = av.VideoFrame.from_ndarray(noisy, format="bgr24")
        return shown if shown.format.name == "yuv420p" else shown.reformat(format="yuv420p")

    def _window(self, whole: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        height, width = (side * 2 // 3 // 2 * 2 for side in whole.shape[:2])
        room = whole.shape[1] - width
        at = index * self.pan % (2 * room)
        left, top = round(min(at, 2 * room - at)), (whole.shape[0] - height) // 2
        return np.ascontiguousarray(whole[top : top + height, left : left + width])

    def __len__(self) -> int:
        return len(self._pixels)

    def __iter__(self) -> Iterator[av.VideoFrame]:
        """Each picture as a frame of its own that a consumer may keep."""
        for row in self._pixels:
            shown = av.VideoFrame(*self.size, "yuv420p")
            shown.colorspace, shown.color_range = self._colours
            start = 0
            for plane in _planes(shown):
                plane[:] = row[start : start + plane.size].reshape(plane.shape)
                start += plane.size
            yield shown


def _planes(shown: Any) -> list[NDArray[np.uint8]]:
    planes = []
    for plane in shown.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        planes.append(rows[:, : plane.width])
    return planes


def _bytes_of(shown: av.VideoFrame) -> bytes:
    return b"".join(np.ascontiguousarray(plane).tobytes() for plane in _planes(shown))


def bgr(shown: av.VideoFrame) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], by the picture's own matrix and range."""
    array: NDArray[np.uint8] = shown.to_ndarray(format="bgr24")
    return array


class Model:
    """A model as the cloud runs it; counts its inferences."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self._detector = Detector(card, threads=1)
        self.inferences = 0

    def __call__(self, image: NDArray[np.uint8], *, least: float | None = None) -> Detections:
        """Objects in uint8 [H, W, 3] BGR, in its pixels, above `least` or the model's own thresholds."""
        letterbox = self.card.letterbox(image.shape[1], image.shape[0])
        boxes, count = self._detector.run(letterbox.apply(image)[None])
        self.inferences += 1
        chosen = self.card.thresholds if least is None else least
        return detections(self.card, boxes[0], int(count[0]), letterbox, thresholds=chosen)


@dataclass(frozen=True, slots=True)
class Scene:
    """What every point is measured on: the pictures, the cloud's model, and its answers on them."""

    pictures: Pictures
    model: Model
    reference: list[Detections]
    bands: Bands


def reference(pictures: Pictures, model: Model, cache: Path | None) -> list[Detections]:
    """The model on the untouched pictures, all scores; kept in `cache` by digest of pictures and model."""
    key = hashlib.sha256(f"{pictures.digest} {model.card.sha256}".encode()).hexdigest()[:24]
    file = cache / f"reference-{key}.json" if cache is not None else None
    if file is not None and file.is_file():
        return [_read(rows) for rows in json.loads(file.read_text("utf-8"))]
    found = [model(bgr(shown), least=0.0) for shown in pictures]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([_write(one) for one in found]), "utf-8")
    return found


def _write(found: Detections) -> Sequence[Any]:
    return [
        found.boxes.tolist(),
        found.scores.tolist(),
        found.class_ids.tolist(),
        list(found.class_names),
    ]


def _read(rows: Sequence[Any]) -> Detections:
    boxes, scores, ids, names = rows
    return Detections.build(boxes, scores, ids, tuple(names))
