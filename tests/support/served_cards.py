"""Models of a catalogue that Triton can serve, made of tiny graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard
from tests.support.models import tiny_model


def tiny_card(folder: Path, name: str, *, scale: float = 1, version: str = "1") -> ModelCard:
    """Takes 48x32; sees one `square` as large as the picture, its score the mean of the pixels times scale.

    folder: of models, as `EYELINE_MODELS` names one.
    """
    home = folder / name
    home.mkdir(parents=True)
    path = tiny_model(home / "model.onnx", scale=scale)
    card = {
        "name": name,
        "version": version,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "input_size": [48, 32],
        "fill": 0,
        "centred": False,
        "form": "test",
        "classes": ["square"],
        "threshold": 0.1,
        "served_floor": 0.01,
        "max_detections": 4,
        "source": "tests",
        "licence": "Apache-2.0",
    }
    (home / "card.yaml").write_text(yaml.safe_dump(card))
    return catalogue.load(home)
