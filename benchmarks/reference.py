"""What a clip would have cost and said without Eyeline: the model on raw frames, and JPEG bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from numpy.typing import NDArray

from eyeline.errors import ConfigError
from eyeline.values import Detections
from eyeline_models.catalogue import ModelCard, detections
from eyeline_models.runtime import Detector

JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file: pictures per second, count of pictures, width and height in pixels."""

    path: Path
    fps: float
    frames: int
    size: tuple[int, int]


def open_clip(path: Path) -> Clip:
    """Look at a video file, counting its pictures; raises `ConfigError` in one line."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"{path} has no video in it")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            size = stream.codec_context.width, stream.codec_context.height
            frames = sum(1 for _ in container.decode(stream))
    except (av.error.FFmpegError, OSError) as problem:
        raise ConfigError(f"{path} is not a video that can be read: {problem.strerror}") from None
    if not frames or fps <= 0:
        raise ConfigError(f"{path} has no pictures in it")
    return Clip(path, fps, frames, size)


def pictures(clip: Clip, count: int) -> Iterator[NDArray[np.uint8]]:
    """The first `count` pictures, uint8 [H, W, 3] BGR, from the start again when the clip is shorter."""
    given = 0
    while given < count:
        with av.open(str(clip.path)) as container:
            for frame in container.decode(video=0):
                if given == count:
                    return
                given += 1
                yield frame.to_ndarray(format="bgr24")


def jpeg_bytes_per_frame(clip: Clip, *, every: int = 10) -> float:
    """Mean size of the full pictures as JPEG, quality 85, over every tenth picture."""
    sizes = []
    for index, image in enumerate(pictures(clip, clip.frames)):
        if index % every == 0:
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            sizes.append(len(data))
    return float(np.mean(sizes))


def on_raw_frames(clip: Clip, count: int, card: ModelCard, *, threads: int = 2) -> Iterator[Detections]:
    """The model's own detections on untouched pictures, all scores that the graph gives."""
    detector = Detector(card, threads=threads)
    seen: list[Detections] = []
    for image in pictures(clip, min(count, clip.frames)):
        letterbox = card.letterbox(image.shape[1], image.shape[0])
        boxes, counts = detector.run(letterbox.apply(image)[None])
        seen.append(detections(card, boxes[0], int(counts[0]), letterbox, thresholds=0.0))
        yield seen[-1]
    for index in range(clip.frames, count):
        yield seen[index % clip.frames]
