"""What may be drawn on a camera's picture, as the API checks it."""

from __future__ import annotations

import pytest

from cloud_inference.api.devices import _check
from cloud_inference.api.errors import Refusal
from cloud_inference.web import forms
from eyeline.v1 import device_pb2

TRIANGLE = [[0, 0], [1, 0], [0.5, 1]]


def drawn(**shapes: object) -> device_pb2.DesiredConfig:
    camera = device_pb2.DesiredCamera(camera="gate")
    forms.drawing(shapes, camera)
    return device_pb2.DesiredConfig(cameras=[camera])


def test_what_is_drawn_comes_back_as_it_was() -> None:
    shapes = {
        "masks": [{"name": "window", "points": TRIANGLE}],
        "zones": [{"name": "Tür 1", "points": TRIANGLE}],
        "lines": [{"name": "kerb", "points": [[0, 0.5], [1, 0.25]]}],
    }
    config = drawn(**shapes)
    _check(config)
    assert forms.desired_form(config.cameras[0]) == shapes


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"zones": [{"name": "a", "points": TRIANGLE[:2]}]}, "zone 1 has 2 points"),
        ({"zones": [{"name": "a", "points": [[0, 0], [1, 0], [0, 2]]}]}, "outside 0 to 1"),
        ({"masks": [{"name": "a", "points": [[0, 0], [1, 0], [0, float("nan")]]}]}, "outside 0 to 1"),
        ({"zones": [{"name": " ", "points": TRIANGLE}]}, "must be named"),
        ({"zones": [{"name": "a\nb", "points": TRIANGLE}]}, "must be named"),
        ({"lines": [{"name": "x" * 65, "points": [[0, 0], [1, 1]]}]}, "must be named"),
        ({"zones": [{"name": "a", "points": TRIANGLE}] * 2}, "the same name"),
        ({"zones": [{"name": str(it), "points": TRIANGLE} for it in range(33)]}, "at most 32"),
        ({"lines": [{"name": "a", "points": [[0.5, 0.5], [0.5, 0.5]]}]}, "starts where it ends"),
    ],
)
def test_what_nobody_could_use_is_refused(shapes: dict[str, object], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        _check(drawn(**shapes))


@pytest.mark.parametrize(
    "shapes",
    [
        {"masks": [{"points": TRIANGLE}]},
        {"masks": [{"name": "a", "points": [[0], [1], [2]]}]},
        {"masks": 7},
        {"lines": [{"name": "a", "points": TRIANGLE}]},
        {"zones": [{"name": "a", "points": [["x", "y"]] * 3}]},
    ],
)
def test_what_is_no_drawing_is_said(shapes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="each shape has a name"):
        drawn(**shapes)
