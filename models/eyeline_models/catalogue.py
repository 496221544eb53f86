"""The catalogue: which models there are, where each comes from, and how to read its answers.

A model is a folder with `card.yaml` and the served ONNX file beside it. The folders of this package are
always known; more can be named in `EYELINE_MODELS` (folders of models, separated by ':').
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from eyeline.settings import Settings, read_yaml
from eyeline.subjects import check_token
from eyeline.values import Detections, FloatArray
from eyeline_models.errors import BadModel, UnknownModel
from eyeline_models.letterbox import Letterbox

CARD = "card.yaml"
SEARCH_VARIABLE = "EYELINE_MODELS"
# "The model's own thresholds".
OWN: Final = "own"


class _CardFile(Settings):
    """`card.yaml`."""

    name: Annotated[str, AfterValidator(check_token)]
    version: str
    file: str = "model.onnx"
    sha256: str
    # Width and height of the input, in pixels.
    input_size: tuple[int, int]
    # Letterbox: grey level around the picture, and whether the picture is centred or at the top left.
    fill: int = Field(ge=0, le=255)
    centred: bool
    form: str
    classes: tuple[str, ...] = Field(min_length=1)
    # Of the classes not named in `thresholds`.
    threshold: float = Field(gt=0, lt=1)
    thresholds: dict[str, float] = {}
    # The graph leaves out what is below.
    served_floor: float = Field(gt=0, lt=1)
    max_detections: int = Field(ge=1, le=1000)
    source: str
    licence: str
    notes: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ModelCard:
    """A model and how to read its answers.

    input_size: width and height, in pixels. thresholds: float32 [C], one for each class. path: the served ONNX
    file (input `images` uint8 [B, H, W, 3] BGR; outputs `boxes` float32 [B, K, 6], `count` int32 [B]).
    """

    name: str
    version: str
    sha256: str
    path: Path
    input_size: tuple[int, int]
    fill: int
    centred: bool
    form: str
    classes: tuple[str, ...]
    thresholds: FloatArray
    served_floor: float
    max_detections: int
    source: str
    licence: str
    notes: str

    def letterbox(self, width: int, height: int) -> Letterbox:
        """How a picture of that size, in pixels, is fitted into the model's input."""
        return _fit(width, height, self.input_size, self.centred, self.fill)


@lru_cache(maxsize=256)
def _fit(width: int, height: int, model: tuple[int, int], centred: bool, fill: int) -> Letterbox:
    return Letterbox.fit((width, height), model, centred=centred, fill=fill)


def detections(
    card: ModelCard,
    boxes: FloatArray,
    count: int,
    letterbox: Letterbox,
    *,
    thresholds: FloatArray | float | Literal["own"] = OWN,
) -> Detections:
    """One picture's rows from a served model, as objects in its pixels.

    boxes: float32 [K, 6] rows of x1, y1, x2, y2, score, class, of which the first `count` hold. thresholds:
    float32 [C] or one for all; by default the card's own. Empty boxes are left out.
    """
    rows = boxes[:count]
    class_ids = rows[:, 5].astype(np.int32)
    least = card.thresholds if isinstance(thresholds, str) else np.broadcast_to(thresholds, len(card.classes))
    placed = letterbox.to_source(rows[:, :4])
    keep = rows[:, 4] >= least[class_ids]
    keep &= (placed[:, 2] > placed[:, 0]) & (placed[:, 3] > placed[:, 1])
    names = tuple(card.classes[class_id] for class_id in class_ids[keep].tolist())
    return Detections.build(placed[keep], rows[keep, 4], class_ids[keep], names)


def load(name: str | Path, search: Sequence[Path] | None = None) -> ModelCard:
    """The model of that name, or in that folder (or beside that ONNX file), its digest verified.

    Raises `UnknownModel` or `BadModel` with one line.
    """
    text = str(name)
    if "/" in text or text.endswith(".onnx"):
        path = Path(text)
        return _read(path.parent if path.suffix == ".onnx" else path)
    found = {folder.name: folder for folder in folders(search)}
    for folder in found.values():
        if _name_of(folder) == text:
            return _read(folder)
    known = sorted(_name_of(folder) for folder in found.values())
    close = difflib.get_close_matches(text, known, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    raise UnknownModel(f"no model is named {text!r}; {hint}")


def folders(search: Sequence[Path] | None = None) -> Iterator[Path]:
    """The folders of all models known here."""
    extra = [Path(part) for part in os.environ.get(SEARCH_VARIABLE, "").split(":") if part]
    for base in [*(search or ()), *extra, Path(__file__).parent]:
        if base.is_dir():
            yield from sorted(path.parent for path in base.glob(f"*/{CARD}"))


def _name_of(folder: Path) -> str:
    name = read_yaml(folder / CARD).get("name", folder.name)
    return str(name)


def _read(folder: Path) -> ModelCard:
    card_path = folder / CARD
    if not card_path.is_file():
        raise UnknownModel(f"{folder} holds no {CARD}; import a model of your own with `models import`")
    try:
        card = _CardFile.model_validate(read_yaml(card_path))
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadModel(f"{card_path}: {place}: {first['msg']}") from None
    path = folder / card.file
    if not path.is_file():
        raise BadModel(f"{path} is missing; fetch or import the model again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != card.sha256:
        raise BadModel(f"{path} has sha256 {digest[:12]}…, its card says {card.sha256[:12]}…: it was changed")
    unknown = set(card.thresholds) - set(card.classes)
    if unknown:
        raise BadModel(f"{card_path}: thresholds name no class of the model: {', '.join(sorted(unknown))}")
    thresholds = [card.thresholds.get(name, card.threshold) for name in card.classes]
    if not all(math.isfinite(value) and 0 < value < 1 for value in thresholds):
        raise BadModel(f"{card_path}: thresholds must lie between 0 and 1")
    return ModelCard(
        name=card.name,
        version=card.version,
        sha256=card.sha256,
        path=path,
        input_size=card.input_size,
        fill=card.fill,
        centred=card.centred,
        form=card.form,
        classes=card.classes,
        thresholds=np.array(thresholds, np.float32),
        served_floor=card.served_floor,
        max_detections=card.max_detections,
        source=card.source,
        licence=card.licence,
        notes=card.notes,
    )
