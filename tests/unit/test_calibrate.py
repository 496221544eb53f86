"""A sample into a profile: put together, opened with care, every rung scored as it would be answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_inference import rehearse
from cloud_inference.calibrate import Scorer, assemble, open_sample
from cloud_inference.errors import BadSample
from cloud_inference.infer import Inferred
from eyeline import ladder
from eyeline.coding import open_coder
from eyeline.ladder import Rung
from eyeline.v1 import calibration_pb2
from eyeline.values import Detections
from tests.support.cards import square_card
from tests.support.scenes import as_luma, background, picture, with_box

S = 1_000_000_000
Sample = calibration_pb2.CalibrationSample
FINE = Rung("h264", 320, 20, 80, 4.0, "low")


def sample(
    count: int = 60, *, gap_at: int | None = None, box: bool = True
) -> calibration_pb2.CalibrationSample:
    """A bright square that walks across a scene, four pictures a second."""
    scene = background(320, 240) * np.float32(0.5)
    made, offset = calibration_pb2.CalibrationSample(sample_id=b"12345678", fps=4.0), 0
    coder: Any = None
    for index in range(count):
        shown = with_box(scene, 20 + 4 * index, 80, (40, 60), 230) if box else scene
        frame: av.VideoFrame = picture(as_luma(shown))
        coder = coder or open_coder(FINE, frame)
        offset += 5 * S if index == gap_at else S // 4
        made.pictures.append(
            calibration_pb2.SamplePicture(offset_ns=offset, data=coder.encode(frame, keyframe=not index))
        )
    made.format.CopyFrom(coder.picture_format)
    made.ladder.extend(ladder.to_proto(it) for it in ladder.ladder(FINE, (24, 44)))
    return made


async def look(image: NDArray[np.uint8]) -> Inferred:
    """Finds what is bright."""
    rows = np.zeros((10, 6), np.float32)
    ys, xs = np.nonzero(image[:, :, 1] > 150)
    if len(xs) > 20:
        rows[0] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, 0.9, 0
    return Inferred(rows, int(len(xs) > 20), 0, 0)


async def scored(given: calibration_pb2.CalibrationSample, mode: Any = "smooth") -> calibration_pb2.Profile:
    with ThreadPoolExecutor(1) as executor:
        return await Scorer(square_card(), look, executor, mode).profile(given)


def parts(given: calibration_pb2.CalibrationSample, size: int = 1000) -> list[calibration_pb2.SamplePart]:
    data = given.SerializeToString()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [
        calibration_pb2.SamplePart(
            schema_major=1, sample_id=given.sample_id, part=number, parts=len(pieces), data=piece
        )
        for number, piece in enumerate(pieces)
    ]


def test_a_sample_is_put_together_from_its_parts() -> None:
    one, two = sample(5), sample(6)
    two.sample_id = b"abcdefgh"
    assert assemble(parts(one)) == one
    assert assemble([*parts(one), *parts(one)[::-1]]) == one, "parts may come twice"
    assert assemble(parts(one)[:-1]) is None
    assert assemble([*parts(one), *parts(two)]) == two, "the newest counts"
    assert assemble([*parts(one), *parts(two)[:-1]]) == one
    assert assemble([]) is None
    broken = parts(one)
    broken[0].data = b"\xff" * 1000
    assert assemble(broken) is None


@pytest.mark.parametrize("spoil", ["ladder", "pictures", "fps", "data", "size", "gap"])
def test_a_sample_that_is_none_is_refused(spoil: str) -> None:
    given = sample(5)
    if spoil == "ladder":
        del given.ladder[:]
    elif spoil == "pictures":
        del given.pictures[1:]
    elif spoil == "fps":
        given.fps = float("nan")
    elif spoil == "data":
        given.pictures[2].data = b"nothing"
    elif spoil == "size":
        given.format.coded_width_px = given.format.coded_height_px = 16_000
    else:
        del given.pictures[0]
    with pytest.raises(BadSample):
        open_sample(given)


def test_pauses_end_a_stretch() -> None:
    opened = open_sample(sample(20, gap_at=8))
    assert opened.stretches == [(0, 8), (8, 20)]
    assert opened.picked(2.0) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert opened.fps == pytest.approx(4.0)
    assert rehearse.picked(12, 4.0, 4 / 3) == [0, 3, 6, 9]
    assert rehearse.picked(4, 4.0, 9.0) == [0, 1, 2, 3]


def test_pictures_that_cannot_be_evenly_apart_are_as_many_a_second() -> None:
    given = sample(40, gap_at=20)
    for index, one in enumerate(given.pictures):
        # What a camera of ten frames a second gives: every second and third of them in turn.
        one.offset_ns = (index // 2 * 5 + index % 2 * 3) * S // 10 + (5 * S if index >= 20 else 0)
    opened = open_sample(given)
    assert opened.stretches == [(0, 20), (20, 40)]
    assert opened.fps == pytest.approx(4.0, rel=0.03)
    sent = [given.pictures[it].offset_ns / S for it in opened.picked(2.0)]
    assert np.diff(sent[:10]) == pytest.approx(0.5), "as many as the rung says, not one in five more"


async def test_finer_and_more_frequent_rungs_are_worth_more() -> None:
    profile = await scored(sample())
    assert not profile.problem
    assert profile.scored == len(ladder.ladder(FINE, (24, 44)))
    assert profile.frontier[0].bytes_per_s < profile.frontier[-1].bytes_per_s
    assert profile.frontier[-1].f1 > 0.95
    assert all(0 < it.f1_low <= it.f1_even for it in profile.frontier)
    assert profile.source_width_px == 320
    assert (profile.pictures, profile.inferences) == (60, 60 + 2 * 60)
    assert profile.model.name == square_card().name


async def test_prediction_is_scored_as_prediction() -> None:
    smooth, causal = await scored(sample()), await scored(sample(), "causal")
    assert smooth.propagate == "smooth"
    assert causal.propagate == "causal"
    assert causal.frontier[-1].f1 <= smooth.frontier[-1].f1


async def test_a_sample_with_nothing_in_it_tells_nothing() -> None:
    profile = await scored(sample(box=False))
    assert profile.problem == "the model sees 0 objects in the sample, 40 are needed"
    assert not profile.frontier


def test_pictures_between_those_sent_are_filled_in() -> None:
    def at(x: float) -> Detections:
        return Detections.build([[x, 0, x + 10, 10]], [0.9], [0], ("square",))

    told = rehearse.answers(
        7, [(0, at(0)), (3, at(3)), (6, at(6))], size=(100, 100), mode="smooth", company=1
    )
    assert [float(one.boxes[0, 0]) for one in told] == pytest.approx([0, 1, 2, 3, 4, 5, 6])
