"""A served model of every form, brought in as a user would, or bundled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard
from eyeline_models.forms import Form
from eyeline_models.importing import Wish, bring
from tests.support import models_networks as networks

FORMS: Final = [form for form in Form if form is not Form.BLAZEFACE]
BUNDLED: Final = ("centernet-mobilenetv3", "centernet-mobilenetv3-288", "blazeface-back")


def imported(form: Form, folder: Path) -> ModelCard:
    """Small, 64x64 pixels, three classes; finds one object, whatever it sees."""
    made: dict[str, Any] = {
        Form.YOLOX: {"output": networks.yolox_values(64, 64, 3)},
        Form.YOLOV8: {"output0": networks.yolov8_values(84, 3)},
        Form.DETR: networks.detr_values(20, 3, (64, 64)),
        Form.CENTERNET: networks.centernet_values(64, 64, 3),
    }[form]
    file = networks.constant_network(folder / f"{form}.onnx", made)
    return bring(file, Wish(name=f"small-{form}", classes=("a", "b", "c"), threshold=0.3), folder / "models")


def bundled(name: str) -> ModelCard:
    """One that comes with the package."""
    return catalogue.load(name)
