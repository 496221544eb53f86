"""What a look of the edge model costs beside an inference of the cloud's model, and how far the two agree.

    python -m benchmarks.edge_look --model CLOUD [--edge-model EDGE] [--video FILE] [--frames N] [--out FILE]

Both take turns on the same pictures, with one thread each; CPU time of that thread. A look is all of it, from
the captured frame to objects in its pixels; an inference is the served graph alone, without fitting pictures
to it or reading its boxes. Models are named as for `benchmarks.tradeoff`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.reference import open_clip
from benchmarks.score import compare, score
from benchmarks.tradeoff.__main__ import served
from benchmarks.tradeoff.clip import Pictures, bgr
from cloud_inference.accuracy import Bands
from edge_agent.config import DetectSettings
from edge_agent.detect import EdgeModel
from edge_agent.detect import load as load_edge
from edge_agent.frame import Frame
from eyeline.errors import EyelineError
from eyeline_models.catalogue import ModelCard, detections
from eyeline_models.runtime import Detector

CLIP = Path(__file__).parent / "clips" / "street.mp4"
# Looks that are not counted: memory is still being taken.
WARM = 5


def measure(video: Path, frames: int, edge: EdgeModel, cloud: ModelCard) -> dict[str, float]:
    """Milliseconds of look and inference, their ratios (in pairs, and of the least), and F1 of the edge's
    answers against the cloud model's.
    """
    detector = Detector(cloud, threads=1)
    looks, inferences, counts = [], [], []
    for index, shown in enumerate(Pictures(video, frames, 0.0)):
        start = time.thread_time()
        answer = edge.look(Frame(index + 1, 0, 0, shown)).detections
        looks.append(time.thread_time() - start)
        image = bgr(shown)
        letterbox = cloud.letterbox(image.shape[1], image.shape[0])
        fitted = letterbox.apply(image)[None]
        start = time.thread_time()
        boxes, count = detector.run(fitted)
        inferences.append(time.thread_time() - start)
        wanted = detections(cloud, boxes[0], int(count[0]), letterbox, thresholds=0.0)
        counts.append(compare(wanted, answer, Bands()))
    look, inference = (np.array(spent[WARM:]) * 1e3 for spent in (looks, inferences))
    return {
        "frames": len(counts),
        "look_ms": float(np.median(look)),
        "inference_ms": float(np.median(inference)),
        "ratio": float(np.median(look / inference)),
        "look_least_ms": float(look.min()),
        "inference_least_ms": float(inference.min()),
        "ratio_of_least": float(look.min() / inference.min()),
        "f1": score(counts).f1,
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.edge_look", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--model", required=True, help="the cloud's model")
    parser.add_argument("--edge-model", default=DetectSettings().model, help="the model on the device")
    parser.add_argument("--video", type=Path, default=CLIP)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.frames <= WARM:
        parser.error(f"--frames must be above {WARM}")
    cv2.setNumThreads(1)
    try:
        if open_clip(options.video).frames <= WARM:
            parser.error(f"{options.video} must have more than {WARM} frames")
        cloud = served(options.model)
        edge = load_edge(DetectSettings(model=str(served(options.edge_model).path)))
        found = measure(options.video, options.frames, edge, cloud)
    except EyelineError as problem:
        print(f"edge_look: {problem}", file=sys.stderr)
        return 1
    print(f"{options.video.name}: a look of {edge.card.name} beside an inference of {cloud.name}")
    for name, value in found.items():
        print(f"  {name:20s} {value:10.3f}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
