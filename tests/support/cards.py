"""Cards of models that exist only in tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eyeline_models.catalogue import ModelCard


def square_card(*, size: tuple[int, int] = (128, 128)) -> ModelCard:
    """A model that sees one class, `square`; there is no file behind it."""
    return ModelCard(
        name="square",
        version="1",
        sha256="0" * 64,
        path=Path("square.onnx"),
        input_size=size,
        fill=0,
        centred=False,
        form="test",
        classes=("square",),
        thresholds=np.array([0.5], np.float32),
        served_floor=0.1,
        max_detections=10,
        source="tests",
        licence="Apache-2.0",
        notes="",
    )
