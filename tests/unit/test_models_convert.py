"""The conversion of the bundled network: what it writes shorter computes what the package spells out."""

from __future__ import annotations

import base64
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from eyeline_models import catalogue
from eyeline_models.graph import IR_VERSION, OPSET

SCRIPT = Path(__file__).parents[2] / "models" / "convert_centernet.py"
SIXTH = 0.1666
Array = NDArray[np.float32]


@pytest.fixture
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("convert_centernet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Graph:
    """A TFJS graph as the package's, and what it computes, step by step."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = [{"name": "in", "op": "Placeholder"}]
        self.weights: dict[str, NDArray[Any]] = {}
        self._random = np.random.default_rng(3)

    def node(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})
        return name

    def scalar(self, name: str, value: float) -> str:
        self.weights[name] = np.array(value, np.float32)
        return self.node(name, "Const")

    def convolution(self, name: str, source: str, deep: int, wide: int, *fused: str) -> str:
        """1x1, with a bias."""
        kernel = self._random.normal(size=(1, 1, deep, wide)) * 0.6
        self.weights[f"{name}/w"] = kernel.astype(np.float16)
        self.weights[f"{name}/b"] = self._random.normal(size=wide).astype(np.float16)
        operations = [base64.b64encode(it.encode()).decode() for it in ("BiasAdd", *fused)]
        return self.node(
            name,
            "_FusedConv2D",
            source,
            f"{name}/w",
            f"{name}/b",
            strides={"list": {"i": ["1", "1", "1", "1"]}},
            padding={"s": base64.b64encode(b"SAME").decode()},
            fused_ops={"list": {"s": operations}},
        )

    def hard_swish(self, name: str, source: str) -> str:
        scaled = self.node(f"{name}/mul", "Mul", self.scalar(f"{name}/sixth", SIXTH), source)
        lifted = self.node(f"{name}/add", "Add", source, self.scalar(f"{name}/three", 3))
        return self.node(f"{name}/mul_1", "Mul", scaled, self.node(f"{name}/Relu6", "Relu6", lifted))

    def gate(self, name: str, source: str, deep: int) -> str:
        """Squeeze and excite."""
        mean = self.node(f"{name}/mean", "Mean", source)
        fully = self.convolution(f"{name}/one", mean, deep, 4, "Relu")
        fully = self.convolution(f"{name}/two", fully, 4, deep)
        lifted = self.node(f"{name}/add", "Add", fully, self.scalar(f"{name}/three", 3))
        clipped = self.node(f"{name}/Relu6", "Relu6", lifted)
        share = self.node(f"{name}/mul", "Mul", self.scalar(f"{name}/sixth", SIXTH), clipped)
        return self.node(f"{name}/mul_1", "Mul", share, source)

    def computed(self, name: str, images: Array) -> Array:
        """As TensorFlow would, one node after the other; [B, H, W, C]."""
        node = next(it for it in self.nodes if it["name"] == name)
        if node["op"] == "Placeholder":
            return images
        if node["op"] == "Const":
            return self.weights[name].astype(np.float32)
        if node["op"] == "_FusedConv2D":
            source, kernel, bias = node["input"]
            made = self.computed(source, images) @ self.weights[kernel][0, 0].astype(np.float32)
            made += self.weights[bias].astype(np.float32)
            return np.maximum(made, 0) if len(node["attr"]["fused_ops"]["list"]["s"]) > 1 else made
        values = [self.computed(it, images) for it in node["input"]]
        if node["op"] == "Mean":
            return values[0].mean((1, 2), keepdims=True)
        if node["op"] == "Relu6":
            return np.clip(values[0], 0, 6)
        return values[0] + values[1] if node["op"] == "Add" else values[0] * values[1]


def test_known_operators_are_recognised_and_nothing_is_lost(script: ModuleType) -> None:
    graph = Graph()
    stem = graph.hard_swish("stem", graph.convolution("first", "in", 3, 8))
    block = graph.node("add", "Add", graph.convolution("second", stem, 8, 8, "Relu"), stem)
    graph.nodes[-1]["input"][0] = graph.convolution("project", "second", 8, 8)
    wide = graph.hard_swish("wide", graph.convolution("expand", block, 8, 16))
    last = graph.convolution("last", graph.gate("gate", wide, 16), 16, 2)
    converter = script.Converter({"modelTopology": {"node": graph.nodes}}, graph.weights, (6, 5))
    made = converter.convert(last)
    assert made.factor == 1.0
    converter.graph.op("Identity", made.name, output="out")
    model = helper.make_model(
        helper.make_graph(
            converter.graph.nodes,
            "test",
            [helper.make_tensor_value_info("network_input", TensorProto.FLOAT, ["B", 3, 5, 6])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", 2, 5, 6])],
            converter.graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("HardSwish") == 2
    assert kinds.count("GlobalAveragePool") == 1
    # The gate's, and the factors of weights.
    pictures = {node.output[0] for node in model.graph.node if node.op_type == "HardSwish"}
    multiplied = [node for node in model.graph.node if node.op_type == "Mul" and set(node.input) & pictures]
    assert len(multiplied) == 1
    images = np.random.default_rng(4).normal(size=(2, 5, 6, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["out"], {"network_input": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    np.testing.assert_allclose(
        found.transpose(0, 2, 3, 1), graph.computed(last, images), rtol=1e-4, atol=1e-5
    )


def test_the_device_model_is_the_same_network_with_fewer_pixels(script: ModuleType) -> None:
    large, small = (catalogue.load(variant.name) for variant in script.BUNDLED)
    assert (large.classes, large.licence) == (small.classes, small.licence)
    assert [variant.size for variant in script.BUNDLED] == [large.input_size, small.input_size]
    pixels = [card.input_size[0] * card.input_size[1] for card in (large, small)]
    assert pixels[1] < pixels[0] / 3
    kernels = []
    for card in (large, small):
        graph = onnx.load(card.path).graph
        weights = [
            it for it in graph.initializer if it.data_type == TensorProto.FLOAT16 and len(it.dims) == 4
        ]
        kernels.append([weight.raw_data for weight in weights])
    assert kernels[0] == kernels[1]
