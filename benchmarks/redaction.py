"""What redaction hides, and what it costs: blur recall, accuracy, bytes and CPU time, variant by variant.

    python -m benchmarks.redaction [--video FILE ...] [--cloud MODEL] [--frames N] [--out FILE]

Every frame goes through the real gate and encoder (H.264, 416 px, CRF 28, `--fps` frames a second), is
decoded, and seen by the cloud model. F1 as `benchmarks.score` defines it, against the same model on untouched
frames; of masked cameras the reference is without the objects whose centre is masked, since they are to
disappear.

Blur recall is the share of people (reference, score 0.5 and more) in whose box less than a tenth of the fine
detail is left: of what a blur of 9 pixels takes away from the luma before redaction, the part that the luma
that goes into the encoder still holds. `head` looks at the upper quarter of the box alone. The model that
blurs and the one that judges differ, or the figure means nothing: import YOLOX, and name it with `--cloud`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import av
import av.error
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import score
from cloud_inference.decode import ChainDecoder
from edge_agent.config import AgentSettings, DetectSettings
from edge_agent.encode import Encoder, open_encoder
from edge_agent.frame import Frame
from edge_agent.redact import Redactor, pixels_of
from edge_agent.redact_models import Models, redactor
from eyeline.errors import EyelineError
from eyeline.ladder import Rung
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard
from eyeline_models.runtime import Detector

CLIP: Final = Path(__file__).parent / "clips" / "street.mp4"
# A quarter of the picture at the upper left, and a strip at the right.
MASKS: Final = [
    [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]],
    [[0.9, 0], [1, 0], [1, 1], [0.9, 1]],
]
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "masks": {"masks": MASKS},
    "person": {"blur": ["person"]},
    "person, every 3rd": {"blur": ["person"], "every": 3},
    "person, solid": {"blur": ["person"], "style": "solid"},
    "head": {"blur": ["head"]},
    "face": {"blur": ["face"]},
}
_ALTERED: Final = 0.1
_MUST: Final = 0.5
_DETAIL_PX: Final = 9


@dataclass(slots=True)
class Tally:
    """One variant on one clip."""

    gate: Redactor
    # Whether whole people are to be blurred.
    whole: bool
    encoder: Encoder | None = None
    decoder: ChainDecoder = field(default_factory=ChainDecoder)
    units: int = 0
    bytes_sent: int = 0
    redact_s: float = 0.0
    encode_s: float = 0.0
    counts: list[score.Counts] = field(default_factory=list)
    people: int = 0
    blurred: int = 0
    heads_blurred: int = 0

    def row(self) -> dict[str, Any]:
        """As it is written down; recall is None where nobody is to be blurred."""
        made = score.score(self.counts)
        hides = self.people > 0
        whole = hides and self.whole
        return {
            "frames": self.units,
            "f1": made.f1,
            "f1_low": made.f1_low,
            "f1_high": made.f1_high,
            "people": self.people,
            "blur_recall": self.blurred / self.people if whole else None,
            "head_recall": self.heads_blurred / self.people if hides else None,
            "bytes_per_frame": self.bytes_sent / self.units,
            "redact_cpu_ms": (self.redact_s + self.gate.model_cpu_ns / 1e9) * 1e3 / self.units,
            "encode_cpu_ms": self.encode_s * 1e3 / self.units,
        }


class Judge:
    """The cloud model."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._model = Detector(card, threads=1)

    def look(self, image: NDArray[np.uint8], size: tuple[int, int]) -> Detections:
        """Objects of a BGR picture, all scores, in pixels of a picture of that size."""
        letterbox = self._card.letterbox(image.shape[1], image.shape[0])
        boxes, count = self._model.run(letterbox.apply(image)[None])
        found = catalogue.detections(self._card, boxes[0], int(count[0]), letterbox, thresholds=0.0)
        scale = np.array([size[0] / image.shape[1], size[1] / image.shape[0]] * 2, np.float32)
        return Detections.build(found.boxes * scale, found.scores, found.class_ids, found.class_names)


def frames(video: Path, count: int, fps: float) -> Iterator[Frame]:
    """At most so many frames, about so many a second."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        step = max(1, round(float(stream.average_rate or 10) / fps))
        number = 0
        for index, shown in enumerate(container.decode(stream)):
            if index % step:
                continue
            number += 1
            if number > count:
                return
            yield Frame(number, int(number * 1e9 / fps), 0, shown, opened=number == 1)


def left_over(
    before: NDArray[np.float32], after: NDArray[np.float32], box: NDArray[np.float32], share: float = 1.0
) -> float:
    """Share of the detail before that is still there after, in the upper share of a box: its projection."""
    height, width = before.shape
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(width, int(box[2])), min(height, int(box[1] + (box[3] - box[1]) * share))
    one, two = before[top:bottom, left:right], after[top:bottom, left:right]
    energy = float(np.square(one).sum())
    return float((one * two).sum()) / energy if energy else 0.0


def fine(luma: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a blur takes away, float32 [H, W]."""
    values = luma.astype(np.float32)
    return values - np.asarray(cv2.blur(values, (_DETAIL_PX, _DETAIL_PX)), np.float32)


def measure(video: Path, judge: Judge, count: int, fps: float) -> dict[str, dict[str, Any]]:
    """All variants, side by side over the same frames."""
    tallies = {}
    models = Models(DetectSettings())
    for name, hide in VARIANTS.items():
        camera = {"name": "clip", "source": str(video), "redact": {**hide, "timeout_s": 60}}
        settings = AgentSettings.model_validate({"device": "bench", "cameras": [camera]})
        tallies[name] = Tally(redactor(settings, "clip", models), "person" in hide.get("blur", ()))
    bands = score.Bands()
    for frame in frames(video, count, fps):
        raw: Any = frame.picture
        reference = judge.look(raw.to_ndarray(format="bgr24"), frame.size)
        before = fine(frame.luma())
        people = [
            box
            for box, name, points in zip(
                reference.boxes, reference.class_names, reference.scores, strict=True
            )
            if name == "person" and points >= _MUST
        ]
        for name, tally in tallies.items():
            answer, luma = send(tally, frame, judge)
            expected = tally.gate.visible(reference, frame.size)
            tally.counts.append(score.compare(expected, tally.gate.visible(answer, frame.size), bands))
            if "blur" not in VARIANTS[name]:
                continue
            after = fine(luma)
            for box in people:
                tally.people += 1
                tally.blurred += left_over(before, after, box) <= _ALTERED
                tally.heads_blurred += left_over(before, after, box, 0.25) <= _ALTERED
    return {name: tally.row() for name, tally in tallies.items()}


def send(tally: Tally, frame: Frame, judge: Judge) -> tuple[Detections, NDArray[np.uint8]]:
    """What the cloud says to a frame, and the luma that went into the encoder."""
    start = time.thread_time()
    picture = tally.gate.apply(frame)
    tally.redact_s += time.thread_time() - start
    if tally.encoder is None:
        tally.encoder = open_encoder(Rung("h264", 416, 28, 80, 5.0), pixels_of(picture))
    start = time.thread_time()
    data = tally.encoder.encode(picture, keyframe=tally.units == 0)
    tally.encode_s += time.thread_time() - start
    unit = pb.AccessUnit(
        sequence=frame.sequence,
        chain_id=1,
        chain_index=tally.units,
        keyframe=tally.units == 0,
        data=data,
    )
    tally.units += 1
    tally.bytes_sent += len(data)
    decoded = tally.decoder.decode(unit, tally.encoder.picture_format)
    assert decoded is not None
    luma = Frame(frame.sequence, 0, 0, pixels_of(picture)).luma()
    return judge.look(decoded, frame.size), luma


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.redaction", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--video", type=Path, action="append", help="a clip; may be given several times")
    parser.add_argument("--cloud", default="centernet-mobilenetv3", help="the judging model")
    parser.add_argument("--frames", type=int, default=150, help="of each clip")
    parser.add_argument("--fps", type=float, default=5.0, help="frames a second that leave")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    try:
        card = catalogue.load(options.cloud)
        judge = Judge(card)
        for video in options.video or [CLIP]:
            results[video.name] = measure(video, judge, options.frames, options.fps)
    except (EyelineError, av.error.FFmpegError, OSError) as problem:
        print(f"redaction: {problem}", file=sys.stderr)
        return 1
    print(f"judged by {card.name} {card.version}; blurred by centernet-mobilenetv3 and blazeface-back")
    for clip, rows in results.items():
        print(f"\n{clip}: {next(iter(rows.values()))['frames']} frames at {options.fps:g} fps")
        print(
            f"  {'variant':20s} {'F1':>6s} {'95 % interval':>15s} {'recall':>7s} {'head':>6s} "
            f"{'people':>6s} {'B/frame':>8s} {'redact ms':>9s} {'encode ms':>9s}"
        )
        for name, row in rows.items():
            shares = [
                f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("blur_recall", "head_recall")
            ]
            print(
                f"  {name:20s} {row['f1']:6.3f} {row['f1_low']:7.3f}-{row['f1_high']:.3f} "
                f"{shares[0]:>8s} {shares[1]:>6s} {row['people'] or '-':>6} {row['bytes_per_frame']:8.0f} "
                f"{row['redact_cpu_ms']:9.2f} {row['encode_cpu_ms']:9.2f}"
            )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        told = {"judge": card.name, "judge_version": card.version, "fps": options.fps, "clips": results}
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
