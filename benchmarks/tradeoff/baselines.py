"""What Eyeline is held against, on the same pictures and with the same model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.error
import cv2
import numpy as np
from av.video.frame import PictureType

from benchmarks.tradeoff import points
from benchmarks.tradeoff.clip import Pictures, Scene, bgr
from benchmarks.tradeoff.points import Point
from benchmarks.tradeoff.wire import framed
from edge_agent.detect import EdgeModel
from edge_agent.frame import Frame
from eyeline.pictures import Scaler, coded_size, colours
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections

# Of what is kept of baselines between runs: raise it when a definition here changes.
VERSION = 1
JPEG_QUALITY = 85
CRFS = range(20, 43, 2)
KEYFRAME_EVERY_S = 10
# Of JPEG, every so many pictures: size and answer of one stand for its neighbours.
_JPEG_EVERY = 5
# Of x264, which codes every picture, as many are scored as make about so many.
_X264_SCORED = 700


def jpeg(scene: Scene) -> Point:
    """B1: full pictures, quality 85; every fifth one, scored on those alone."""
    sizes, answers, spent = [], [], 0.0
    for index, shown in enumerate(scene.pictures):
        if index % _JPEG_EVERY:
            continue
        image = bgr(shown)
        start = time.thread_time()
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        spent += time.thread_time() - start
        sizes.append(framed(len(data)))
        answers.append(scene.model(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)))
    return points.make(
        f"jpeg q{JPEG_QUALITY}",
        "jpeg",
        total_bytes=sum(sizes),
        scene=scene,
        every=_JPEG_EVERY,
        answers=answers,
        provenance=["cloud"] * len(answers),
        inferences=len(answers),
        cpu_ms={"encode": spent * 1e3},
    )


def x264(scene: Scene, crf: int, longer_px: int) -> Point:
    """B2: every picture, veryfast zerolatency, a keyframe per 10 s, 40 bytes per started 1,400 of a picture.

    longer_px: of the coded picture; scaled as the model's own preprocessing does.
    """
    size = coded_size(scene.pictures.size, longer_px)
    scaler = Scaler(size) if size != scene.pictures.size else None
    total, spent, answers = 0, 0.0, []
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    scale = np.array([scene.pictures.size[0] / size[0], scene.pictures.size[1] / size[1]] * 2, np.float32)
    encoder: Any = None
    every = max(1, round(len(scene.pictures) / _X264_SCORED))
    for index, shown in enumerate(scene.pictures):
        start = time.thread_time()
        encoder = encoder or _x264(size, crf, scene.pictures.fps)
        coded = scaler.scale(shown) if scaler is not None else shown
        coded.pts, coded.pict_type = index, PictureType.NONE
        packets = encoder.encode(coded)
        spent += time.thread_time() - start
        for packet in packets:
            total += framed(packet.size)
            seen = decoder.decode(packet)
            if index % every == 0:
                answers += [_scaled(scene.model(_bgr_like(one, shown)), scale) for one in seen]
    return points.make(
        f"x264 {longer_px}px crf{crf}",
        "x264",
        total_bytes=total * len(answers) / len(scene.pictures),
        scene=scene,
        every=every,
        answers=answers,
        provenance=["cloud"] * len(answers),
        inferences=len(answers),
        cpu_ms={"encode": spent * 1e3 * len(answers) / len(scene.pictures)},
        config={"scored_every": every, "crf": crf, "longer_px": longer_px},
    )


def _x264(size: tuple[int, int], crf: int, fps: float) -> Any:
    context: Any = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = *size, "yuv420p"
    rate = Fraction(fps).limit_denominator(1000)
    context.time_base, context.framerate = 1 / rate, rate
    context.gop_size = max(1, round(KEYFRAME_EVERY_S * fps))
    context.thread_count = 1
    context.options = {"preset": "veryfast", "tune": "zerolatency", "crf": str(crf)}
    return context


def _bgr_like(seen: Any, shown: av.VideoFrame) -> Any:
    matrix, range_ = colours(shown)
    return seen.reformat(
        format="bgr24",
        src_colorspace="ITU709" if matrix == pb.COLOR_MATRIX_BT709 else "ITU601",
        src_color_range="JPEG" if range_ == pb.COLOR_RANGE_FULL else "MPEG",
    ).to_ndarray()


def _scaled(found: Detections, scale: Any) -> Detections:
    return Detections.build(found.boxes * scale, found.scores, found.class_ids, found.class_names)


def edge_only(scene: Scene, edge: EdgeModel) -> Point:
    """B3: the edge model's own answers, no pixels."""
    answers, spent = [], 0.0
    for index, shown in enumerate(scene.pictures):
        start = time.process_time()
        answers.append(edge.detect(Frame(index + 1, 0, 0, shown)))
        spent += time.process_time() - start
    return points.make(
        f"edge only: {edge.card.name}",
        "edge",
        total_bytes=0,
        scene=scene,
        answers=answers,
        provenance=["edge"] * len(answers),
        inferences=0,
        cpu_ms={"detect": spent * 1e3},
    )


def passthrough(scene: Scene) -> Point:
    """B5: the clip's own packets as they are. Not for a clip that noise was added to."""
    total = sum(framed(size) for size in _packets(scene.pictures))
    answers = [scene.model(bgr(shown)) for shown in scene.pictures]
    return points.make(
        "passthrough",
        "passthrough",
        total_bytes=total,
        scene=scene,
        answers=answers,
        provenance=["cloud"] * len(answers),
        inferences=len(answers),
        cpu_ms={},
    )


def _packets(pictures: Pictures) -> Iterator[int]:
    with av.open(str(pictures.path)) as container:
        for index, packet in enumerate(container.demux(video=0)):
            if index >= len(pictures):
                return
            if packet.size:
                yield packet.size
