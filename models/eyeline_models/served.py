"""A detector as the one graph that ONNX Runtime, Triton and TensorRT run.

Input `images` uint8 [B, H, W, 3] BGR, letterboxed; outputs `boxes` float32 [B, K, 6] (x1, y1, x2, y2, score,
class; best first; zeros behind the last) and `count` int32 [B]. Every shape but B is fixed, so that requests
can be batched; the first node is the Cast, and suppression is made of elementary operators, because
TensorRT's parser and builder refuse other orders and `NonMaxSuppression`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from eyeline_models.forms import Form
from eyeline_models.graph import IR_VERSION, OPSET, Graph

__all__ = ["ROUNDS", "Form", "Recipe", "build", "class_rows", "inner"]

# Each round of suppression settles one more link of a chain in which every box would suppress the next. Of
# a longer chain than this duplicates may stay, and nothing is lost.
ROUNDS: Final = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """What surrounds a network.

    input_size: width and height in pixels. rgb: the network wants RGB. scale, mean, std: of each channel in
    the network's order; the input is pixel * scale, less mean, by std. keep: the network's class indices that
    are served, in the order of the card's classes. outputs: names of the network's output(s), in the form's
    order. nms_iou: boxes of a class that overlap a better one by more are left out; None when none do.
    candidates: so many of the best are looked at by suppression. softmax: class scores are the softmax of the
    logits (DETR with "nothing" as a class) rather than their sigmoid. rounds: of suppression, an even number.
    """

    form: Form
    input_size: tuple[int, int]
    outputs: tuple[str, ...]
    keep: tuple[int, ...]
    classes_total: int
    floor: float
    max_detections: int
    rgb: bool = False
    scale: float = 1.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    nms_iou: float | None = 0.65
    candidates: int = 300
    softmax: bool = False
    rounds: int = ROUNDS


def build(network: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """The served graph around `network`, whose one input is float32 or float16 [B, 3, H, W].

    Raises ValueError when the network cannot be brought to an operator set that the graph can use.
    """
    network = _modern(network)
    graph = Graph(_opset(network))
    width, height = recipe.input_size
    _inline(graph, network, _preprocess(graph, recipe))
    scores, boxes = _FORMS[recipe.form](graph, recipe)
    _select(graph, recipe, scores, boxes)
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "eyeline",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", height, width, 3])],
            [
                helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["B", recipe.max_detections, 6]),
                helper.make_tensor_value_info("count", TensorProto.INT32, ["B"]),
            ],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=max(IR_VERSION, network.ir_version),
        producer_name="eyeline",
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _opset(network: onnx.ModelProto) -> int:
    versions = [entry.version for entry in network.opset_import if entry.domain in {"", "ai.onnx"}]
    return max(versions, default=1)


def _modern(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network in an operator set that this module's nodes are written for, at least."""
    if _opset(network) >= OPSET:
        return network
    try:
        return version_converter.convert_version(network, OPSET)
    except Exception as problem:  # noqa: BLE001  # the converter's errors share no public base
        reason = (str(problem).splitlines() or [""])[0][:160]
        raise ValueError(f"operator set {_opset(network)} cannot be raised to {OPSET}: {reason}") from None


def _preprocess(graph: Graph, recipe: Recipe) -> str:
    pixels = graph.op("Cast", "images", to=TensorProto.FLOAT)
    planes = graph.op("Transpose", pixels, perm=[0, 3, 1, 2])
    if recipe.rgb:
        planes = graph.op("Gather", planes, graph.ints([2, 1, 0]), axis=1)
    if recipe.scale != 1.0:
        planes = graph.op("Mul", planes, graph.floats(recipe.scale))
    if recipe.mean is not None:
        planes = graph.op("Sub", planes, graph.floats(np.reshape(recipe.mean, (1, 3, 1, 1))))
    if recipe.std is not None:
        planes = graph.op("Div", planes, graph.floats(np.reshape(recipe.std, (1, 3, 1, 1))))
    return planes


def _inline(graph: Graph, network: onnx.ModelProto, feed: str) -> None:
    """Put the network's nodes behind the preprocessing, every name of theirs behind a prefix of its own."""
    known = {tensor.name for tensor in network.graph.initializer}
    (entry,) = [value for value in network.graph.input if value.name not in known]
    if entry.type.tensor_type.elem_type == TensorProto.FLOAT16:
        feed = graph.op("Cast", feed, to=TensorProto.FLOAT16)
    half = {
        value.name
        for value in network.graph.output
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    for tensor in network.graph.initializer:
        stored = onnx.TensorProto()
        stored.CopyFrom(tensor)
        stored.name = inner(tensor.name)
        graph.initializers.append(stored)
    for node in network.graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.name = inner(node.name)
        copied.input[:] = [feed if name == entry.name else _within(name, half) for name in node.input]
        copied.output[:] = [_within(name, half) for name in node.output]
        graph.nodes.append(copied)
    for name in sorted(half):
        graph.op("Cast", _within(name, half), output=inner(name), to=TensorProto.FLOAT)


def _within(name: str, half: set[str]) -> str:
    """A tensor of the network; its float16 outputs step aside for their float32 twins."""
    return f"{inner(name)}/float16" if name in half else inner(name)


def inner(name: str) -> str:
    """The name that a tensor of the network has inside the served graph."""
    return f"network/{name}" if name else ""


def _yolox(graph: Graph, recipe: Recipe) -> tuple[str, str]:
    """Ge et al., "YOLOX: Exceeding YOLO Series in 2021": anchor-free cells at strides 8, 16 and 32."""
    width, height = recipe.input_size
    cells, strides = [], []
    for stride in (8, 16, 32):
        columns, rows = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        cells.append(np.stack([columns, rows], 2).reshape(-1, 2))
        strides.append(np.full((len(cells[-1]), 1), stride))
    cell = graph.floats(np.concatenate(cells)[None])
    stride_of = graph.floats(np.concatenate(strides)[None])
    names = [graph.name(part) for part in ("centre", "size", "objectness", "classes")]
    centre, size, objectness, classes = graph.ops(
        "Split", inner(recipe.outputs[0]), graph.ints([2, 2, 1, recipe.classes_total]), outputs=names, axis=2
    )
    centre = graph.op("Mul", graph.op("Add", centre, cell), stride_of)
    size = graph.op("Mul", graph.op("Exp", size), stride_of)
    scores = graph.op("Mul", _kept(graph, recipe, classes), objectness)
    return scores, _corners(graph, centre, size)


def _yolov8(graph: Graph, recipe: Recipe) -> tuple[str, str]:
    rows = graph.op("Transpose", inner(recipe.outputs[0]), perm=[0, 2, 1])
    names = [graph.name(part) for part in ("centre", "size", "classes")]
    centre, size, classes = graph.ops(
        "Split", rows, graph.ints([2, 2, recipe.classes_total]), outputs=names, axis=2
    )
    return _kept(graph, recipe, classes), _corners(graph, centre, size)


def _detr(graph: Graph, recipe: Recipe) -> tuple[str, str]:
    """Carion et al., "End-to-End Object Detection with Transformers", and its successors
    with sigmoid scores.
    """
    logits = inner(recipe.outputs[0])
    if recipe.softmax:
        scores = _kept(graph, recipe, graph.op("Softmax", logits, axis=2))
    else:
        scores = graph.op("Sigmoid", _kept(graph, recipe, logits))
    width, height = recipe.input_size
    boxes = graph.op("Mul", inner(recipe.outputs[1]), graph.floats([[[width, height, width, height]]]))
    names = [graph.name("centre"), graph.name("size")]
    centre, size = graph.ops("Split", boxes, graph.ints([2, 2]), outputs=names, axis=2)
    return scores, _corners(graph, centre, size)


def _centernet(graph: Graph, recipe: Recipe) -> tuple[str, str]:
    """Zhou et al., "Objects as Points": a peak of the heat map is an object."""
    width, height = (side // 4 for side in recipe.input_size)
    heat = inner(recipe.outputs[0])
    if recipe.keep != tuple(range(recipe.classes_total)):
        heat = graph.op("Gather", heat, graph.ints(recipe.keep), axis=1)
    highest = graph.op("MaxPool", heat, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    # No neighbour is higher.
    peak = graph.cast(graph.op("GreaterOrEqual", heat, highest), np.float32)
    heat = graph.op("Mul", heat, peak)
    flat = graph.ints([0, len(recipe.keep), width * height])
    scores = graph.op("Transpose", graph.op("Reshape", heat, flat), perm=[0, 2, 1])
    distances = graph.op("Reshape", inner(recipe.outputs[1]), graph.ints([0, 4, width * height]))
    distances = graph.op("Transpose", distances, perm=[0, 2, 1])
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    at = np.stack([columns, rows], 2).reshape(1, -1, 2).astype(np.float32) * 4
    signs = graph.op("Mul", distances, graph.floats([[[-1, -1, 1, 1]]]))
    return scores, graph.op("Add", signs, graph.floats(np.concatenate([at, at], 2)))


def _blazeface(graph: Graph, recipe: Recipe) -> tuple[str, str]:
    """Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs": two anchors in
    each cell of a fine grid, six in each of a coarse one, all square and of one size.
    """
    width, height = recipe.input_size
    centres = []
    for stride, anchors in ((16, 2), (32, 6)):
        columns, rows = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        cells = (np.stack([columns, rows], 2).reshape(-1, 2) + 0.5) * stride
        centres.append(np.repeat(cells, anchors, axis=0))
    fine_scores, fine_boxes, coarse_scores, coarse_boxes = map(inner, recipe.outputs)
    scores = graph.op("Sigmoid", graph.op("Concat", fine_scores, coarse_scores, axis=1))
    rows_of = graph.op("Concat", fine_boxes, coarse_boxes, axis=1)
    names = [graph.name(part) for part in ("centre", "size", "points")]
    centre, size, _ = graph.ops("Split", rows_of, graph.ints([2, 2, 12]), outputs=names, axis=2)
    centre = graph.op("Add", centre, graph.floats(np.concatenate(centres)[None]))
    return scores, _corners(graph, centre, size)


_FORMS: Final = {
    Form.BLAZEFACE: _blazeface,
    Form.YOLOX: _yolox,
    Form.YOLOV8: _yolov8,
    Form.DETR: _detr,
    Form.CENTERNET: _centernet,
}


def _kept(graph: Graph, recipe: Recipe, classes: str) -> str:
    if recipe.keep == tuple(range(recipe.classes_total)):
        return classes
    return graph.op("Gather", classes, graph.ints(recipe.keep), axis=2)


def _corners(graph: Graph, centre: str, size: str) -> str:
    half = graph.op("Mul", size, graph.floats(0.5))
    return graph.op("Concat", graph.op("Sub", centre, half), graph.op("Add", centre, half), axis=2)


def _select(graph: Graph, recipe: Recipe, scores: str, boxes: str) -> None:
    """From scores [B, N, C] and boxes [B, N, 4] to the outputs."""
    best = graph.reduce("ReduceMax", scores, [2], keepdims=0)
    which = graph.cast(graph.op("ArgMax", scores, axis=2, keepdims=0), np.float32)
    candidates = max(recipe.candidates, recipe.max_detections) if recipe.nms_iou else recipe.max_detections
    top, index = graph.ops(
        "TopK", best, graph.ints([candidates]), outputs=[graph.name("top"), graph.name("index")], axis=1
    )
    box_index = graph.op("Expand", _column(graph, index), graph.ints([1, 1, 4]))
    found = graph.op("GatherElements", boxes, box_index, axis=1)
    classes = graph.op("GatherElements", which, index, axis=1)
    served = graph.op("GreaterOrEqual", top, graph.floats(recipe.floor))
    if recipe.nms_iou:
        kept = _suppress(graph, found, classes, recipe.nms_iou, candidates, rounds=recipe.rounds)
        served = graph.op("And", served, graph.op("Greater", kept, graph.floats(0.5)))
    rows = graph.op("Concat", found, _column(graph, top), _column(graph, classes), axis=2)
    # Served rows to the front, best first. Where rather than Mul: a box may be infinite.
    order = graph.op("Where", served, top, graph.floats(0.0))
    ordered, places = graph.ops(
        "TopK",
        order,
        graph.ints([recipe.max_detections]),
        outputs=[graph.name("order"), graph.name("place")],
        axis=1,
    )
    row_index = graph.op("Expand", _column(graph, places), graph.ints([1, 1, 6]))
    rows = graph.op("GatherElements", rows, row_index, axis=1)
    in_place = graph.op("Greater", ordered, graph.floats(0.0))
    graph.op("Where", _column(graph, in_place), rows, graph.floats(0.0), output="boxes")
    total = graph.op("ReduceSum", graph.cast(in_place, np.float32), graph.ints([1]), keepdims=0)
    graph.op("Cast", total, output="count", to=TensorProto.INT32)


def _suppress(graph: Graph, boxes: str, classes: str, iou: float, count: int, *, rounds: int) -> str:
    """1 for what greedy suppression keeps, else 0, float32 [B, K]; boxes come best first.

    Greedy suppression is the fixed point of "kept unless a kept better one of my class overlaps me", reached
    after as many rounds as the longest chain of such pairs has links. An even number of rounds keeps at least
    what greedy suppression keeps.
    """
    left, top, right, bottom = graph.columns(boxes, 4)
    across = [_row(graph, side) for side in (left, top, right, bottom)]
    width = _overlap(graph, left, right, across[0], across[2])
    height = _overlap(graph, top, bottom, across[1], across[3])
    shared = graph.op("Mul", width, height)
    area = graph.op("Mul", graph.op("Sub", right, left), graph.op("Sub", bottom, top))
    union = graph.op("Sub", graph.op("Add", area, _row(graph, area)), shared)
    overlaps = graph.op("Greater", shared, graph.op("Mul", union, graph.floats(iou)))
    of_class = _column(graph, classes)
    difference = graph.op("Abs", graph.op("Sub", of_class, _row(graph, of_class)))
    same = graph.op("Less", difference, graph.floats(0.5))
    # Row i, column j: j is better than i and would suppress it.
    places = np.arange(count, dtype=np.float32)
    better = graph.op(
        "Greater", graph.floats(places.reshape(1, -1, 1)), graph.floats(places.reshape(1, 1, -1))
    )
    pairs = graph.cast(graph.op("And", graph.op("And", overlaps, same), better), np.float32)
    # One round is Relu(1 - pairs @ kept); a last column of ones makes that a single product.
    padded = graph.op("Pad", pairs, graph.ints([0, 0, 0, 0, 1, 1]))
    step = graph.op("Sub", graph.floats((np.arange(count + 1) == count).reshape(1, 1, -1)), padded)
    kept = graph.op(
        "Relu", graph.op("Sub", graph.floats(1.0), graph.reduce("ReduceMax", padded, [2], keepdims=1))
    )
    for _ in range(min(rounds, count + count % 2) - 1):
        kept = graph.op("Relu", graph.op("MatMul", step, kept))
    kept = graph.op("Slice", kept, graph.ints([0]), graph.ints([count]), graph.ints([1]))
    return graph.op("Squeeze", kept, graph.ints([2]))


def _overlap(graph: Graph, low: str, high: str, other_low: str, other_high: str) -> str:
    span = graph.op("Sub", graph.op("Min", high, other_high), graph.op("Max", low, other_low))
    return graph.op("Relu", span)


def _column(graph: Graph, value: str) -> str:
    return graph.op("Unsqueeze", value, graph.ints([2]))


def _row(graph: Graph, column: str) -> str:
    return graph.op("Transpose", column, perm=[0, 2, 1])


def class_rows(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Indices of the wanted classes among a network's; raises ValueError for one it does not have."""
    return tuple(list(names).index(name) for name in wanted)
