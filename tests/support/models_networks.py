"""Small ONNX detectors of every form, whose answers are known: what a user might bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper


def constant_network(
    path: Path,
    outputs: dict[str, ArrayLike],
    *,
    size: tuple[int | str, int | str] = (64, 64),
    batch: int | str = 1,
    fixed_reshape: bool = False,
    opset: int = 17,
    half: bool = False,
) -> Path:
    """A network that answers `outputs` [1, ...] plus the mean of the red, green and blue planes, weighted.

    The answer of a picture is its constant times (1 + mean / 10000), with the first channel of the input
    counted twice, so that pictures of a batch, and the order of channels, can be told apart. fixed_reshape:
    the export has a Reshape whose constant says one picture. size: width and height, or names where free.
    """
    kind, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = np.array([2, 1, 1], number).reshape(1, 3, 1, 1)
    nodes = [
        helper.make_node("Mul", ["pixels", "weights"], ["weighted"]),
        helper.make_node("GlobalAveragePool", ["weighted"], ["means"]),
        helper.make_node("Conv", ["means", "sum"], ["mean"], kernel_shape=[1, 1]),
        helper.make_node("Add", ["mean", "one"], ["factor"]),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.full((1, 3, 1, 1), 1e-4, number), "sum"),
        numpy_helper.from_array(np.array(1, number), "one"),
    ]
    for name, value in outputs.items():
        array = np.asarray(value, number)
        shape = [1, *[1] * (array.ndim - 1)] if fixed_reshape else [-1, *[1] * (array.ndim - 1)]
        constants.append(numpy_helper.from_array(array, f"{name}_value"))
        constants.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}_shape"))
        nodes.append(helper.make_node("Reshape", ["factor", f"{name}_shape"], [f"{name}_factor"]))
        nodes.append(helper.make_node("Mul", [f"{name}_factor", f"{name}_value"], [name]))
    width, height = size
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", kind, [batch, 3, height, width])],
        [
            helper.make_tensor_value_info(name, kind, [batch, *np.shape(value)[1:]])
            for name, value in outputs.items()
        ],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def cells(width: int, height: int) -> int:
    """How many places YOLOX answers for."""
    return sum((width // stride) * (height // stride) for stride in (8, 16, 32))


def yolox_values(width: int, height: int, classes: int) -> NDArray[np.float32]:
    """[1, N, 5 + C]: class 1 at column 2, row 3 of the finest grid, centred at (20, 28), 16 by 8 pixels."""
    made = np.zeros((1, cells(width, height), 5 + classes), np.float32)
    row = made[0, 3 * (width // 8) + 2]
    row[:4] = 0.5, 0.5, np.log(2), np.log(1)
    row[4], row[6] = 0.9, 0.8
    return made


def yolov8_values(rows: int, classes: int) -> NDArray[np.float32]:
    """[1, 4 + C, N]: class 1 centred at (20, 28), 16 by 8 pixels, twice, the second with a lower score."""
    made = np.zeros((1, 4 + classes, rows), np.float32)
    made[0, :4, 5] = made[0, :4, 9] = 20, 28, 16, 8
    made[0, 5, 5], made[0, 5, 9] = 0.72, 0.6
    return made


def detr_values(rows: int, classes: int, size: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    """logits [1, N, C] and boxes [1, N, 4]: class 1 centred at (20, 28), 16 by 8 pixels."""
    logits = np.full((1, rows, classes), -8, np.float32)
    logits[0, 4, 1] = 1
    boxes = np.full((1, rows, 4), 0.25, np.float32)
    boxes[0, 4] = np.array([20, 28, 16, 8]) / np.array([*size, *size])
    return {"pred_logits": logits, "pred_boxes": boxes}


def centernet_values(width: int, height: int, classes: int) -> dict[str, NDArray[np.float32]]:
    """Heat map and distances: class 1 at (20, 28), 16 by 8 pixels, its neighbour only a shoulder."""
    heat = np.full((1, classes, height // 4, width // 4), 0.01, np.float32)
    heat[0, 1, 7, 5], heat[0, 1, 7, 6] = 0.72, 0.6
    distances = np.ones((1, 4, height // 4, width // 4), np.float32)
    distances[0, :, 7, 5] = distances[0, :, 7, 6] = 8, 4, 8, 4
    return {"heat": heat, "distances": distances}


def greedy(
    boxes: NDArray[np.float64], scores: Sequence[float], classes: Sequence[int], iou: float
) -> list[int]:
    """Plain greedy suppression, one box at a time; the indices kept, best first."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(classes[index] != classes[k] or overlap(boxes[index], boxes[k]) <= iou for k in kept):
            kept.append(index)
    return kept


def overlap(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (two[2] - two[0]) * (two[3] - two[1])
    return float(shared / (areas - shared))
