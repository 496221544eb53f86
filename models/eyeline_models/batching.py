"""Making an export whose batch size is fixed to 1 take any batch, and checking that it really does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from eyeline_models.errors import BadModel

BATCH: Final = "B"
# Relative to the largest value of the output; kernels may sum a batch in another order.
_WITHIN: Final = 1e-3


def input_of(network: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input; raises `BadModel` where there are more."""
    known = {tensor.name for tensor in network.graph.initializer}
    inputs = [value for value in network.graph.input if value.name not in known]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise BadModel(f"the model must have one input, a batch of pictures; it has: {names}")
    return inputs[0]


def batchable(network: onnx.ModelProto, size: tuple[int, int], scale: float) -> onnx.ModelProto:
    """The network with a free batch size, its answers for a picture the same in any batch.

    size: width and height of the input in pixels, which become fixed; scale: of pixels for the network.
    Raises `BadModel`.
    """
    reason = ""
    for fold in (False, True):
        candidate = _freed(_folded(network, size) if fold else network, size)
        reason = _difference(candidate, probe(2, size) * np.float32(scale))
        if not reason:
            return candidate
    raise BadModel(f"the export takes one picture at a time ({reason}); export it with a free batch size")


def run(network: onnx.ModelProto, images: NDArray[np.float32]) -> list[NDArray[Any]]:
    """The network's outputs for float32 [B, 3, H, W]; raises `BadModel` when it cannot be run."""
    half = input_of(network).type.tensor_type.elem_type == TensorProto.FLOAT16
    try:
        session: Any = onnxruntime.InferenceSession(
            network.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"]
        )
        feed = {input_of(network).name: images.astype(np.float16) if half else images}
        return [np.asarray(output) for output in session.run(None, feed)]
    except Exception as problem:  # noqa: BLE001  # ONNX Runtime's errors share no public base
        raise BadModel(f"ONNX Runtime cannot run the model: {_line(problem)}") from None


def fixed(network: onnx.ModelProto, batch: int | str, size: tuple[int, int]) -> onnx.ModelProto:
    """A copy whose input shape is stated and whose other shapes are to be inferred."""
    made = onnx.ModelProto()
    made.CopyFrom(network)
    entry = input_of(made)
    shape = [batch, 3, size[1], size[0]]
    entry.CopyFrom(helper.make_tensor_value_info(entry.name, entry.type.tensor_type.elem_type, shape))
    del made.graph.value_info[:]
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    return made


def _freed(network: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    made = fixed(network, BATCH, size)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    added: dict[str, onnx.TensorProto] = {}
    for node in made.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.ndim != 1 or len(shape) < 2 or shape[0] != 1:
            continue
        # 0 copies the batch axis where -1 is taken already.
        shape[0] = 0 if -1 in shape[1:] else -1
        name = f"{node.input[1]}/any_batch"
        added[name] = numpy_helper.from_array(shape, name)
        node.input[1] = name
    used = {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend([*kept, *added.values()])
    return made


def _folded(network: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    """The network with everything computed that is constant at one picture, shapes above all."""
    with tempfile.TemporaryDirectory() as folder:
        options = _quiet()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        try:
            onnxruntime.InferenceSession(
                fixed(network, 1, size).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return onnx.load(options.optimized_model_filepath)
        except Exception as problem:  # noqa: BLE001  # ONNX Runtime's errors share no public base
            raise BadModel(f"ONNX Runtime cannot run the model: {_line(problem)}") from None


def _difference(network: onnx.ModelProto, images: NDArray[np.float32]) -> str:
    """What is wrong with a batch of two, in a few words; empty when nothing is."""
    try:
        singles = [run(network, images[index : index + 1]) for index in range(2)]
        pair = run(network, images)
    except BadModel as problem:
        return str(problem)
    for one, two, both in zip(*singles, pair, strict=True):
        wanted = np.concatenate([one, two]).astype(np.float64)
        if both.shape != wanted.shape:
            return f"a batch of 2 gives shape {list(both.shape)}, not {list(wanted.shape)}"
        scale = max(float(np.abs(wanted).max(initial=0)), 1e-6)
        if not np.allclose(both, wanted, rtol=0, atol=_WITHIN * scale):
            return "pictures of a batch disturb each other"
    return ""


def probe(count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Different pictures, float32 [count, 3, H, W] from 0 to 255."""
    random = np.random.default_rng(7)
    coarse = random.uniform(0, 255, (count, 3, -(-size[1] // 16), -(-size[0] // 16))).astype(np.float32)
    return np.ascontiguousarray(coarse.repeat(16, 2).repeat(16, 3)[:, :, : size[1], : size[0]])


def _quiet() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]
