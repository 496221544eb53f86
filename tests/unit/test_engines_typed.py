"""Precision in the graph: float16 by conversion, int8 by calibration, and what they cost."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import av
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloud_inference.engines import accuracy, build
from cloud_inference.engines.build import Wish
from cloud_inference.engines.cache import EngineStore
from cloud_inference.engines.tensorrt import Profile
from cloud_inference.engines.typed import Precision, convert
from cloud_inference.errors import EngineFailed
from eyeline.errors import ConfigError
from eyeline_models import catalogue
from eyeline_models.errors import BadModel
from eyeline_models.forms import Form
from tests.support.detectors import FORMS, imported
from tests.support.models import tiny_model

CLIP = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"


def answers(model: onnx.ModelProto, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(["boxes", "count"], {"images": images}))


def types_inside(model: onnx.ModelProto) -> Counter[int]:
    """Element types of what the network's nodes give."""
    values = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    return Counter(it.type.tensor_type.elem_type for it in values if it.name.startswith("network/"))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_in_float16_and_finds_the_same(form: Form, tmp_path: Path) -> None:
    card = imported(form, tmp_path)
    plain = onnx.load(card.path)
    made = convert(plain, Precision.FP16)
    kinds = types_inside(made)
    assert kinds[TensorProto.FLOAT16] > 0
    # What leaves the network is float32 again; nothing else inside is.
    assert kinds[TensorProto.FLOAT] <= len([it for it in made.graph.node if it.op_type == "Cast"])
    assert [it.name for it in made.graph.input] == ["images"]
    width, height = card.input_size
    images = np.random.default_rng(1).integers(0, 255, (3, height, width, 3), np.uint8)
    (boxes, count), (half_boxes, half_count) = answers(plain, images), answers(made, images)
    np.testing.assert_array_equal(count, half_count)
    assert count.min() > 0
    np.testing.assert_allclose(boxes[:, 0], half_boxes[:, 0], rtol=5e-3, atol=5e-3)
    assert half_boxes.dtype == np.float32


def test_weights_stored_as_float16_are_unpacked_and_packed() -> None:
    card = catalogue.load("blazeface-back")
    plain = onnx.load(card.path)
    sizes = {it: len(convert(plain, it).SerializeToString()) for it in (Precision.FP32, Precision.FP16)}
    assert sizes[Precision.FP16] < 0.7 * sizes[Precision.FP32]


def test_int8_has_symmetric_pairs_around_all_but_the_first_and_last(tmp_path: Path) -> None:
    card = catalogue.load("blazeface-back")
    width, height = card.input_size
    noise = np.random.default_rng(1).integers(0, 255, (4, 1, height, width, 3), np.uint8)
    made = convert(onnx.load(card.path), Precision.INT8, noise)
    kinds = Counter(node.op_type for node in made.graph.node)
    assert kinds["DequantizeLinear"] > 10
    stored = {it.name: numpy_helper.to_array(it) for it in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = stored[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    quantized = [makers.get(node.input[0]) == "DequantizeLinear" for node in convolutions]
    assert not quantized[0]
    assert sum(quantized) > 5
    assert answers(made, noise[0])[0].shape == (1, card.max_detections, 6)


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    bare = onnx.load(tiny_model(tmp_path / "tiny.onnx"))
    with pytest.raises(BadModel, match="no network inside"):
        convert(bare, Precision.FP16)
    with pytest.raises(BadModel, match="no convolution"):
        convert(bare, Precision.INT8, [np.zeros((1, 32, 48, 3), np.uint8)])
    branch = helper.make_graph([], "b", [], [])
    node = helper.make_node("If", ["c"], ["network/out"], then_branch=branch, else_branch=branch)
    bare.graph.node.append(node)
    bare.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    with pytest.raises(BadModel, match=r"graph inside|cannot be inferred"):
        convert(bare, Precision.FP16)


def test_a_graph_agrees_with_itself_and_not_with_one_that_sees_nothing() -> None:
    card = catalogue.load("centernet-mobilenetv3")
    with av.open(str(CLIP)) as clip:
        frames = [
            frame.to_ndarray(format="bgr24") for frame in itertools.islice(clip.decode(video=0), 0, 24, 6)
        ]
    graph = card.path.read_bytes()
    same = accuracy.measure(card, graph, graph, "fp32", frames)
    assert (same.f1, same.loss, same.score_shift) == (1.0, 0.0, 0.0)
    assert same.objects > 4
    assert same.box_iou == pytest.approx(1)
    blind = onnx.load(card.path)
    for tensor in blind.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(
                numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name)
            )
    worse = accuracy.measure(card, graph, blind.SerializeToString(), "fp16", frames)
    assert worse.loss > 0.9
    assert worse.to_json()["loss"] > 0.9


def test_pictures_are_spread_and_held_out_in_stretches(tmp_path: Path) -> None:
    found = accuracy.pictures([CLIP], 16)
    assert len(found) == 16
    calibrate, held_out = accuracy.split(found)
    assert len(calibrate) == len(held_out) == 8
    assert not any(np.array_equal(one, two) for one in calibrate for two in held_out)
    with pytest.raises(ConfigError, match="does not exist"):
        accuracy.pictures([tmp_path / "none.mp4"], 4)
    with pytest.raises(ConfigError, match="no pictures in"):
        accuracy.pictures([tmp_path], 4)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"bad\.jpg"):
        accuracy.pictures([tmp_path], 4)
    with pytest.raises(ConfigError, match="at least two"):
        accuracy.split(found[:1])


def test_a_graph_that_loses_too_much_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = catalogue.load("centernet-mobilenetv3")
    store = EngineStore(str(tmp_path / "store"))

    def blinded(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                zeros = np.zeros_like(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
        return model

    monkeypatch.setattr(build, "convert", blinded)
    wish = Wish(Precision.FP16, Profile(), pictures=(CLIP,), most_pictures=4)
    with pytest.raises(
        EngineFailed, match=r"is not published: F1 0\.000 against float32 on 2 held-out"
    ) as caught:
        build.graph(card, wish, store)
    assert "\n" not in str(caught.value)
    assert store.list() == {}
