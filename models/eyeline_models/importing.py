"""A model that a user brings: an ONNX detector of a known form becomes a served model with a card.

    form       outputs                                                  pixels by default   letterbox
    yolox      [1, N, 5 + C], undecoded, strides 8, 16 and 32           BGR, 0 to 255       top left, 114
    yolov8     [1, 4 + C, N]                                            RGB, 0 to 1         centred, 114
    detr       logits [1, N, C or C + 1] and boxes [1, N, 4]            RGB, 0 to 1         top left, 0
    centernet  heat map [1, C, H/4, W/4], distances [1, 4, H/4, W/4]    RGB, 0 to 255       centred, 0

Scores and heat maps must lie between 0 and 1 (after the sigmoid), DETR's logits before it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx.inliner
import yaml
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto

from eyeline.errors import InvalidName
from eyeline.subjects import check_token
from eyeline_models import batching
from eyeline_models.catalogue import CARD, ModelCard, load
from eyeline_models.coco import COCO
from eyeline_models.errors import BadModel, ModelError
from eyeline_models.runtime import Detector
from eyeline_models.served import Form, Recipe, build

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
# Lines of a class file whose class is not served.
_NOT_SERVED: Final = {"", "-", "n/a"}
_DATA_DEPENDENT: Final = {"NonMaxSuppression", "NonZero", "Unique", "Loop", "If", "Scan", "Compress"}
_LARGEST_BYTES: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Defaults:
    rgb: bool
    scale: float
    fill: int
    centred: bool
    nms_iou: float | None


_DEFAULTS: Final = {
    Form.YOLOX: _Defaults(rgb=False, scale=1.0, fill=114, centred=False, nms_iou=0.65),
    Form.YOLOV8: _Defaults(rgb=True, scale=1 / 255, fill=114, centred=True, nms_iou=0.7),
    Form.DETR: _Defaults(rgb=True, scale=1 / 255, fill=0, centred=False, nms_iou=None),
    Form.CENTERNET: _Defaults(rgb=True, scale=1.0, fill=0, centred=True, nms_iou=0.6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user says about the model; None stands for what its form or the file itself tells.

    size: width and height in pixels, for an export where they are free. classes: one name for each class of
    the network, in its order; "-" or "N/A" for one that is not served. threshold: for every class. scale:
    pixels times this are what the network wants. imagenet: less ImageNet's mean, by its deviation.
    """

    name: str
    form: Form | None = None
    size: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None
    threshold: float = 0.4
    rgb: bool | None = None
    scale: float | None = None
    imagenet: bool = False
    source: str = ""
    licence: str = "unknown"
    notes: str = ""


def bring(file: Path, wish: Wish, into: Path, *, replace: bool = False) -> ModelCard:
    """Build the served model and its card in `into / wish.name`, run it once, and return its card.

    Raises `ModelError` with one line; then nothing is left behind.
    """
    try:
        check_token(wish.name)
    except InvalidName as problem:
        raise ModelError(str(problem)) from None
    if not 0 < wish.threshold < 1:
        raise ModelError(f"the threshold must lie between 0 and 1, not {wish.threshold:g}")
    target = into / wish.name
    if target.exists() and not replace:
        raise ModelError(f"{target} exists already; choose another name, or replace it with --replace")
    try:
        model, card = _built(file, wish)
    except BadModel as problem:
        raise BadModel(f"{file}: {problem}") from None
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".importing-") as temporary:
            made = Path(temporary) / wish.name
            made.mkdir()
            (made / "model.onnx").write_bytes(model)
            (made / CARD).write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
            _try_out(load(made))
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)
    except OSError as problem:
        raise ModelError(f"{target} cannot be written: {problem.strerror}") from None
    return load(target)


def read_classes(path: Path) -> tuple[str, ...]:
    """One class a line; spaces inside a name become underscores. Raises `ModelError`."""
    try:
        lines = path.read_text(encoding="utf-8").strip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise ModelError(f"class list {path} cannot be read ({problem})") from None
    names = tuple("_".join(line.split()) for line in lines)
    served = [name for name in names if name.lower() not in _NOT_SERVED]
    twice = sorted({name for name in served if served.count(name) > 1})
    if twice or not served:
        raise ModelError(f"class list {path} " + (f"names {twice[0]!r} twice" if twice else "names no class"))
    return names


def _built(file: Path, wish: Wish) -> tuple[bytes, dict[str, Any]]:
    """The served ONNX file and its card."""
    network = _read(file)
    size = _size(network, wish.size)
    outputs = _outputs(network, size)
    form, used = _form_of(outputs, size, wish.form)
    defaults = _DEFAULTS[form]
    shapes = [outputs[name].shape for name in used]
    total, rows = _extent(form, shapes)
    names, softmax = _classes(form, total, wish.classes)
    keep = tuple(index for index, name in enumerate(names) if name.lower() not in _NOT_SERVED)
    scale = defaults.scale if wish.scale is None else wish.scale
    recipe = Recipe(
        form=form,
        input_size=size,
        outputs=used,
        keep=keep,
        classes_total=total,
        floor=min(0.1, wish.threshold),
        max_detections=min(100, rows),
        rgb=defaults.rgb if wish.rgb is None else wish.rgb,
        scale=scale,
        mean=IMAGENET_MEAN if wish.imagenet else None,
        std=IMAGENET_STD if wish.imagenet else None,
        nms_iou=defaults.nms_iou,
        candidates=min(300, rows),
        softmax=softmax,
    )
    alone = batching.run(batching.fixed(network, 1, size), batching.probe(1, size) * np.float32(scale))
    _check_values(form, alone, network, used)
    free = batching.batchable(network, size, scale)
    try:
        served = build(free, recipe).SerializeToString()
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise BadModel(f"no served model can be made of it: {_line(problem)}") from None
    card = {
        "name": wish.name,
        "version": "1",
        "sha256": hashlib.sha256(served).hexdigest(),
        "input_size": list(size),
        "fill": defaults.fill,
        "centred": defaults.centred,
        "form": str(form),
        "classes": [names[index] for index in keep],
        "threshold": wish.threshold,
        "served_floor": recipe.floor,
        "max_detections": recipe.max_detections,
        "source": wish.source or f"{file.name}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}",
        "licence": wish.licence,
        "notes": wish.notes,
    }
    return served, card


def _read(file: Path) -> onnx.ModelProto:
    try:
        with file.open("rb") as opened:
            raw = opened.read(_LARGEST_BYTES + 1)
    except OSError as problem:
        raise BadModel(f"cannot be read: {problem.strerror}") from None
    if len(raw) > _LARGEST_BYTES:
        raise BadModel("is larger than 2 GiB")
    try:
        network = onnx.load_from_string(raw)
    except DecodeError:
        raise BadModel("is not an ONNX file, or is cut short") from None
    if not network.ir_version or not network.graph.node or not network.graph.output:
        raise BadModel("is not an ONNX file, or is cut short")
    try:
        onnx.load_external_data_for_model(network, str(file.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as problem:
        raise BadModel(
            f"its weights lie in another file that is missing or damaged: {_line(problem)}"
        ) from None
    if network.functions:
        network = onnx.inliner.inline_local_functions(network)
    try:
        onnx.checker.check_model(network)
    except (ValueError, onnx.checker.ValidationError) as problem:
        raise BadModel(f"is not a valid ONNX model: {_line(problem)}") from None
    foreign = sorted({node.domain for node in network.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise BadModel(f"needs operators of {', '.join(foreign)}; only ONNX's own run everywhere")
    moving = sorted({node.op_type for node in network.graph.node} & _DATA_DEPENDENT)
    if moving:
        raise BadModel(
            f"has {', '.join(moving)} inside, whose shapes cannot be batched; export the bare network"
        )
    return network


def _size(network: onnx.ModelProto, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the input."""
    entry = batching.input_of(network)
    kind = entry.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]
    if (
        len(dims) != 4
        or kind.elem_type not in {TensorProto.FLOAT, TensorProto.FLOAT16}
        or dims[1] not in {0, 3}
    ):
        what = f"{TensorProto.DataType.Name(kind.elem_type).lower()} {[dim or '?' for dim in dims]}"
        raise BadModel(f"its input {entry.name!r} is {what}; it must be float [1, 3, height, width]")
    if dims[0] > 1:
        raise BadModel(f"the export takes {dims[0]} pictures at a time; export it for one or for any number")
    height, width = dims[2:]
    if wanted is None:
        if not width or not height:
            raise BadModel("its input size is free; state it with --size WIDTH HEIGHT")
        return width, height
    if (width or wanted[0], height or wanted[1]) != wanted:
        raise BadModel(f"its input size is fixed, {width}x{height}; it cannot be {wanted[0]}x{wanted[1]}")
    if not all(0 < side <= 8192 for side in wanted):
        raise BadModel(f"an input of {wanted[0]}x{wanted[1]} pixels is not possible")
    return wanted


def _outputs(network: onnx.ModelProto, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """What the network answers to one picture."""
    values = batching.run(batching.fixed(network, 1, size), batching.probe(1, size) / np.float32(255))
    return {output.name: value for output, value in zip(network.graph.output, values, strict=True)}


def _form_of(
    outputs: dict[str, NDArray[Any]], size: tuple[int, int], wanted: Form | None
) -> tuple[Form, tuple[str, ...]]:
    """The form and the names of the outputs that it uses; others are allowed when it is asked for."""
    width, height = size
    cells = sum((width // stride) * (height // stride) for stride in (8, 16, 32))
    flat = {name: value.shape for name, value in outputs.items() if value.ndim == 3}
    maps = {
        name: value.shape
        for name, value in outputs.items()
        if value.ndim == 4 and value.shape[2:] == (height // 4, width // 4)
    }
    found: dict[Form, tuple[str, ...]] = {}
    for name, (_, one, two) in flat.items():
        if one == cells and two >= 6:
            found.setdefault(Form.YOLOX, (name,))
        elif two > one >= 5:
            found.setdefault(Form.YOLOV8, (name,))
    boxes = sorted((n for n, shape in flat.items() if shape[2] == 4), key=lambda n: "box" not in n.lower())
    logits = [n for n, shape in flat.items() if boxes and n != boxes[0] and shape[1] == flat[boxes[0]][1]]
    if len(logits) == 1:
        found[Form.DETR] = (logits[0], boxes[0])
    spread = sorted((n for n, shape in maps.items() if shape[1] == 4), key=lambda n: "heat" in n.lower())
    heat = [n for n in maps if spread and n != spread[0]]
    if len(heat) == 1:
        found[Form.CENTERNET] = (heat[0], spread[0])
    exact = {form: names for form, names in found.items() if len(names) == len(outputs)}
    if wanted is not None and wanted in found:
        return wanted, found[wanted]
    if wanted is None and len(exact) == 1:
        return next(iter(exact.items()))
    has = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
    head = (
        "its outputs are not of a form that we know"
        if wanted is None
        else f"its outputs are not of form {wanted}"
    )
    raise BadModel(
        f"{head}: it has {has}; known are yolox [1, N, 5 + C] with N = {cells} at this size, "
        f"yolov8 [1, 4 + C, N], detr [1, N, C] with [1, N, 4], "
        f"centernet [1, C, {height // 4}, {width // 4}] with 4 distances"
    )


def _extent(form: Form, shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """How many classes the network tells apart, and how many boxes it answers."""
    first = shapes[0]
    if form is Form.YOLOX:
        return first[2] - 5, first[1]
    if form is Form.YOLOV8:
        return first[1] - 4, first[2]
    if form is Form.DETR:
        return first[2], first[1]
    return first[1], first[2] * first[3]


def _classes(form: Form, total: int, given: tuple[str, ...] | None) -> tuple[tuple[str, ...], bool]:
    """Names of the network's classes, and whether DETR's "nothing" stands behind them."""
    counts = {total: False, total - 1: True} if form is Form.DETR else {total: False}
    names = COCO if given is None and len(COCO) in counts else given
    if names is None:
        raise BadModel(f"it tells {total} classes apart; name them with --classes FILE, one a line")
    if len(names) not in counts:
        raise BadModel(f"it tells {total} classes apart, the class list names {len(names)}")
    return names, counts[len(names)]


def _check_values(
    form: Form, values: list[NDArray[Any]], network: onnx.ModelProto, used: tuple[str, ...]
) -> None:
    """Refuse outputs of the right shape and another meaning."""
    order = [output.name for output in network.graph.output]
    first, *rest = (values[order.index(name)] for name in used)
    if not all(np.isfinite(value).all() for value in (first, *rest)):
        raise BadModel("it answers numbers that are not finite")
    if form is Form.YOLOX and float(np.abs(first[..., 2:4]).max()) > 20:
        raise BadModel("its boxes are decoded already; export YOLOX without decode_in_inference")
    scores = {Form.YOLOX: first[..., 4:], Form.YOLOV8: first[:, 4:], Form.CENTERNET: first}.get(form)
    if scores is not None and (float(scores.min()) < -1e-3 or float(scores.max()) > 1.001):
        raise BadModel(
            f"its scores reach from {scores.min():.3g} to {scores.max():.3g}; they must lie in 0 to 1"
        )
    if form is Form.DETR and float(np.abs(rest[0]).max()) > 4:
        raise BadModel("its boxes are in pixels; a detr model states centre and size from 0 to 1")


def _try_out(card: ModelCard) -> None:
    """Run the served model once as everyone else will."""
    width, height = card.input_size
    detector = Detector(card, provider="cpu")
    try:
        boxes, count = detector.run(np.full((2, height, width, 3), 114, np.uint8))
    except Exception as problem:  # noqa: BLE001  # ONNX Runtime's errors share no public base
        raise BadModel(f"the served model cannot be run: {_line(problem)}") from None
    if boxes.shape != (2, card.max_detections, 6) or count.shape != (2,):
        raise BadModel(f"the served model answers {boxes.shape} and {count.shape}")


def _line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
