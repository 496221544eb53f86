"""Samples are taken while something moves, and views are told apart without their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_agent.frame import Frame
from edge_agent.sample import Sampler, SampleSpec
from edge_agent.scene import DRIFT, SceneMean, drift
from eyeline.errors import EncodeFailed
from eyeline.ladder import Rung
from eyeline.v1 import calibration_pb2
from tests.support.redacted import as_it_is
from tests.support.scenes import as_luma, background, picture

S = 1_000_000_000
SPEC = SampleSpec(Rung("h264", 128, 22, 80, 4.0, "low"), 10.0)


class Taking:
    """A sampler at a camera of ten frames a second."""

    def __init__(self) -> None:
        self.done: list[calibration_pb2.CalibrationSample] = []
        self.sampler = Sampler("gate", SPEC, self.done.append)
        self.number = 0

    def show(self, frames: int, *, moving: bool = True, opened: bool = False, size: Any = (160, 120)) -> int:
        """So many frames; how many of them were wanted."""
        wanted = 0
        for index in range(frames):
            self.number += 1
            shown = picture(as_luma(background(*size, self.number)))
            frame = Frame(self.number, self.number * S // 10, 0, shown, opened and index == 0)
            if self.sampler.wants(frame, moving=moving):
                self.sampler.take(frame, as_it_is(shown))
                wanted += 1
        return wanted


def test_nothing_is_taken_that_nobody_asked_for() -> None:
    taking = Taking()
    assert taking.show(50) == 0
    taking.sampler.ask()
    assert taking.show(50, moving=False) == 0
    assert taking.sampler.asked


def test_a_sample_is_as_long_as_it_is_to_be() -> None:
    taking = Taking()
    taking.sampler.ask()
    assert taking.show(150) == SPEC.pictures == 40
    (sample,) = taking.done
    assert len(sample.pictures) == 40
    assert len(sample.sample_id) == 8
    assert sample.format.source_width_px == 160
    offsets = [it.offset_ns for it in sample.pictures]
    assert offsets[0] == 0
    assert offsets[-1] == pytest.approx(39 * S / 4, rel=0.05)
    assert not taking.sampler.asked
    assert taking.show(50) == 0


@pytest.mark.parametrize(
    ("longer_px", "width_px", "crf"),
    [(100, 128, 22), (128, 128, 22), (192, 192, 27), (256, 256, 30), (1920, 256, 30)],
)
def test_a_sample_is_wider_and_coarser_than_the_model_needs(longer_px: int, width_px: int, crf: int) -> None:
    coded = SPEC.of(longer_px)
    assert (coded.width_px, coded.crf) == (width_px, crf)
    assert (coded.max_fps, coded.effort) == (SPEC.rung.max_fps, SPEC.rung.effort)


def test_a_wide_sample_ends_before_the_cloud_would_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.sample.SAMPLE_PIXELS", 30 * 256 * 192 + 1)
    taking = Taking()
    taking.sampler.ask()
    taking.show(150, size=(320, 240))
    (sample,) = taking.done
    assert (sample.format.coded_width_px, sample.format.coded_height_px) == (256, 192)
    assert len(sample.pictures) == 30


def test_a_sample_may_have_pauses_and_begins_anew_with_the_source() -> None:
    taking = Taking()
    taking.sampler.ask()
    taking.show(50)
    taking.show(100, moving=False)
    assert 0.4 < taking.sampler.taken < 0.6
    taking.show(1, opened=True)
    assert taking.sampler.taken == pytest.approx(0.0, abs=0.03)
    taking.show(50)
    taking.show(10, size=(176, 144))
    assert taking.sampler.taken == pytest.approx(0.1, abs=0.05)
    taking.show(150, size=(176, 144))
    assert [it.format.source_width_px for it in taking.done] == [176]


def test_an_encoder_that_fails_is_tried_again_later() -> None:
    taking = Taking()
    opened: list[int] = []

    def broken(*_: object) -> Any:
        opened.append(taking.number)
        raise EncodeFailed("no such encoder")

    taking.sampler = Sampler("gate", SPEC, taking.done.append, encoders=broken)
    taking.sampler.ask()
    taking.show(1300)
    assert len(opened) == 3, "once a minute"


def mean(*, gain: float = 1.0, offset: float = 0.0, noise: float = 0.0, seed: int = 1) -> Any:
    seen, random = SceneMean(), np.random.default_rng(5)
    still = as_luma(background(320, 240, seed)).astype(float)
    for second in range(40):
        luma = still * gain + offset + random.normal(0, noise, still.shape)
        seen.look(np.clip(luma, 0, 255).astype(np.uint8), second * S)
    return seen.fingerprint()


def test_a_view_stays_itself_in_other_light_and_noise() -> None:
    before = mean()
    for now in (mean(noise=8.0), mean(gain=0.6), mean(gain=0.9, offset=20)):
        assert drift(before, now) < DRIFT / 2


def test_another_view_and_a_covered_lens_are_told() -> None:
    assert drift(mean(), mean(seed=2)) > DRIFT
    assert drift(mean(), mean(gain=0.0, offset=16)) > DRIFT
    assert drift(mean(), calibration_pb2.SceneFingerprint()) == 1.0


def test_few_looks_tell_nothing() -> None:
    seen = SceneMean()
    assert seen.fingerprint() is None
    seen.look(np.zeros((120, 160), np.uint8), 0)
    assert seen.fingerprint() is None
    seen.reset()
    assert seen.fingerprint(least_looks=0) is None
