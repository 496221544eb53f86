"""The models behind redaction: loaded once for all cameras, tried again while they cannot be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from edge_agent import detect
from edge_agent.config import AgentSettings, DetectSettings, RedactSettings
from edge_agent.detect import EdgeModel
from edge_agent.errors import DetectFailed, RedactFailed
from edge_agent.frame import Frame
from edge_agent.redact import Finder, Redactor
from eyeline.values import FloatArray

# Between attempts to load a model that could not be.
_RETRY_S: Final = 5.0
# Of a person's box: the head, from a little above the box, whose upper edge trembles most.
_HEAD: Final = (-0.1, 0.33)
_ALL: Final = (0.0, 1.0)


class Models:
    """Models by name, each loaded when it is first used and kept.

    own: how the edge model is run: threads and provider hold for these models too. ready: models that are
    loaded already, by name.
    """

    def __init__(
        self,
        own: DetectSettings,
        ready: dict[str, EdgeModel] | None = None,
        *,
        load: Callable[[DetectSettings], EdgeModel] = detect.load,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = own
        self._loaded = dict(ready or {})
        self._failed: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._load = load
        self._now_s = now_s

    def get(self, name: str) -> EdgeModel:
        """The model, ready to run; raises `RedactFailed` with one line."""
        with self._lock:
            if name in self._loaded:
                return self._loaded[name]
            until_s, reason = self._failed.get(name, (0.0, ""))
            if not reason or self._now_s() >= until_s:
                try:
                    model = self._load(self._own.model_copy(update={"model": name}))
                except DetectFailed as problem:
                    reason = str(problem).removeprefix("edge model: ")
                    self._failed[name] = self._now_s() + _RETRY_S, reason
                else:
                    self._loaded[name] = model
                    return model
            raise RedactFailed(f"model: {reason}")


class ClassFinder:
    """Objects of one class, above redaction's own threshold: a person missed is worse than a bush blurred."""

    def __init__(
        self,
        models: Models,
        name: str,
        wanted: str,
        threshold: float,
        *,
        rows: tuple[float, float] = _ALL,
    ) -> None:
        """rows: the part of the boxes that counts, from and to, in heights from their upper edge."""
        self._rows = np.array(rows, np.float32)
        self._models = models
        self._name = name
        self._wanted = wanted
        self._threshold = threshold

    def find(self, frame: Frame) -> FloatArray:
        """Boxes, float32 [N, 4] in source pixels; raises `RedactFailed` or `DetectFailed`."""
        model = self._models.get(self._name)
        if self._wanted not in model.card.classes:
            raise RedactFailed(f"model {self._name} knows no {self._wanted}: choose another one to blur with")
        found = model.detect(frame, threshold=self._threshold)
        boxes = found.take(np.array([name == self._wanted for name in found.class_names], bool)).boxes.copy()
        boxes[:, 1::2] = boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * self._rows
        return boxes


def redactor(settings: AgentSettings, camera: str, models: Models | None = None) -> Redactor:
    """The gate of a configured camera; raises ValueError for a camera that the settings do not name."""
    chosen = [it.redact for it in settings.cameras if it.name == camera]
    if not chosen:
        raise ValueError(f"no camera {camera} in the settings: what to hide in its pictures is unknown")
    (redact,) = chosen
    shared = models or Models(settings.detect)
    return Redactor(redact, [_finder(redact, kind, shared) for kind in redact.blur], camera=camera)


def _finder(settings: RedactSettings, kind: str, models: Models) -> Finder:
    if kind == "face":
        return ClassFinder(models, settings.face_model, kind, settings.face_threshold)
    rows = _HEAD if kind == "head" else _ALL
    return ClassFinder(models, settings.person_model, "person", settings.person_threshold, rows=rows)
