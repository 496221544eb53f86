"""The gate tells a still scene from motion, whatever the sensor, the light and the codec do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.config import GateSettings
from edge_agent.frame import Frame
from edge_agent.gate import Gate, GateDecision, GateReason, shrink
from tests.support.scenes import as_luma, background, picture, with_box

FPS = 10
CLIP = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"


class Camera:
    """Feeds a gate at a steady frame rate."""

    def __init__(self, *, fps: float = FPS, noise: float = 0.0, **settings: float | bool) -> None:
        self.gate = Gate(GateSettings.model_validate(settings))
        self.random = np.random.default_rng(7)
        self.noise = noise
        self.step_ns = int(1e9 / fps)
        self.now_ns = 5_000_000_000

    def show(self, scene: NDArray[np.float32]) -> GateDecision:
        self.now_ns += self.step_ns
        return self.gate.look(as_luma(scene, noise=self.noise, random=self.random), self.now_ns)

    def play(self, scenes: Iterable[NDArray[np.float32]]) -> list[GateReason]:
        return [self.show(scene).reason for scene in scenes]


def still(scene: NDArray[np.float32], seconds: float, fps: float = FPS) -> list[NDArray[np.float32]]:
    return [scene] * int(seconds * fps)


@pytest.mark.parametrize("noise", [0.0, 2.0, 6.0, 10.0])
def test_still_scene_is_idle_after_its_first_frame(noise: float) -> None:
    reasons = Camera(noise=noise).play(still(background(), 15))
    assert reasons[0] is GateReason.FIRST
    assert set(reasons[1:]) == {GateReason.IDLE}


@pytest.mark.parametrize("noise", [0.0, 6.0])
@pytest.mark.parametrize("speed_px", [2.0, 8.0, 40.0])
def test_entrant_opens_at_once_and_all_along(noise: float, speed_px: float) -> None:
    camera, scene = Camera(noise=noise), background()
    camera.play(still(scene, 10))
    reasons = camera.play(
        with_box(scene, speed_px * n, 200, (30, 70), 220) for n in range(3, int(600 / speed_px))
    )
    # A person-sized thing, fully in view at the latest in the frame it is first tested.
    late = 1 + int(12 / speed_px)
    assert set(reasons[late:]) == {GateReason.MOTION}


def test_slow_entrant_is_not_absorbed_while_it_moves() -> None:
    camera, scene = Camera(noise=3.0), background()
    camera.play(still(scene, 5))
    reasons = camera.play(with_box(scene, 100 + 0.6 * n, 150, (60, 120), 230) for n in range(300))
    assert Counter(reasons)[GateReason.MOTION] > 0.95 * 300


def test_low_contrast_entrant_in_noise() -> None:
    camera, scene = Camera(noise=6.0), background()
    camera.play(still(scene, 10))
    walks = (scene + with_box(np.zeros_like(scene), 4 * n, 200, (30, 70), 14.0) for n in range(10, 140))
    reasons = camera.play(walks)
    assert Counter(reasons)[GateReason.MOTION] > 0.95 * len(reasons)


def test_parked_object_is_absorbed_and_its_leaving_opens() -> None:
    camera, scene = Camera(noise=3.0), background()
    camera.play(still(scene, 10))
    parked = with_box(scene, 200, 200, (120, 60), 210)
    reasons = camera.play(still(parked, 15))
    assert reasons[0] is GateReason.MOTION
    assert set(reasons[-80:]) == {GateReason.IDLE}
    assert camera.show(scene).reason is GateReason.MOTION
    assert set(camera.play(still(scene, 15))[-80:]) == {GateReason.IDLE}


@pytest.mark.parametrize("noise", [0.0, 4.0])
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 25.0), (1.25, 0.0), (0.7, 10.0)])
def test_sudden_change_of_light_is_no_motion(noise: float, gain: float, offset: float) -> None:
    camera, scene = Camera(noise=noise), background()
    camera.play(still(scene, 10))
    reasons = camera.play(still(scene * np.float32(gain) + np.float32(offset), 20))
    assert set(reasons) == {GateReason.IDLE}


def test_dusk_is_no_motion_and_an_entrant_in_it_is() -> None:
    camera, scene = Camera(noise=2.0), background(320, 240)
    camera.play(still(scene, 5))
    frames = 2_400
    levels = np.linspace(1.0, 0.3, frames, dtype=np.float32)
    assert set(camera.play(scene * level for level in levels)) <= {GateReason.IDLE, GateReason.REFRESH}
    dark = scene * levels[-1]
    assert camera.show(with_box(dark, 100, 100, (20, 50), 90)).reason is GateReason.MOTION


def test_entrant_during_a_change_of_light_opens() -> None:
    camera, scene = Camera(noise=3.0), background()
    camera.play(still(scene, 10))
    brighter = with_box(scene * np.float32(1.2), 200, 200, (30, 70), 20)
    assert camera.show(brighter).reason is GateReason.MOTION


@pytest.mark.parametrize("crf", [23, 36])
def test_pulsing_of_a_coded_stream_is_no_motion(crf: int) -> None:
    """A camera's own encoder redraws the whole picture with every keyframe, here once a second."""
    scene, random = background(), np.random.default_rng(3)
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 640, 480, "yuv420p"
    encoder.time_base, encoder.gop_size = Fraction(1, FPS), FPS
    encoder.options = {"preset": "veryfast", "tune": "zerolatency", "crf": str(crf)}
    decoder = av.CodecContext.create("h264", "r")
    camera, reasons = Camera(), []
    for n in range(200):
        shown = picture(as_luma(scene, noise=5.0, random=random))
        shown.pts = n
        for packet in encoder.encode(shown):
            for decoded in decoder.decode(packet):
                luma = Frame(n + 1, 0, 0, decoded).luma()
                reasons.append(camera.gate.look(luma, n * camera.step_ns).reason)
    assert len(reasons) > 190
    # Its first seconds are learned from.
    assert set(reasons[40:]) == {GateReason.IDLE}


def test_swaying_leaves_quieten_and_an_object_before_them_opens() -> None:
    camera, scene = Camera(noise=2.0), background()
    random = np.random.default_rng(5)
    texture = random.normal(0, 30, (120, 160)).astype(np.float32)

    def tree(n: int) -> NDArray[np.float32]:
        shown = scene.copy()
        sway = round(4 * np.sin(n / 3) + random.normal(0, 1))
        shown[40:160, 400:560] += np.roll(texture, sway, 1)
        return shown

    reasons = camera.play(tree(n) for n in range(900))
    assert Counter(reasons[-300:])[GateReason.IDLE] > 250
    assert camera.show(with_box(tree(900), 450, 60, (60, 90), 250)).reason is GateReason.MOTION


def test_panning_camera_stays_open() -> None:
    camera, wide = Camera(noise=3.0), background(2400, 480)
    reasons = [camera.show(wide[:, 6 * n : 640 + 6 * n]) for n in range(200)]
    assert all(decision.open for decision in reasons)
    assert sum(decision.whole_picture for decision in reasons) > 100
    assert all(decision.camera_moves for decision in reasons[10:])
    still_again = [camera.show(wide[:, 1194:1834]) for _ in range(80)]
    assert not any(decision.camera_moves for decision in still_again[20:])
    assert still_again[-1].reason is GateReason.IDLE


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_trembling_camera_is_idle_and_an_entrant_still_opens(noise: float) -> None:
    camera, wide, random = Camera(noise=noise), background(660, 500), np.random.default_rng(3)

    def trembling(scene: NDArray[np.float32]) -> NDArray[np.float32]:
        x, y = (10 + np.clip(random.normal(0, 1.2, 2), -3, 3)).round().astype(int)
        return scene[y : y + 480, x : x + 640]

    decisions = [camera.show(trembling(wide)) for _ in range(200)]
    assert not any(decision.camera_moves for decision in decisions)
    assert Counter(decision.reason for decision in decisions[50:])[GateReason.IDLE] > 120
    assert camera.show(trembling(with_box(wide, 200, 200, (40, 80), 230))).reason is GateReason.MOTION


def test_somebody_who_fills_much_of_the_picture_is_no_moving_camera() -> None:
    camera, scene = Camera(noise=3.0), background()
    camera.play(still(scene, 5))
    passes = [camera.show(with_box(scene, 10 * n - 160, 120, (160, 330), 220)) for n in range(80)]
    assert not any(decision.camera_moves for decision in passes)


def test_cut_opens_and_the_new_scene_becomes_idle() -> None:
    camera = Camera(noise=3.0)
    camera.play(still(background(seed=1), 10))
    reasons = camera.play(still(background(seed=2), 20))
    assert reasons[0] is GateReason.MOTION
    assert set(reasons[-100:]) == {GateReason.IDLE}


def test_hold_after_motion_then_idle_then_refresh() -> None:
    camera, scene = Camera(hold_s=1.0, refresh_s=5.0), background()
    camera.play(still(scene, 2))
    flash = with_box(scene, 100, 100, (60, 60), 255)
    reasons = camera.play([flash, *still(scene, 12)])
    assert reasons[0] is GateReason.MOTION
    assert reasons[1:11] == [GateReason.HOLD] * 10
    assert reasons[11:60] == [GateReason.IDLE] * 49
    assert reasons[60] is GateReason.REFRESH
    assert reasons[61:110] == [GateReason.IDLE] * 49
    assert reasons[110] is GateReason.REFRESH


def test_reset_and_another_size_start_afresh() -> None:
    camera, scene = Camera(), background()
    camera.play(still(scene, 1))
    camera.gate.reset()
    assert camera.show(scene).reason is GateReason.FIRST
    assert camera.show(scene[:240]).reason is GateReason.FIRST


def test_switched_off_lets_everything_through() -> None:
    camera = Camera(enabled=False)
    assert camera.play(still(background(), 1)) == [GateReason.OFF] * 10


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (480, 2), (37, 1999)])
def test_any_size_of_picture(shape: tuple[int, int]) -> None:
    gate = Gate(GateSettings())
    for n in range(5):
        assert gate.look(np.full(shape, 40 * n, np.uint8), n * 10**8) is not None


def test_luma_is_not_kept() -> None:
    luma = as_luma(background())
    view = shrink(luma)
    before = view.copy()
    luma[:] = 0
    assert np.array_equal(view, before)


def test_time_may_stand_still_or_go_back() -> None:
    gate, luma = Gate(GateSettings()), as_luma(background())
    assert [gate.look(luma, now).open for now in (10**9, 10**9, 5 * 10**8, 2 * 10**9)] == [True] + [False] * 3


@pytest.mark.parametrize("noise", [0.0, 6.0])
def test_street_is_open_all_along_and_a_frozen_street_is_not(noise: float) -> None:
    shown = _street(120)
    camera = Camera(noise=noise)
    reasons = camera.play(shown)
    assert set(reasons[1:]) == {GateReason.MOTION}
    frozen = camera.play(still(shown[-1], 20))
    assert set(frozen[-100:]) == {GateReason.IDLE}


def _street(frames: int) -> list[NDArray[np.float32]]:
    with av.open(str(CLIP)) as container:
        pictures: Callable[..., Iterable[av.VideoFrame]] = container.decode
        return [
            Frame(1, 0, 0, shown).luma().astype(np.float32)
            for shown, _ in zip(pictures(video=0), range(frames), strict=False)
        ]
