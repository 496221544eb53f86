"""There and back: a picture into a model's input, boxes out of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyeline_models.letterbox import Letterbox

sides = st.integers(1, 5000)


@given(sides, sides, st.sampled_from([(416, 416), (640, 384), (33, 512)]), st.booleans(), st.data())
def test_boxes_come_back_where_they_were(
    width: int, height: int, model: tuple[int, int], centred: bool, data: st.DataObject
) -> None:
    letterbox = Letterbox.fit((width, height), model, centred=centred, fill=114)
    x = sorted(data.draw(st.tuples(st.floats(0, width), st.floats(0, width))))
    y = sorted(data.draw(st.tuples(st.floats(0, height), st.floats(0, height))))
    box = np.array([x[0], y[0], x[1], y[1]])
    scale = np.array([letterbox.scaled[0] / width, letterbox.scaled[1] / height] * 2)
    inside = box * scale + np.array([*letterbox.pad, *letterbox.pad])
    assert np.all(inside >= 0)
    assert np.all(inside <= np.array([*model, *model]) + 1e-6)
    back = letterbox.to_source(inside[None].astype(np.float32))[0]
    np.testing.assert_allclose(back, box, atol=1e-3 + max(width, height) * 2e-6 / min(scale))


@given(sides, sides, st.booleans())
def test_the_picture_fills_one_side_and_keeps_its_aspect(width: int, height: int, centred: bool) -> None:
    letterbox = Letterbox.fit((width, height), (416, 256), centred=centred, fill=0)
    wide, high = letterbox.scaled
    assert wide == 416 or high == 256
    assert wide <= 416
    assert high <= 256
    scale = min(416 / width, 256 / height)
    assert abs(wide - width * scale) <= 1
    assert abs(high - height * scale) <= 1


@pytest.mark.parametrize(
    ("centred", "pad"), [(True, (0, 52)), (False, (0, 0))], ids=["centred", "at the top left"]
)
def test_what_is_around_is_filled(centred: bool, pad: tuple[int, int]) -> None:
    letterbox = Letterbox.fit((400, 300), (208, 260), centred=centred, fill=114)
    assert letterbox.scaled == (208, 156)
    assert letterbox.pad == pad
    image = letterbox.apply(np.full((300, 400, 3), 7, np.uint8))
    assert image.shape == (260, 208, 3)
    assert image.dtype == np.uint8
    assert (image[pad[1] : pad[1] + 156] == 7).all()
    image[pad[1] : pad[1] + 156] = 114
    assert (image == 114).all()


def test_a_picture_of_the_models_size_is_passed_on() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    letterbox = Letterbox.fit((96, 64), (96, 64), centred=True, fill=0)
    np.testing.assert_array_equal(letterbox.apply(picture), picture)


def test_another_picture_is_refused() -> None:
    letterbox = Letterbox.fit((96, 64), (48, 32), centred=True, fill=0)
    with pytest.raises(ValueError, match=r"\(96, 64, 3\), expected"):
        letterbox.apply(np.zeros((96, 64, 3), np.uint8))


def test_boxes_are_clipped_to_the_picture() -> None:
    letterbox = Letterbox.fit((100, 50), (200, 200), centred=True, fill=0)
    boxes = letterbox.to_source(np.array([[-10, 0, 300, 200]], np.float32))
    assert boxes.tolist() == [[0, 0, 100, 50]]
