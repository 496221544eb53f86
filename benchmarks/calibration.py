"""What calibration costs and what it gives: a sample of a clip, scored, and the rung it chose on the rest.

    python -m benchmarks.calibration --video FILE [--model CLOUD] [--noise SIGMA] [--target 0.95]
                                     [--starts 1] [--seconds 25] [--batch-ms 0] --out DIR

The agent's own sampler takes the sample, the worker's own scorer makes the profile, the agent's own choice
picks the rung, and the trade-off bench plays it on all that was not sampled; beside it the rung that the
estimate alone would have chosen, without regard to how sure it is. With several starts the sample
is taken at as many places, and the clip goes round. Writes calibration.json into the output folder.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.score import Bands
from benchmarks.tradeoff import eyeline
from benchmarks.tradeoff.__main__ import CACHE, served
from benchmarks.tradeoff.clip import Model, Pictures, Scene, reference
from benchmarks.tradeoff.eyeline import Operating
from benchmarks.tradeoff.wire import framed
from cloud_inference.calibrate import Scorer
from cloud_inference.infer import Inferred
from edge_agent.config import AgentSettings, RedactSettings
from edge_agent.frame import Frame
from edge_agent.frontier import Step, Wish, choose, steps_of
from edge_agent.gate import Gate
from edge_agent.plan import rung_of
from edge_agent.redact import Redactor
from edge_agent.sample import Sampler, sample_spec
from edge_agent.scene import SceneMean
from eyeline import ladder
from eyeline.errors import ConfigError, EyelineError
from eyeline.ladder import Rung
from eyeline.overhead import MESSAGE_BYTES
from eyeline.v1 import calibration_pb2
from eyeline_models.runtime import Detector

_HOUR_S = 3600.0
_PART_BYTES = 48_000
# How much earlier a sample is tried where too little moves until the clip's end.
_STEP_BACK_S = 5.0


class _Part:
    """Stretches of a clip, one after the other, as the trade-off bench takes a clip."""

    def __init__(self, pictures: Pictures, stretches: Sequence[range]) -> None:
        self.path, self.fps, self.size = pictures.path, pictures.fps, pictures.size
        self._pictures, self._stretches = pictures, stretches

    def __len__(self) -> int:
        return sum(map(len, self._stretches))

    def __iter__(self) -> Iterator[av.VideoFrame]:
        for one in self._stretches:
            yield from itertools.islice(self._pictures, one.start, one.stop)


class _TooShort(ConfigError):
    """No sample can be taken from there on."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A sample: first and one past last of the clip's pictures that were looked at for it."""

    sample: calibration_pb2.CalibrationSample
    first: int
    end: int

    @property
    def wire_bytes(self) -> int:
        """Of its messages and their acknowledgements."""
        left, total = self.sample.ByteSize(), 0
        while left > 0:
            total += framed(min(left, _PART_BYTES) + MESSAGE_BYTES)
            left -= _PART_BYTES
        return total


def take(pictures: Pictures, settings: AgentSettings, start: int) -> Taken:
    """What the agent's sampler takes from that picture on; raises `ConfigError` when it never ends."""
    done: list[calibration_pb2.CalibrationSample] = []
    sampler = Sampler("cam", sample_spec(settings), done.append)
    sampler.ask()
    gate, redactor, scene = Gate(settings.gate), Redactor(RedactSettings()), SceneMean()
    for index, shown in enumerate(pictures):
        if index < start:
            continue
        now_ns = 10**12 + int((index + 1) * 1e9 / pictures.fps)
        frame = Frame(index + 1, now_ns, now_ns, shown)
        luma = redactor.gate_luma(frame)
        scene.look(luma, now_ns)
        if sampler.wants(frame, moving=gate.look(luma, now_ns).open):
            sampler.take(frame, redactor.apply(frame))
        if done:
            fingerprint = scene.fingerprint(least_looks=1)
            if fingerprint is not None:
                done[0].scene.CopyFrom(fingerprint)
            rungs = ladder.ladder(rung_of(settings.encode), settings.calibration.crfs)
            done[0].ladder.extend(ladder.to_proto(it) for it in rungs)
            done[0].batch_ns = int(settings.encode.batch_ms * 1e6)
            return Taken(done[0], start, index + 1)
    raise _TooShort(f"{pictures.path} from picture {start} on is too short, or too still, for a sample")


def _take_from(pictures: Pictures, settings: AgentSettings, start: int) -> Taken:
    """The sample from that picture on, or from as little before it as it needs."""
    while True:
        try:
            return take(pictures, settings, start)
        except _TooShort:
            if start == 0:
                raise
            start = max(0, start - round(_STEP_BACK_S * pictures.fps))


def profile(model: Model, sample: calibration_pb2.CalibrationSample) -> calibration_pb2.Profile:
    """What the worker's scorer makes of it, with the model in this process."""
    detector = Detector(model.card, threads=1)

    async def look(image: NDArray[np.uint8]) -> Inferred:
        boxes, counts = detector.run(image[None])
        return Inferred(boxes[0], int(counts[0]), 0, 0)

    with ThreadPoolExecutor(1) as executor:
        return asyncio.run(Scorer(model.card, look, executor, "smooth").profile(sample))


def measure(
    pictures: Pictures, model: Model, truth: list[Any], settings: AgentSettings, *, start: int, target: float
) -> dict[str, Any]:
    """One sample and the rung it chose, on all other pictures; where too little moves, from earlier on."""
    taken = _take_from(pictures, settings, start)
    start = taken.first
    began = time.process_time()
    made = profile(model, taken.sample)
    cpu_s = time.process_time() - began
    if made.problem:
        raise ConfigError(f"the sample at picture {start} cannot be scored: {made.problem}")
    steps = steps_of(made)
    wish = Wish(target, batch_s=settings.encode.batch_ms / 1e3)
    home = choose(steps, wish, made.propagate)
    assert home is not None
    # As before there was a bound: by the estimate alone.
    loose = choose([dataclasses.replace(it, f1_low=None) for it in steps], wish, made.propagate)
    assert loose is not None
    stretches = [range(taken.end, len(pictures)), range(taken.first)]
    part: Any = _Part(pictures, stretches)
    rest = [truth[index] for one in stretches for index in one]
    scene = Scene(part, model, rest, Bands.of(model.card))
    chosen = _play(scene, settings, steps[home.index].rung)
    by_estimate = chosen if loose.index == home.index else _play(scene, settings, steps[loose.index].rung)
    amortised = (taken.wire_bytes + made.ByteSize()) / (_HOUR_S * pictures.fps)
    return {
        "start": start,
        "sample": {
            "pictures": made.pictures,
            "looked_at": taken.end - taken.first,
            "coded_bytes": made.sample_bytes,
            "wire_bytes": taken.wire_bytes,
            "profile_bytes": made.ByteSize(),
            "bytes_per_frame_amortised_over_an_hour": amortised,
            "bytes_per_frame_of_this_clip": (taken.wire_bytes + made.ByteSize()) / len(pictures),
        },
        "cloud": {
            "cpu_s": cpu_s,
            "without_model_cpu_s": made.cpu_seconds,
            "inferences": made.inferences,
            "rungs": made.scored,
        },
        "frontier": [asdict(step) for step in steps],
        "chosen": {"why": home.reason, **_expected(steps[home.index])},
        "rest": chosen,
        "by_estimate": {**_expected(steps[loose.index]), "rest": by_estimate},
    }


def _expected(step: Step) -> dict[str, Any]:
    return {
        "rung": step.rung.name,
        "f1": step.f1,
        "f1_low": step.f1_low,
        "bytes_per_s": step.bytes_per_s,
    }


def _play(scene: Scene, settings: AgentSettings, rung: Rung) -> dict[str, Any]:
    encode = {
        **settings.encode.model_dump(),
        "codec": rung.codec,
        "width_px": rung.width_px,
        "crf": rung.crf,
        "max_fps": rung.max_fps,
        "effort": rung.effort,
    }
    point = eyeline.run(
        scene,
        Operating(rung.name, encode=encode, detect={"enabled": False}, heartbeat_s=settings.heartbeat_s),
    )
    return {
        "rung": rung.name,
        "frames": len(scene.pictures),
        "f1": point.f1,
        "f1_low": point.f1_low,
        "f1_high": point.f1_high,
        "bytes_per_frame": point.bytes_per_frame,
        "inferences_per_frame": point.inferences_per_frame,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.calibration", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--model", default="centernet-mobilenetv3", help="the cloud's model")
    parser.add_argument("--noise", type=float, default=0.0, help="sigma of added noise, in grey levels")
    parser.add_argument("--target", type=float, default=0.95, help="F1 that is wanted")
    parser.add_argument("--starts", type=int, default=1, help="how many places to take the sample at")
    parser.add_argument("--seconds", type=float, default=25.0, help="length of the sample")
    parser.add_argument("--crf", type=int, help="quantiser of the sample")
    parser.add_argument("--batch-ms", type=float, default=0.0, help="how long pictures wait for company")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    try:
        run(options, Console(width=150))
    except EyelineError as problem:
        print(f"calibration: {problem}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, write and show. Raises `EyelineError`."""
    settings = AgentSettings.model_validate(
        {
            "device": "edge",
            "cameras": [{"name": "cam", "source": str(options.video)}],
            "encode": {"batch_ms": options.batch_ms},
            "calibration": {
                "seconds": options.seconds,
                **({"crf": options.crf} if options.crf is not None else {}),
            },
        }
    )
    card = served(options.model)
    model = Model(card)
    pictures = Pictures(options.video, None, options.noise)
    truth = reference(pictures, model, CACHE)
    last = max(0, len(pictures) - round(options.seconds * pictures.fps) - round(2 * pictures.fps))
    starts = [last * number // max(options.starts - 1, 1) for number in range(options.starts)]
    found = []
    for start in starts:
        found.append(measure(pictures, model, truth, settings, start=start, target=options.target))
        console.print(_line(found[-1]))
    options.out.mkdir(parents=True, exist_ok=True)
    head = {
        "video": options.video.name,
        "noise": options.noise,
        "fps": pictures.fps,
        "frames": len(pictures),
        "model": card.name,
        "target": options.target,
        "batch_ms": options.batch_ms,
        "sample_crf": settings.calibration.crf,
    }
    file = options.out / "calibration.json"
    file.write_text(json.dumps({**head, "samples": found}, indent=1) + "\n", "utf-8")
    console.print(_table(head, found))
    console.print(f"{file}")


def _line(one: dict[str, Any]) -> str:
    return f"sample at picture {one['start']}: {one['chosen']['why']}"


def _table(head: dict[str, Any], found: Sequence[dict[str, Any]]) -> Table:
    shown = Table(
        "from picture",
        "sample KB",
        "B/frame over an hour",
        "cloud CPU s",
        "rung",
        "F1 told",
        "F1 on the rest",
        "B/frame on the rest",
        "by the estimate alone",
        title=f"{head['video']}, noise {head['noise']:g}, F1 {head['target']:g} wanted",
    )
    for one in found:
        sample, rest, loose = one["sample"], one["rest"], one["by_estimate"]["rest"]
        shown.add_row(
            str(one["start"]),
            f"{sample['wire_bytes'] / 1000:.0f}",
            f"{sample['bytes_per_frame_amortised_over_an_hour']:.1f}",
            f"{one['cloud']['cpu_s']:.0f}",
            one["chosen"]["rung"],
            f"{one['chosen']['f1']:.3f}, >= {one['chosen']['f1_low']:.3f}",
            f"{rest['f1']:.3f} ({rest['f1_low']:.3f} to {rest['f1_high']:.3f})",
            f"{rest['bytes_per_frame']:.0f}",
            f"{loose['f1']:.3f}, {loose['bytes_per_frame']:.0f} B",
        )
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
