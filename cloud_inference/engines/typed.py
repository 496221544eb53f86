"""The served graph with its precision in it, as a strongly typed TensorRT wants it.

Only the network inside changes: the nodes whose outputs `eyeline_models.served.inner` named. Preprocessing
and the selection of boxes stay float32: half a pixel is all that float16 resolves of a coordinate above 512.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from eyeline_models.errors import BadModel
from eyeline_models.served import inner

_SUBGRAPHS: Final = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
_INSIDE: Final = inner("x")[:-1]
_HALF: Final = "/half"
_MOST: Final = float(np.finfo(np.float16).max)
# Inputs that an operator only takes as float32: scales and regions of Resize.
_ALWAYS_FLOAT: Final = {"Resize": {1, 2}, "Upsample": {1}}
# What TensorRT runs in int8; the rest is faster left alone.
_QUANTIZED: Final = ["Conv", "MatMul", "Gemm"]


class Precision(StrEnum):
    """Of the network inside the graph."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def convert(
    model: onnx.ModelProto, precision: Precision, pictures: Iterable[NDArray[np.uint8]] = ()
) -> onnx.ModelProto:
    """The served graph in that precision; pictures uint8 [B, H, W, 3] calibrate int8.

    Raises `BadModel` with one line.
    """
    if precision is Precision.FP32:
        return unpacked(model)
    return half(model) if precision is Precision.FP16 else quantized(model, pictures)


def unpacked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights that are stored as float16 behind a Cast, and a factor or none, become float32 weights."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    weights: dict[str, NDArray[np.float32]] = {}
    for node in graph.node:
        source = stored.get(node.input[0]) if node.op_type == "Cast" else None
        factor = stored.get(node.input[1]) if node.op_type == "Mul" and node.input[0] in weights else None
        if source is not None and _attribute(node, "to") == TensorProto.FLOAT:
            weights[node.output[0]] = numpy_helper.to_array(source).astype(np.float32)
        elif factor is not None:
            weights[node.output[0]] = weights[node.input[0]] * numpy_helper.to_array(factor)
        else:
            nodes.append(node)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return made


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph whose network computes in float16; raises `BadModel`."""
    made = unpacked(model)
    if not any(_is_inside(node) for node in made.graph.node):
        raise BadModel("the graph has no network inside: make it with `cloud-inference models import`")
    _Half(made).run()
    del made.graph.value_info[:]
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise BadModel(f"the graph cannot be made float16: {_line(problem)}") from None
    return made


class _Half:
    """The conversion of one graph, in place."""

    def __init__(self, made: onnx.ModelProto) -> None:
        self._graph = made.graph
        try:
            inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph
        except onnx.shape_inference.InferenceError as problem:
            raise BadModel(f"types of the graph cannot be inferred: {_line(problem)}") from None
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._stored = {tensor.name: tensor for tensor in made.graph.initializer}
        self._types |= {name: tensor.data_type for name, tensor in self._stored.items()}
        self._inside = {name for node in made.graph.node if _is_inside(node) for name in node.output}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, str] = {}

    def run(self) -> None:
        """Convert."""
        for node in self._graph.node:
            if any(
                it.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS} for it in node.attribute
            ):
                raise BadModel(
                    f"{node.op_type} {node.name} has a graph inside: float16 is not for this model"
                )
            if _is_inside(node):
                self._enter(node)
            else:
                self._leave(node)
            self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _enter(self, node: onnx.NodeProto) -> None:
        """A node of the network: everything float that goes in is float16, and so is what comes out."""
        for index, name in enumerate(node.input):
            if self._types.get(name) != TensorProto.FLOAT:
                continue
            if index in _ALWAYS_FLOAT.get(node.op_type, set()):
                if name in self._inside:
                    node.input[index] = self._cast(name, TensorProto.FLOAT)
            elif name not in self._inside:
                node.input[index] = self._as_half(name)
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name))
        if node.op_type == "Constant" and node.attribute[0].name in {"value_float", "value_floats"}:
            value = helper.get_attribute_value(node.attribute[0])
            del node.attribute[:]
            tensor = numpy_helper.from_array(np.asarray(value, np.float16))
            node.attribute.append(helper.make_attribute("value", tensor))

    def _leave(self, node: onnx.NodeProto) -> None:
        """A node behind the network: what comes out of it is float32 again."""
        for index, name in enumerate(node.input):
            if name in self._inside and self._types.get(name) == TensorProto.FLOAT:
                node.input[index] = self._cast(name, TensorProto.FLOAT)

    def _as_half(self, name: str) -> str:
        stored = self._stored.get(name)
        if stored is None:
            return self._cast(name, TensorProto.FLOAT16)
        if name not in self._made:
            self._made[name] = name + _HALF
            self._graph.initializer.append(_half_tensor(stored, name + _HALF))
        return self._made[name]

    def _cast(self, name: str, to: int) -> str:
        key = f"{name}->{to}"
        if key not in self._made:
            self._made[key] = name + (_HALF if to == TensorProto.FLOAT16 else "/float")
            self._nodes.append(
                helper.make_node("Cast", [name], [self._made[key]], name=self._made[key], to=to)
            )
        return self._made[key]


def quantized(model: onnx.ModelProto, pictures: Iterable[NDArray[np.uint8]]) -> onnx.ModelProto:
    """The graph with Q/DQ pairs around the network's convolutions and products; raises `BadModel`.

    Symmetric, weights by channel: what TensorRT's explicit quantization takes. Left in float are the first
    convolution, those that give the answers, and those by channel (depthwise): little work, and most of the
    loss.
    """
    from onnxruntime.quantization import (  # noqa: PLC0415  # a second, and only int8 needs it
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    plain = _named(unpacked(model))
    chosen = _worth_it(plain)
    if not chosen:
        raise BadModel("the graph has no convolution or product inside that int8 would make faster")
    with tempfile.TemporaryDirectory(prefix="eyeline-int8-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(plain, source)
        # It prints and warns whoever asks.
        quiet = contextlib.redirect_stdout(io.StringIO())
        logging.disable(logging.WARNING)
        try:
            with quiet:
                quantize_static(
                    source,
                    target,
                    _Reader(pictures),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=_QUANTIZED,
                    nodes_to_quantize=chosen,
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    calibration_providers=["CPUExecutionProvider"],
                    extra_options={
                        "ActivationSymmetric": True,
                        "WeightSymmetric": True,
                        # TensorRT knows no int32 DequantizeLinear.
                        "QuantizeBias": False,
                        "DedicatedQDQPair": False,
                    },
                )
        except Exception as problem:  # noqa: BLE001  # the quantizer's errors share no public base
            raise BadModel(f"int8: the graph cannot be calibrated: {_line(problem)}") from None
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(target)


class _Reader:
    """Pictures, as ONNX Runtime's quantization asks for them."""

    def __init__(self, pictures: Iterable[NDArray[np.uint8]]) -> None:
        self._left: Iterator[NDArray[np.uint8]] = iter(pictures)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._left, None)
        return None if batch is None else {"images": batch}


def _worth_it(model: onnx.ModelProto) -> list[str]:
    """Names of the network's nodes to quantize: all of the kind but the first, those by
    channel and those nearest to the
    outputs.
    """
    inside = [node for node in model.graph.node if _is_inside(node)]
    candidates = [node for node in inside if node.op_type in _QUANTIZED]
    outputs = {name for node in inside for name in node.output}
    wanted = {name for node in model.graph.node if not _is_inside(node) for name in node.input} & outputs
    makers = {name: node for node in inside for name in node.output}
    last: set[str] = set()
    seen = set()
    # Back from each output of the network to the first convolution or product on every way.
    while wanted:
        node = makers.get(wanted.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in _QUANTIZED:
            last.add(node.name)
        else:
            wanted |= set(node.input)
    spared = last | {node.name for node in candidates[:1]}
    spared |= {node.name for node in candidates if (_attribute(node, "group") or 1) > 1}
    return [node.name for node in candidates if node.name not in spared]


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes are told apart by their names, which exports need not have: each gets that of its first
    output.
    """
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def _is_inside(node: onnx.NodeProto) -> bool:
    return any(name.startswith(_INSIDE) for name in node.output)


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(it) for it in node.attribute if it.name == name), None)


def _half_tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    # What float16 cannot hold, such as the -1e9 of a mask, becomes the most that it can.
    array = np.clip(numpy_helper.to_array(tensor), -_MOST, _MOST).astype(np.float16)
    return numpy_helper.from_array(array, name)


def _line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
