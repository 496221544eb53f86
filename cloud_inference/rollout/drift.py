"""How far a camera's pictures and answers have moved from what they were: population stability index.

Of each feature there is a histogram of the camera's first pictures (the reference) and a fading one of the
latest. PSI = sum over bins of (now - then) * ln(now / then): below 0.1 nothing has changed, above 0.25 much
has (the custom of credit scoring, where it comes from). Brightness and contrast are of the picture; number,
size and score of what the model finds in it. A new model starts anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eyeline.values import Detections

MUCH: Final = 0.25
_REFERENCE: Final = 500
# Weight of the newest picture in the fading histograms.
_NEWEST: Final = 1 / 250
_EVERY_PX: Final = 16
# Edges between bins.
_EDGES: Final[dict[str, NDArray[np.float64]]] = {
    "brightness": np.arange(25.0, 250.0, 25.0),
    "contrast": np.arange(10.0, 100.0, 10.0),
    "objects": np.array([0.5, 1.5, 2.5, 4.5, 8.5, 16.5]),
    "size": np.array([0.001, 0.003, 0.01, 0.03, 0.1, 0.3]),
    "score": np.arange(0.2, 0.95, 0.1),
}
FEATURES: Final = tuple(_EDGES)


class CameraDrift:
    """One camera with one model, whose digest `model` is."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.pictures = 0
        self._then = {name: np.zeros(len(edges) + 1) for name, edges in _EDGES.items()}
        self._now = {name: np.zeros(len(edges) + 1) for name, edges in _EDGES.items()}

    def add(self, image: NDArray[np.uint8], found: Detections) -> None:
        """One picture as the model got it, uint8 [H, W, 3], and what it found, in pixels of any one size."""
        height, width = image.shape[:2]
        sample = image[::_EVERY_PX, ::_EVERY_PX].astype(np.float32).mean(axis=2)
        boxes = found.boxes
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (width * height)
        values: Mapping[str, NDArray[Any] | list[float]] = {
            "brightness": [float(sample.mean())],
            "contrast": [float(sample.std())],
            "objects": [float(len(found))],
            "size": areas,
            "score": found.scores,
        }
        learning = self.pictures < _REFERENCE
        self.pictures += 1
        for name, edges in _EDGES.items():
            counts = np.bincount(np.searchsorted(edges, values[name]), minlength=len(edges) + 1)
            if learning:
                self._then[name] += counts
                self._now[name] += counts * _REFERENCE * _NEWEST / 2
            elif counts.any():
                # The fading histogram is of as many pictures whatever was seen in them.
                self._now[name] += (counts / counts.sum() * self._now[name].sum() - self._now[name]) * _NEWEST

    def psi(self) -> dict[str, float]:
        """By feature; 0 while the reference is still being learnt."""
        if self.pictures < _REFERENCE:
            return dict.fromkeys(FEATURES, 0.0)
        return {name: _psi(self._then[name], self._now[name]) for name in FEATURES}

    def to_json(self) -> bytes:
        """For the bucket: another worker goes on with it."""
        return json.dumps(
            {
                "model": self.model,
                "pictures": self.pictures,
                "psi": {name: round(value, 4) for name, value in self.psi().items()},
                "then": {name: _rounded(self._then[name]) for name in FEATURES},
                "now": {name: _rounded(self._now[name]) for name in FEATURES},
            }
        ).encode()

    @classmethod
    def from_json(cls, text: bytes, model: str) -> CameraDrift:
        """What was stored, if it is of that model and can be read; else a new one."""
        drift = cls(model)
        try:
            stored = json.loads(text)
            if stored["model"] != model:
                return drift
            for name in FEATURES:
                for mine, key in ((drift._then, "then"), (drift._now, "now")):  # ours
                    histogram = np.array(stored[key][name], float)
                    if histogram.shape != mine[name].shape:
                        return cls(model)
                    mine[name] = histogram
            drift.pictures = int(stored["pictures"])
        except (ValueError, KeyError, TypeError):
            return cls(model)
        return drift


def _psi(then: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    if not then.sum() or not now.sum():
        return 0.0
    # Half a picture in each bin: nothing is impossible.
    one, two = (it / it.sum() * _REFERENCE + 0.5 for it in (then, now))
    one, two = one / one.sum(), two / two.sum()
    return float(((two - one) * np.log(two / one)).sum())


def _rounded(histogram: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 2) for value in histogram]
