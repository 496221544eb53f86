"""The gate bench's arithmetic: what is a new object, what is a calm stretch, what ten seconds brought."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import budget
from benchmarks.gate import calm_stretch, look, objects, to_and_fro
from benchmarks.gate_cases import CASES
from eyeline.values import Detections
from tests.support.scenes import as_luma, background, with_box


def seen(x: float | None, score: float = 0.9) -> Detections:
    if x is None:
        return Detections.empty()
    return Detections.build([[x, 10, x + 40, 90]], [score], [0], ["person"])


def test_an_object_lives_as_long_as_the_model_loses_it_for_short() -> None:
    walks = [seen(None)] * 3 + [seen(4 * n, 0.9 if n % 2 else 0.3) for n in range(10)]
    walks += [seen(None)] * 5 + [seen(44)] * 2 + [seen(None)] * 20 + [seen(44)]
    first, second = objects(walks)
    assert (first.shown[0], first.shown[-1], first.sure) == (3, 19, 7)
    assert (second.shown, second.sure) == ([40], 1)


def test_the_calmest_stretch_is_found_and_a_busy_clip_has_none() -> None:
    scene = background(320, 240)
    moving = [as_luma(with_box(scene, 6 * n, 60, (60, 100), 250)) for n in range(40)]
    still = [as_luma(scene)] * 40
    start, end = calm_stretch([*moving, *still, *moving], 10)
    assert 40 <= start < end <= 80
    assert calm_stretch(moving, 10) == (0, 0)


@pytest.mark.parametrize("case", CASES)
def test_cases_keep_count_size_and_scene(case: str) -> None:
    planes = [as_luma(background(320, 240))] * 25
    made = list(CASES[case](planes, 10))
    assert [one.shape for one in made] == [(240, 320)] * 25
    assert np.corrcoef(made[-1].ravel(), planes[0].ravel())[0, 1] > 0.7


def test_an_idle_scene_is_neither_open_nor_sent() -> None:
    opened, sent = look(to_and_fro([as_luma(background(320, 240))] * 5, 50), 10)
    assert sum(opened) == sum(sent) == 1


def test_the_fullest_ten_seconds() -> None:
    samples = [(n / 5, 100 * n) for n in range(100)] + [(20 + n / 5, 9_900 + 1_000 * n) for n in range(100)]
    assert budget.peak(samples, 0) == pytest.approx(1_000 * 50 / 1250, rel=0.03)
    assert budget.peak(samples[:100], 5) == pytest.approx(100 * 50 / 1250, rel=0.03)
