"""A user's ONNX file becomes a served model, or one clear line says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from eyeline_models.catalogue import ModelCard, detections, load
from eyeline_models.coco import COCO
from eyeline_models.errors import BadModel, ModelError
from eyeline_models.importing import Wish, bring, read_classes
from eyeline_models.runtime import Detector
from eyeline_models.served import Form
from tests.support import models_networks as networks
from tests.support.models_networks import constant_network

NAMES = ("cat", "dog", "bird")
SHARED = Path(__file__).parents[3] / "shared" / "data"
WHOLE = np.array([[12, 24, 28, 32, 0.72, 1]], np.float32)


def outputs_of(form: Form, classes: int = 3) -> dict[str, Any]:
    if form is Form.YOLOX:
        return {"output": networks.yolox_values(64, 64, classes)}
    if form is Form.YOLOV8:
        return {"output0": networks.yolov8_values(84, classes)}
    if form is Form.DETR:
        return networks.detr_values(20, classes, (64, 64))
    return networks.centernet_values(64, 64, classes)


def run(card: ModelCard, *images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    return Detector(card).run(np.stack(images))


def flat(blue: int, green: int, red: int) -> NDArray[np.uint8]:
    return np.full((64, 64, 3), (blue, green, red), np.uint8)


BLACK = flat(0, 0, 0)


# BlazeFace is converted by a script of ours, not imported.
@pytest.mark.parametrize("form", [form for form in Form if form is not Form.BLAZEFACE])
@pytest.mark.parametrize("export", ["free batch", "one picture", "one picture, old operators", "float16"])
def test_every_form(form: Form, export: str, tmp_path: Path) -> None:
    file = constant_network(
        tmp_path / "theirs.onnx",
        outputs_of(form),
        batch="N" if export == "free batch" else 1,
        fixed_reshape=export.startswith("one"),
        opset=11 if "old" in export else 17,
        half=export == "float16",
    )
    card = bring(file, Wish(name="mine", classes=NAMES, threshold=0.3), tmp_path / "models")
    assert card.form == form
    assert card.classes == NAMES
    assert load("mine", (tmp_path / "models",)).sha256 == card.sha256
    boxes, count = run(card, BLACK)
    wanted = WHOLE.copy()
    if form is Form.DETR:
        wanted[0, 4] = 1 / (1 + np.exp(-1))
    assert count.tolist() == [1]
    np.testing.assert_allclose(boxes[0, :1], wanted, atol=0.02 if export == "float16" else 1e-4)
    assert not boxes[0, 1:].any()
    # Different pictures in a batch are answered as alone.
    pictures = BLACK, flat(200, 30, 90), flat(10, 220, 0)
    together, counts = run(card, *pictures)
    for index, picture in enumerate(pictures):
        alone, number = run(card, picture)
        np.testing.assert_allclose(together[index], alone[0], atol=1e-3)
        assert counts[index] == number[0]


def score(card: ModelCard, picture: NDArray[np.uint8]) -> float:
    boxes, _ = run(card, picture)
    return float(boxes[0, 0, 4])


@pytest.mark.parametrize(
    ("wish", "blue", "red"),
    [
        ({"scale": 1.0}, 0.0255, 0.051),
        ({"scale": 1.0, "rgb": False}, 0.051, 0.0255),
        ({"scale": 0.5}, 0.01275, 0.0255),
        ({}, 1e-4, 2e-4),
    ],
)
def test_colours_and_scale_are_the_forms_or_as_stated(
    wish: dict[str, Any], blue: float, red: float, tmp_path: Path
) -> None:
    # The network counts its first channel twice; a yolov8 model gets RGB from 0 to 1.
    values = outputs_of(Form.YOLOV8)
    file = constant_network(tmp_path / "theirs.onnx", values)
    card = bring(file, Wish(name="mine", classes=NAMES, **wish), tmp_path)
    black = score(card, BLACK)
    assert score(card, flat(255, 0, 0)) / black - 1 == pytest.approx(blue, rel=0.02, abs=2e-6)
    assert score(card, flat(0, 0, 255)) / black - 1 == pytest.approx(red, rel=0.02, abs=2e-6)


def test_yolox_gets_bgr_from_0_to_255(tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.YOLOX))
    card = bring(file, Wish(name="mine", classes=NAMES), tmp_path)
    # Objectness and class score both grow by 1 + mean / 10000.
    assert score(card, flat(100, 0, 0)) / score(card, BLACK) == pytest.approx(1.02**2, rel=1e-3)
    assert (card.fill, card.centred) == (114, False)


def test_imagenet_normalization(tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.YOLOV8))
    card = bring(file, Wish(name="mine", classes=NAMES, imagenet=True), tmp_path)
    mean = np.rint(np.array([0.406, 0.456, 0.485]) * 255).astype(int)
    assert score(card, flat(*mean.tolist())) == pytest.approx(0.72, rel=1e-3)


def test_coco_is_the_default_list(tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.YOLOX, 80))
    assert bring(file, Wish(name="mine"), tmp_path).classes == COCO
    assert len(COCO) == len(set(COCO)) == 80


def test_classes_of_a_file_of_which_some_are_not_served(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("N/A\ntraffic light\n-\n")
    names = read_classes(tmp_path / "names.txt")
    assert names == ("N/A", "traffic_light", "-")
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.CENTERNET))
    card = bring(file, Wish(name="mine", classes=names), tmp_path)
    assert card.classes == ("traffic_light",)
    boxes, _ = run(card, BLACK)
    assert boxes[0, 0, 5] == 0


def test_detr_with_nothing_as_a_class_is_a_softmax(tmp_path: Path) -> None:
    values = networks.detr_values(20, 4, (64, 64))
    values["pred_logits"][0, :, 3] = 8
    values["pred_logits"][0, 4] = 0, 3, 0, 1
    file = constant_network(tmp_path / "theirs.onnx", values)
    card = bring(file, Wish(name="mine", classes=NAMES, threshold=0.2), tmp_path)
    boxes, count = run(card, BLACK)
    assert count.tolist() == [1]
    assert boxes[0, 0, 4] == pytest.approx(np.exp(3) / (np.exp(3) + np.exp(1) + 2), abs=1e-4)


def test_a_free_input_size_is_stated(tmp_path: Path) -> None:
    values = {"output": networks.yolox_values(96, 64, 3)}
    file = constant_network(tmp_path / "theirs.onnx", values, size=("w", "h"))
    refused(file, Wish(name="mine", classes=NAMES), tmp_path, "--size")
    card = bring(file, Wish(name="mine", classes=NAMES, size=(96, 64)), tmp_path)
    assert card.input_size == (96, 64)


def test_further_outputs_only_when_the_form_is_asked_for(tmp_path: Path) -> None:
    values = {**outputs_of(Form.YOLOX), "masks": np.zeros((1, 32, 7, 7), np.float32)}
    file = constant_network(tmp_path / "theirs.onnx", values)
    refused(file, Wish(name="mine", classes=NAMES), tmp_path, "not of a form", "masks [1, 32, 7, 7]")
    assert bring(file, Wish(name="mine", classes=NAMES, form=Form.YOLOX), tmp_path).form == "yolox"


def refused(file: Path, wish: Wish, into: Path, *parts: str, kind: type[ModelError] = BadModel) -> None:
    with pytest.raises(kind) as caught:
        bring(file, wish, into)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert not (into / wish.name).exists()
    assert not [path for path in into.iterdir() if path.name.startswith(".importing")]


@pytest.mark.parametrize(
    ("outputs", "parts"),
    [
        ({"boxes": np.zeros((1, 300, 6))}, ("not of a form", "boxes [1, 300, 6]", "yolox", "N = 84")),
        ({"output": np.zeros((1, 252, 8))}, ("output [1, 252, 8]",)),
        ({"classes": np.zeros((1, 1000))}, ("classes [1, 1000]",)),
        ({"output": networks.yolox_values(64, 64, 3) + 200.0}, ("decoded already",)),
        ({"output0": networks.yolov8_values(84, 3) - 3}, ("scores reach", "0 to 1")),
        ({"output0": networks.yolov8_values(84, 5)}, ("tells 5 classes", "names 3")),
        ({"output0": networks.yolov8_values(84, 3) + np.inf}, ("not finite",)),
    ],
)
def test_another_form_is_refused(outputs: dict[str, Any], parts: tuple[str, ...], tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs)
    refused(file, Wish(name="mine", classes=NAMES), tmp_path, "theirs.onnx", *parts)


def test_a_class_list_is_needed(tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.YOLOX))
    refused(file, Wish(name="mine"), tmp_path, "3 classes", "--classes FILE")


def test_a_fixed_size_stays(tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.YOLOX))
    refused(file, Wish(name="mine", classes=NAMES, size=(128, 128)), tmp_path, "fixed, 64x64", "128x128")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    file = tmp_path / "theirs.onnx"
    wish = Wish(name="mine", classes=NAMES)
    refused(file, wish, tmp_path, "theirs.onnx", "No such file")
    for junk in (b"", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"hello, I am text\n" * 20):
        file.write_bytes(junk)
        refused(file, wish, tmp_path, "theirs.onnx", "not an ONNX file")
    constant_network(file, outputs_of(Form.YOLOX))
    whole = file.read_bytes()
    for length in (len(whole) // 3, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:length])
        refused(file, wish, tmp_path, "theirs.onnx")


def test_weights_in_another_file(tmp_path: Path) -> None:
    source = constant_network(tmp_path / "whole.onnx", outputs_of(Form.YOLOX))
    file = tmp_path / "theirs.onnx"
    onnx.save(onnx.load(source), file, save_as_external_data=True, location="weights.bin", size_threshold=16)
    wish = Wish(name="mine", classes=NAMES)
    card = bring(file, wish, tmp_path / "good")
    assert run(card, BLACK)[1].tolist() == [1]
    (tmp_path / "weights.bin").unlink()
    refused(file, wish, tmp_path, "weights", "missing")


def edited(path: Path, *nodes: onnx.NodeProto, **constants: Any) -> Path:
    """The YOLOX network with nodes between its answer, now called `raw`, and `output`."""
    model = onnx.load(constant_network(path, outputs_of(Form.YOLOX)))
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    onnx.save(model, path)
    return path


def test_an_export_that_cannot_be_batched(tmp_path: Path) -> None:
    wish = Wish(name="mine", classes=NAMES)
    head = edited(
        tmp_path / "concat.onnx",
        helper.make_node("Concat", ["first", "rest"], ["output"], axis=1),
        helper.make_node("Slice", ["raw", "begin", "end", "axis"], ["rest"]),
        first=np.zeros((1, 1, 8), np.float32),
        begin=np.array([1]),
        end=np.array([10_000]),
        axis=np.array([1]),
    )
    model = onnx.load(head)
    model.graph.node.extend([model.graph.node.pop(-2)])
    onnx.save(model, head)
    refused(head, wish, tmp_path, "one picture at a time", "free batch size")
    mixed = edited(
        tmp_path / "mixed.onnx",
        helper.make_node("ReduceMax", ["raw"], ["high"], axes=[0], keepdims=1),
        helper.make_node("Max", ["raw", "high"], ["output"]),
    )
    refused(mixed, wish, tmp_path, "one picture at a time", "disturb each other")


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    wish = Wish(name="mine", classes=NAMES)
    foreign = edited(tmp_path / "a.onnx", helper.make_node("Own", ["raw"], ["output"], domain="com.acme"))
    model = onnx.load(foreign)
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    onnx.save(model, foreign)
    refused(foreign, wish, tmp_path, "com.acme")
    moving = edited(
        tmp_path / "b.onnx",
        helper.make_node("NonZero", ["raw"], ["places"]),
        helper.make_node("Identity", ["raw"], ["output"]),
    )
    refused(moving, wish, tmp_path, "NonZero", "bare network")


def test_inputs_that_are_no_pictures(tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.YOLOX))
    model = onnx.load(file)
    model.graph.input.append(helper.make_tensor_value_info("scale_factor", TensorProto.FLOAT, [1, 2]))
    onnx.save(model, tmp_path / "two.onnx")
    refused(tmp_path / "two.onnx", Wish(name="mine"), tmp_path, "one input", "pixels, scale_factor")
    model = onnx.load(file)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 64, 64, 3]))
    onnx.save(model, tmp_path / "last.onnx")
    refused(tmp_path / "last.onnx", Wish(name="mine"), tmp_path, "[1, 64, 64, 3]", "[1, 3, height, width]")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [4, 3, 64, 64]))
    onnx.save(model, tmp_path / "four.onnx")
    refused(tmp_path / "four.onnx", Wish(name="mine"), tmp_path, "4 pictures at a time")


def test_names_and_thresholds_and_what_exists_already(tmp_path: Path) -> None:
    file = constant_network(tmp_path / "theirs.onnx", outputs_of(Form.YOLOX))
    refused(file, Wish(name="no spaces", classes=NAMES), tmp_path, kind=ModelError)
    refused(file, Wish(name="mine", classes=NAMES, threshold=40), tmp_path, "40", kind=ModelError)
    wish = Wish(name="mine", classes=NAMES)
    bring(file, wish, tmp_path / "into")
    with pytest.raises(ModelError, match="exists already"):
        bring(file, wish, tmp_path / "into")
    assert bring(file, wish, tmp_path / "into", replace=True).name == "mine"


def test_class_lists_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    for text, said in (("cat\ndog\ncat\n", "'cat' twice"), ("\n-\n", "no class")):
        path.write_text(text)
        with pytest.raises(ModelError, match=said):
            read_classes(path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_classes(tmp_path / "none.txt")


@pytest.mark.shared_data
def test_yolox_nano_answers_as_a_plain_decoder_does(tmp_path: Path) -> None:
    file = SHARED / "models" / "yolox_nano.onnx"
    card = bring(file, Wish(name="nano", threshold=0.3), tmp_path)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pictures = sorted((SHARED / "images").glob("*.jpg"))[:16]
    seen = 0
    images = []
    for path in pictures:
        picture: Any = cv2.imread(str(path))
        images.append(card.letterbox(picture.shape[1], picture.shape[0]).apply(picture))
    boxes, counts = run(card, *images)
    for image, rows, count in zip(images, boxes, counts.tolist(), strict=True):
        (raw,) = session.run(None, {"images": image.transpose(2, 0, 1)[None].astype(np.float32)})
        wanted = plain_yolox(raw[0].astype(np.float64), 416, 0.65)
        wanted = wanted[wanted[:, 4] >= 0.1][: card.max_detections]
        assert count == len(wanted)
        np.testing.assert_allclose(rows[:count, 4], wanted[:, 4], atol=2e-4)
        np.testing.assert_allclose(rows[:count, :4], wanted[:, :4], atol=0.1)
        np.testing.assert_array_equal(rows[:count, 5], wanted[:, 5])
        seen += count
    assert seen > 50
    picture = cv2.imread(str(SHARED / "images" / "000000000785.jpg"))
    letterbox = card.letterbox(picture.shape[1], picture.shape[0])
    rows, counts = run(card, letterbox.apply(picture))
    assert "person" in detections(card, rows[0], int(counts[0]), letterbox).class_names


def plain_yolox(raw: NDArray[np.float64], side: int, iou: float) -> NDArray[np.float64]:
    """Decoded and suppressed one row at a time, as the paper says it."""
    found = []
    index = 0
    for stride in (8, 16, 32):
        for row in range(side // stride):
            for column in range(side // stride):
                x, y, w, h, objectness, *classes = raw[index]
                index += 1
                best = int(np.argmax(classes))
                score = objectness * classes[best]
                if score < 0.05:
                    continue
                x, y, w, h = (x + column) * stride, (y + row) * stride, np.exp(w) * stride, np.exp(h) * stride
                found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, score, best])
    rows = np.array(found).reshape(-1, 6)
    kept = networks.greedy(rows, rows[:, 4].tolist(), rows[:, 5].astype(int).tolist(), iou)
    return rows[kept]
