"""The edge model sees what the cloud's preprocessing would show it, and answers in source pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.config import DetectSettings
from edge_agent.detect import EdgeModel, load
from edge_agent.errors import DetectFailed
from edge_agent.frame import Frame
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard
from tests.support.scenes import as_luma, background, picture

CLIP = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"


class Recorder:
    """Keeps the images, and finds one object in a fixed place of the model's input."""

    def __init__(self, card: ModelCard, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> None:
        self.card = card
        self.box = box
        self.images: list[NDArray[np.uint8]] = []

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        self.images.append(images.copy())
        boxes = np.zeros((1, self.card.max_detections, 6), np.float32)
        boxes[0, 0] = (*self.box, 0.9, 0)
        return boxes, np.array([1], np.int32)


def street_frame() -> Frame:
    with av.open(str(CLIP)) as container:
        return Frame(1, 0, 0, next(iter(container.decode(video=0))))


def test_input_is_the_models_letterbox_of_the_picture() -> None:
    card, frame = catalogue.load(DetectSettings().model), street_frame()
    runtime = Recorder(card)
    EdgeModel(runtime).detect(frame)
    (images,) = runtime.images
    assert images.shape == (1, card.input_size[1], card.input_size[0], 3)
    assert images.dtype == np.uint8
    direct = card.letterbox(*frame.size).apply(frame.picture.to_ndarray(format="bgr24"))
    assert cv2.PSNR(images[0], direct) > 36


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (641, 481), (90, 60)])
def test_boxes_are_in_source_pixels(size: tuple[int, int]) -> None:
    card = catalogue.load(DetectSettings().model)
    letterbox = card.letterbox(*size)
    left, top = letterbox.pad
    width, height = letterbox.scaled
    inside = (left + width / 4, top + height / 4, left + width / 2, top + height)
    frame = Frame(1, 0, 0, picture(as_luma(background(*size))))
    found = EdgeModel(Recorder(card, inside)).detect(frame)
    assert found.boxes[0] == pytest.approx([size[0] / 4, size[1] / 4, size[0] / 2, size[1]], rel=1e-5)
    assert found.class_names == (card.classes[0],)


def test_bundled_model_finds_people_in_the_street() -> None:
    model = load(DetectSettings())
    found = model.detect(street_frame())
    assert found.class_names.count("person") >= 2
    assert (found.boxes[:, 2:] <= np.array(street_frame().size) + 1e-3).all()
    reference = model.model_ref
    assert (reference.name, len(reference.sha256)) == ("centernet-mobilenetv3-288", 64)
    # The same frame gives the same answer, and leaves the frame alone.
    assert model.detect(street_frame()) == found


def test_failure_is_one_line_of_ours() -> None:
    class Broken(Recorder):
        def run(self, images: Any) -> Any:  # noqa: ARG002
            raise RuntimeError("CUDA failure 2: out of memory\nat line 5")

    model = EdgeModel(Broken(catalogue.load(DetectSettings().model)))
    with pytest.raises(
        DetectFailed, match=r"^model centernet-mobilenetv3-288 failed: CUDA failure 2: out of memory$"
    ):
        model.detect(street_frame())


def test_unknown_model_is_one_line_of_ours() -> None:
    with pytest.raises(DetectFailed, match=r"edge model: no model is named 'centernet'; did you mean"):
        load(DetectSettings(model="centernet"))
