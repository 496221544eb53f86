"""The served graph: its suppression is a plain greedy one, and its answers do not depend on the batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from eyeline_models import catalogue
from eyeline_models.served import ROUNDS, Form, Recipe, build
from tests.support.models_networks import greedy

SIDE, CLASSES, ROWS, IOU, FLOOR = 32, 3, 256, 0.5, 0.1
# The pixels of a 3 x 32 x 32 picture carry the numbers of the rows: a network of one Reshape.
WIDE = 4 + CLASSES


@cache
def session() -> Any:
    """A YOLOv8-like model that answers what its pictures' bytes say, so that a test can feed boxes."""
    nodes = [
        helper.make_node("Reshape", ["pixels", "all"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "stop", "axis"], ["used"]),
        helper.make_node("Reshape", ["used", "shape"], ["bytes"]),
        helper.make_node("Mul", ["bytes", "units"], ["answers"]),
    ]
    units = np.ones((1, WIDE, 1), np.float32)
    units[:, 4:] = 1 / 255
    constants = [
        onnx.numpy_helper.from_array(np.array([0, -1], np.int64), "all"),
        onnx.numpy_helper.from_array(np.array([0], np.int64), "start"),
        onnx.numpy_helper.from_array(np.array([WIDE * ROWS], np.int64), "stop"),
        onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"),
        onnx.numpy_helper.from_array(np.array([0, WIDE, ROWS], np.int64), "shape"),
        onnx.numpy_helper.from_array(units, "units"),
    ]
    network = helper.make_model(
        helper.make_graph(
            nodes,
            "echo",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["B", WIDE, ROWS])],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    recipe = Recipe(
        form=Form.YOLOV8,
        input_size=(SIDE, SIDE),
        outputs=("answers",),
        keep=tuple(range(CLASSES)),
        classes_total=CLASSES,
        floor=FLOOR,
        max_detections=ROWS,
        candidates=ROWS,
        nms_iou=IOU,
    )
    return onnxruntime.InferenceSession(
        build(network, recipe).SerializeToString(), providers=["CPUExecutionProvider"]
    )


Found = tuple[int, int, int, int, int, int]  # centre x, y, width, height, score, class: 0 to 255


def as_picture(found: list[Found]) -> NDArray[np.uint8]:
    answers = np.zeros((WIDE, ROWS), np.uint8)
    for column, (x, y, width, height, score, kind) in enumerate(found):
        answers[:4, column] = x, y, width, height
        answers[4 + kind, column] = score
    planes = np.zeros(3 * SIDE * SIDE, np.uint8)
    planes[: answers.size] = answers.ravel()
    return planes.reshape(3, SIDE, SIDE).transpose(1, 2, 0)


def served(*pictures: list[Found]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    boxes, count = session().run(["boxes", "count"], {"images": np.stack([as_picture(p) for p in pictures])})
    return boxes, count


def plain(found: list[Found]) -> NDArray[np.float32]:
    """What a plain greedy suppression keeps, as served rows."""
    seen = [f for f in found if f[4] / 255 >= FLOOR]
    boxes = np.array([[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h, *_ in seen]).reshape(-1, 4)
    kept = greedy(boxes, [f[4] for f in seen], [f[5] for f in seen], IOU)
    rows = [[*boxes[k], seen[k][4] / 255, seen[k][5]] for k in kept]
    return np.array(rows, np.float32).reshape(-1, 6)


def same(found: list[Found]) -> None:
    boxes, count = served(found)
    wanted = plain(found)
    assert count[0] == len(wanted)
    np.testing.assert_allclose(boxes[0, : count[0]], wanted, atol=1e-5)
    assert not boxes[0, count[0] :].any()


@st.composite
def scenes(draw: st.DrawFn, most: int = 60) -> list[Found]:
    """Crowded boxes with different scores, so that the order of suppression is one."""
    count = draw(st.integers(0, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([4, 20, 100]))
    scores = random.permutation(np.arange(1, 256))[:count]
    xy = random.integers(100, 100 + spread, (count, 2))
    wh = random.integers(*draw(st.sampled_from([(1, 60), (30, 40)])), (count, 2))
    kinds = random.integers(0, draw(st.integers(1, CLASSES)), count)
    rows = np.column_stack([xy, wh, scores, kinds]).tolist()
    return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in rows]


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_suppression_is_the_plain_greedy_one(found: list[Found]) -> None:
    same(found)


@pytest.mark.parametrize("links", [2, 3, 4, 15, 16, 17, 40, ROUNDS])
@pytest.mark.parametrize("forward", [True, False])
def test_a_chain_in_which_each_would_suppress_the_next(links: int, forward: bool) -> None:
    step = 3 if links < 60 else 2
    places = range(links) if forward else range(links - 1, -1, -1)
    # Neighbours overlap by 7/13 or 5/9, those two apart by 4/16 or 3/11.
    width = 10 if step == 3 else 7
    found: list[Found] = [(10 + step * at, 100, width, 40, 250 - rank, 0) for rank, at in enumerate(places)]
    assert len(plain(found)) == -(-links // 2)
    same(found)


def test_of_a_chain_longer_than_the_rounds_nothing_is_lost() -> None:
    found: list[Found] = [(10 + 2 * at, 100, 7, 40, 250 - at, 0) for at in range(ROUNDS + 40)]
    boxes, count = served(found)
    wanted = {tuple(row) for row in np.round(plain(found), 3).tolist()}
    assert wanted <= {tuple(row) for row in np.round(boxes[0, : count[0]], 3).tolist()}


def test_classes_do_not_suppress_one_another() -> None:
    found: list[Found] = [(100, 100, 40, 40, 200, 0), (100, 100, 40, 40, 190, 1), (101, 100, 40, 40, 180, 1)]
    boxes, count = served(found)
    assert count[0] == 2
    assert boxes[0, :2, 5].tolist() == [0, 1]


def test_what_is_below_the_floor_is_not_served() -> None:
    found: list[Found] = [(50, 50, 20, 20, 25, 0), (150, 50, 20, 20, 26, 0)]
    boxes, count = served(found)
    assert count[0] == 1
    assert boxes[0, 0, 4] == pytest.approx(26 / 255)


@settings(max_examples=30, deadline=None)
@given(st.lists(scenes(30), min_size=2, max_size=5))
def test_a_batch_answers_as_each_picture_alone(pictures: list[list[Found]]) -> None:
    together, counts = served(*pictures)
    for index, picture in enumerate(pictures):
        alone, count = served(picture)
        np.testing.assert_array_equal(together[index], alone[0])
        assert counts[index] == count[0]


def test_no_boxes_at_all() -> None:
    boxes, count = served([])
    assert count.tolist() == [0]
    assert not boxes.any()


@pytest.mark.parametrize("name", ["centernet-mobilenetv3", "centernet-mobilenetv3-288"])
def test_bundled_model_keeps_the_contract(name: str) -> None:
    card = catalogue.load(name)
    model = onnx.load(card.path)
    forbidden = {"NonMaxSuppression", "NonZero", "Loop", "If", "Scan", "Unique", "Compress"}
    assert not forbidden & {node.op_type for node in model.graph.node}
    (entry,) = model.graph.input
    assert entry.name == "images"
    assert entry.type.tensor_type.elem_type == TensorProto.UINT8
    assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]
    assert model.graph.node[0].op_type == "Cast"
    width, height = card.input_size
    assert [d.dim_value for d in entry.type.tensor_type.shape.dim][1:] == [height, width, 3]
    boxes, count = model.graph.output
    assert [d.dim_value for d in boxes.type.tensor_type.shape.dim] == [0, card.max_detections, 6]
    assert (boxes.name, count.name) == ("boxes", "count")
    assert count.type.tensor_type.elem_type == TensorProto.INT32
    # Every tensor's shape is known beforehand but for the batch.
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for value in inferred.graph.value_info:
        assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim[1:]), value.name
