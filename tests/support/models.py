"""Tiny graphs with the contract of a served model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def tiny_model(path: Path, *, height: int = 32, width: int = 48, rows: int = 4, scale: float = 1) -> Path:
    """A graph whose answer tells the image apart: row 0 scores the mean of the pixels.

    boxes[:, 0] = (0, 0, width, height, scale * mean / 255, 0), the other rows are zero, count is 1.
    """
    box = np.zeros((1, rows, 6), np.float32)
    box[0, 0, 2:4] = width, height
    score = np.zeros((1, rows, 6), np.float32)
    score[0, 0, 4] = scale / 255
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["means"]),
        helper.make_node("Mul", ["means", "score"], ["scores"]),
        helper.make_node("Add", ["scores", "box"], ["boxes"]),
        helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
        helper.make_node("Cast", ["zeros"], ["integers"], to=TensorProto.INT32),
        helper.make_node("Add", ["integers", "one"], ["count"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "column"),
        numpy_helper.from_array(score, "score"),
        numpy_helper.from_array(box, "box"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(1, np.int32), "one"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", height, width, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["B", rows, 6]),
            helper.make_tensor_value_info("count", TensorProto.INT32, ["B"]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
