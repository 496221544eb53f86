"""The face model's surroundings: anchors where the network thinks they are, and faces where they are."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from eyeline_models import catalogue
from eyeline_models.runtime import Detector
from eyeline_models.served import Form, Recipe, build

ROWS = {
    "fine_scores": (512, 1),
    "fine_boxes": (512, 16),
    "coarse_scores": (384, 1),
    "coarse_boxes": (384, 16),
}


def served(**rows: dict[int, list[float]]) -> Any:
    """A served model whose network answers these rows whatever it sees, and no face elsewhere."""
    constants, nodes = [], [helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=1)]
    nodes += [
        helper.make_node("Mul", ["mean", "zero"], ["nought"]),
        helper.make_node("Reshape", ["nought", "shape"], ["flat"]),
    ]
    constants.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    constants.append(onnx.numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "shape"))
    for name, shape in ROWS.items():
        values = np.full((1, *shape), -20 if name.endswith("scores") else 0, np.float32)
        for row, numbers in rows.get(name, {}).items():
            values[0, row, : len(numbers)] = numbers
        constants.append(onnx.numpy_helper.from_array(values, f"{name}_values"))
        nodes.append(helper.make_node("Add", ["flat", f"{name}_values"], [name]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, 256, 256])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", *shape]) for n, shape in ROWS.items()],
        constants,
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    recipe = Recipe(
        form=Form.BLAZEFACE,
        input_size=(256, 256),
        outputs=tuple(ROWS),
        keep=(0,),
        classes_total=1,
        floor=0.1,
        max_detections=10,
        candidates=20,
        nms_iou=0.3,
    )
    return onnxruntime.InferenceSession(
        build(network, recipe).SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    ("grid", "row", "centre"),
    [
        # Two anchors a cell of 16 pixels, rows of cells first; six a cell of 32.
        ("fine", 0, (8, 8)),
        ("fine", 3, (24, 8)),
        ("fine", 2 * 16 * 5 + 2 * 7 + 1, (120, 88)),
        ("fine", 511, (248, 248)),
        ("coarse", 5, (16, 16)),
        ("coarse", 6 * 8 * 2 + 6 * 3, (112, 80)),
        ("coarse", 383, (240, 240)),
    ],
)
def test_anchors(grid: str, row: int, centre: tuple[float, float]) -> None:
    rows = {f"{grid}_scores": {row: [2.0]}, f"{grid}_boxes": {row: [3.0, -2.0, 20.0, 30.0]}}
    boxes, count = served(**rows).run(None, {"images": np.zeros((2, 256, 256, 3), np.uint8)})
    assert count.tolist() == [1, 1]
    x, y = centre[0] + 3, centre[1] - 2
    score = 1 / (1 + np.exp(-2.0))
    assert boxes[1, 0] == pytest.approx([x - 10, y - 15, x + 10, y + 15, score, 0], abs=1e-4)


def drawn_face() -> NDArray[np.uint8]:
    """Skin, hair, eyes, nose and mouth, uint8 [256, 256, 3] BGR; the face from about 86, 72 to 170, 184."""
    canvas = np.full((256, 256, 3), 120, np.uint8)
    cv2.ellipse(canvas, (128, 128), (42, 56), 0, 0, 360, (140, 170, 220), -1)
    cv2.ellipse(canvas, (128, 90), (44, 28), 0, 180, 360, (30, 40, 60), -1)
    for x in (110, 146):
        cv2.ellipse(canvas, (x, 118), (9, 5), 0, 0, 360, (250, 250, 250), -1)
        cv2.circle(canvas, (x, 118), 4, (40, 30, 20), -1)
        cv2.ellipse(canvas, (x, 107), (11, 3), 0, 180, 360, (30, 40, 60), -1)
    cv2.line(canvas, (128, 120), (124, 140), (110, 135, 185), 3)
    cv2.line(canvas, (124, 140), (132, 141), (100, 125, 175), 3)
    cv2.ellipse(canvas, (128, 156), (16, 5), 0, 0, 360, (90, 80, 190), -1)
    return np.asarray(cv2.GaussianBlur(canvas, (5, 5), 1.2), np.uint8)


def test_bundled_model_sees_a_drawn_face_and_none_on_a_grey_wall() -> None:
    card = catalogue.load("blazeface-back")
    assert card.classes == ("face",)
    model, letterbox = Detector(card), card.letterbox(256, 256)
    boxes, count = model.run(np.stack([drawn_face(), np.full((256, 256, 3), 120, np.uint8)]))
    face, wall = (catalogue.detections(card, boxes[i], int(count[i]), letterbox) for i in range(2))
    assert face.class_names == ("face",)
    assert face.boxes[0] == pytest.approx([85, 99, 170, 185], abs=8)
    assert not len(wall)
