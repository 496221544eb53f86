"""What disturbs a still scene, put on real pictures: each case turns luma planes into others, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]
Case = Callable[[Iterable[Luma], float], Iterator[Luma]]


def untouched(planes: Iterable[Luma], fps: float) -> Iterator[Luma]:  # noqa: ARG001
    """As they are."""
    yield from planes


def noise(sigma: float) -> Case:
    """Sensor noise, Gaussian, of so many grey levels."""

    def apply(planes: Iterable[Luma], fps: float) -> Iterator[Luma]:  # noqa: ARG001
        random = np.random.default_rng(1)
        for plane in planes:
            grain = random.standard_normal(plane.shape, np.float32) * np.float32(sigma)
            yield np.clip(np.rint(plane + grain), 0, 255).astype(np.uint8)

    return apply


def light(planes: Iterable[Luma], fps: float) -> Iterator[Luma]:
    """A cloud passes: every 12 s the light falls by 30 % within a second, and comes back after 6."""
    for index, plane in enumerate(planes):
        phase = index / fps % 12
        share = np.interp(phase, [0, 1, 6, 7, 12], [0, 1, 1, 0, 0])
        yield np.clip(np.rint(plane * np.float32(1 - 0.3 * share)), 0, 255).astype(np.uint8)


def switch(planes: Iterable[Luma], fps: float) -> Iterator[Luma]:
    """A lamp: every 15 s everything is brighter by 25 grey levels at once, or darker again."""
    for index, plane in enumerate(planes):
        step = 25 * (int(index / fps / 15) % 2)
        yield np.clip(plane.astype(np.int16) + step, 0, 255).astype(np.uint8)


def flicker(planes: Iterable[Luma], fps: float) -> Iterator[Luma]:
    """A camera's own encoder: coarse, and a keyframe every second that redraws everything."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    random = np.random.default_rng(2)
    for index, plane in enumerate(planes):
        height, width = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
        if index == 0:
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.gop_size = Fraction(1, round(fps)), round(fps)
            encoder.thread_count = 1
            encoder.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "34"}
        grain = random.standard_normal((height, width), np.float32) * np.float32(2)
        noisy = np.clip(np.rint(plane[:height, :width] + grain), 0, 255).astype(np.uint8)
        shown = av.VideoFrame.from_ndarray(noisy, format="gray").reformat(format="yuv420p")
        shown.pts = index
        for packet in encoder.encode(shown):
            for seen in decoder.decode(packet):
                yield seen.reformat(format="gray").to_ndarray()


def tree(planes: Iterable[Luma], fps: float) -> Iterator[Luma]:
    """A quarter of the picture sways by up to 5 px in gusts, and leaves flutter on it."""
    random = np.random.default_rng(3)
    flutter, gust = None, 0.0
    for index, plane in enumerate(planes):
        height, width = plane.shape
        rows, columns = slice(0, height // 2), slice(width // 2, width)
        patch = plane[rows, columns]
        if flutter is None:
            flutter = random.normal(0, 1, (patch.shape[0] // 6, patch.shape[1] // 6)).astype(np.float32)
        gust += 0.1 * (random.normal(0, 1.5) - gust)
        sway = 5 * np.sin(index / fps * 2 * np.pi * 0.4) * min(1.0, 0.5 + abs(gust))
        y, x = np.mgrid[0 : patch.shape[0], 0 : patch.shape[1]].astype(np.float32)
        bend = np.float32(sway) * np.sin(x / 23 + y / 31 + np.float32(index / fps))
        moved = cv2.remap(patch, x + bend, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        leaves = cv2.resize(
            np.roll(flutter, round(sway), 1), patch.shape[::-1], interpolation=cv2.INTER_NEAREST
        )
        shown = plane.copy()
        shown[rows, columns] = np.clip(moved + 12 * leaves, 0, 255).astype(np.uint8)
        yield shown


def shake(planes: Iterable[Luma], fps: float) -> Iterator[Luma]:  # noqa: ARG001
    """A pole in the wind: the picture trembles by up to 2 px."""
    random = np.random.default_rng(4)
    at = np.zeros(2)
    for plane in planes:
        at = np.clip(0.7 * at + random.normal(0, 0.8, 2), -2, 2)
        shift = np.array([[1, 0, at[0]], [0, 1, at[1]]], np.float32)
        yield cv2.warpAffine(
            plane, shift, plane.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        ).astype(np.uint8)


CASES: dict[str, Case] = {
    "as recorded": untouched,
    "noise, sigma 6": noise(6),
    "noise, sigma 12": noise(12),
    "clouds": light,
    "lamp": switch,
    "codec pulses": flicker,
    "swaying tree": tree,
    "shaking pole": shake,
}
