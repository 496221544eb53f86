"""The edge model: a captured frame in, objects in source pixels out."""

from __future__ import annotations

import threading
from typing import Any, Final, Protocol

import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from edge_agent.config import DetectSettings
from edge_agent.errors import DetectFailed
from edge_agent.frame import Frame
from edge_agent.opinion import Look
from eyeline.errors import EyelineError
from eyeline.pictures import Scaler, colours
from eyeline.v1 import detection_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard
from eyeline_models.letterbox import Letterbox
from eyeline_models.runtime import Detector

# Things that score within these shares of their class's threshold are doubtful.
DOUBT_FROM: Final = 0.5
DOUBT_TO: Final = 1.25


class Runtime(Protocol):
    """What runs the model; `eyeline_models.runtime.Detector` is the real one."""

    @property
    def card(self) -> ModelCard: ...

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int32]]: ...


class EdgeModel:
    """A model on this device, shared by its cameras: one frame at a time.

    Scaling comes first, in the camera's own pixel format, and only the model's few pixels are turned into
    BGR: a twelfth of the work at 1080p, and the same resampling as the model's letterbox.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self.card = runtime.card
        self._scalers: dict[tuple[int, int], Scaler] = {}

    @property
    def model_ref(self) -> detection_pb2.ModelRef:
        """For envelopes and status."""
        return detection_pb2.ModelRef(name=self.card.name, version=self.card.version, sha256=self.card.sha256)

    def detect(self, frame: Frame, *, threshold: float | NDArray[np.float32] | None = None) -> Detections:
        """Objects above the model's own thresholds, or others, in source pixels; raises `DetectFailed`."""
        try:
            letterbox = self.card.letterbox(*frame.size)
            with self._lock:
                image = self._image(frame, letterbox)
                boxes, count = self._runtime.run(image[np.newaxis])
        except Exception as problem:  # noqa: BLE001  # model runtimes' errors share no public base
            line = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
            raise DetectFailed(f"model {self.card.name} failed: {line}", retryable=True) from None
        least = self.card.thresholds if threshold is None else threshold
        return catalogue.detections(self.card, boxes[0], int(count[0]), letterbox, thresholds=least)

    def look(self, frame: Frame) -> Look:
        """The same with the model's own thresholds, and the things that it is in two minds about."""
        least = np.asarray(self.card.thresholds * DOUBT_FROM, np.float32)
        found = self.detect(frame, threshold=least)
        own = self.card.thresholds[found.class_ids]
        return Look(found.take(found.scores >= own), found.take(found.scores < own * DOUBT_TO))

    def _image(self, frame: Frame, letterbox: Letterbox) -> NDArray[np.uint8]:
        """uint8 [h, w, 3] BGR of the model's input size."""
        scaler = self._scalers.get(letterbox.scaled)
        if scaler is None:
            # A camera changes its size rarely, and few cameras share a model.
            if len(self._scalers) >= 16:
                self._scalers.clear()
            scaler = self._scalers[letterbox.scaled] = Scaler(letterbox.scaled)
        scaled: Any = scaler.scale(frame.picture)
        matrix, range_ = colours(frame.picture)
        scaled.colorspace = int(Colorspace.ITU709 if matrix == pb.COLOR_MATRIX_BT709 else Colorspace.ITU601)
        scaled.color_range = int(ColorRange.JPEG if range_ == pb.COLOR_RANGE_FULL else ColorRange.MPEG)
        bgr: NDArray[np.uint8] = scaled.to_ndarray(format="bgr24")
        if letterbox.scaled == letterbox.model:
            return bgr
        left, top = letterbox.pad
        right = letterbox.model[0] - letterbox.scaled[0] - left
        bottom = letterbox.model[1] - letterbox.scaled[1] - top
        fill = (letterbox.fill,) * 3
        padded: Any = cv2.copyMakeBorder(bgr, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)
        return np.asarray(padded, np.uint8)


def load(settings: DetectSettings) -> EdgeModel:
    """The model that the settings name, ready to run; raises `DetectFailed` with one line."""
    try:
        card = catalogue.load(settings.model)
        return EdgeModel(Detector(card, threads=settings.threads, provider=settings.provider))
    except EyelineError as problem:
        raise DetectFailed(f"edge model: {problem}") from None
