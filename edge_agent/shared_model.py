"""The edge model that all cameras of a device share, and redaction's models beside it."""

from __future__ import annotations

import threading

import structlog

from edge_agent import detect
from edge_agent.config import AgentSettings
from edge_agent.detect import EdgeModel
from edge_agent.errors import DetectFailed
from edge_agent.frame import Frame
from edge_agent.opinion import Look
from edge_agent.redact_models import Models
from edge_agent.seams import EdgeDetector
from eyeline.v1 import detection_pb2

_log = structlog.get_logger()


class _Shared:
    """One model for all cameras' threads, one at a time."""

    def __init__(self, model: EdgeModel) -> None:
        self._model = model
        self._lock = threading.Lock()

    def look(self, frame: Frame) -> Look:
        with self._lock:
            return self._model.look(frame)


Loaded = tuple[EdgeDetector | None, detection_pb2.ModelRef | None, Models]


def load_detector(settings: AgentSettings) -> Loaded:
    """The edge model; without one that works, the cameras run all the same. And redaction's models."""
    if not settings.detect.enabled:
        return None, None, Models(settings.detect)
    try:
        model = detect.load(settings.detect)
    except DetectFailed as problem:
        _log.error("edge_model_failed", reason=str(problem), effect="no answers from the edge")
        return None, None, Models(settings.detect)
    return _Shared(model), model.model_ref, Models(settings.detect, {settings.detect.model: model})
