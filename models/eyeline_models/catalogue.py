"""The catalogue: which models there are, where each comes from, and how to read its answers.

A model is a folder with `card.yaml` and the served ONNX file beside it. The folders of this package are
always known, and so are those in `home()`; more can be named in `EYELINE_MODELS` (folders of models,
separated by ':').
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
from pydantic import AfterValidator, Field

from eyeline.errors import ConfigError
from eyeline.settings import Settings, read_yaml
from eyeline.settings import load as load_settings
from eyeline.subjects import check_token
from eyeline.values import Detections, FloatArray
from eyeline_models.errors import BadModel, UnknownModel
from eyeline_models.letterbox import Letterbox
from eyeline_models.releases import RELEASES

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

    input_size: width and height, in pixels. thresholds: float32 [C], one for each class. path: the served
    ONNX file (input `images` uint8 [B, H, W, 3] BGR; outputs `boxes` float32 [B, K, 6], `count` int32 [B]).
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
    known = []
    for folder in folders(search):
        known.append(_name_of(folder))
        if known[-1] == text:
            return _read(folder)
    if text in RELEASES:
        raise UnknownModel(
            f"{text} is not on this machine yet; `cloud-inference models fetch {text}` gets it"
        )
    known = sorted({*known, *RELEASES})
    close = difflib.get_close_matches(text, known, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    raise UnknownModel(f"no model is named {text!r}; {hint}")


def home() -> Path:
    """Where a user's models are put: the first folder of `EYELINE_MODELS`, or one below the home folder."""
    named = [part for part in os.environ.get(SEARCH_VARIABLE, "").split(":") if part]
    if named:
        return Path(named[0])
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "eyeline" / "models"


def folders(search: Sequence[Path] | None = None) -> Iterator[Path]:
    """The folders of all models known here; of two with one name, the first counts."""
    extra = [Path(part) for part in os.environ.get(SEARCH_VARIABLE, "").split(":") if part]
    for base in dict.fromkeys([*(search or ()), *extra, home(), Path(__file__).parent]):
        if base.is_dir():
            yield from sorted(path.parent for path in base.glob(f"*/{CARD}"))


def _name_of(folder: Path) -> str:
    """The name on the card; one that cannot be read must not hide the others."""
    try:
        return str(read_yaml(folder / CARD).get("name", folder.name))
    except ConfigError:
        return folder.name


def _read(folder: Path) -> ModelCard:
    card_path = folder / CARD
    if not card_path.is_file():
        raise UnknownModel(f"{folder} holds no {CARD}; bring a model with `cloud-inference models import`")
    try:
        card = load_settings(_CardFile, card_path, env_prefix="", environ={})
    except ConfigError as problem:
        raise BadModel(str(problem)) from None
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
