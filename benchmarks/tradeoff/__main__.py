"""Accuracy against bytes: Eyeline beside JPEG, an x264 sweep, the edge model alone and the camera's packets.

    python -m benchmarks.tradeoff --video FILE [--model CLOUD] [--edge-model EDGE] [--noise SIGMA]
                                  [--pan PX] [--frames N] [--keep FILE] --out DIR

Writes tradeoff.json, tradeoff.png and table.txt into the output folder. Models are names of the catalogue,
model folders or served ONNX files, or an export of YOLOX, which is made a served model first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console

from benchmarks.score import Bands
from benchmarks.tradeoff import baselines, eyeline, full, report
from benchmarks.tradeoff.clip import Model, Pictures, Scene, reference
from benchmarks.tradeoff.operating import PIXELS
from benchmarks.tradeoff.points import Point
from edge_agent.config import DetectSettings
from edge_agent.detect import load as load_edge
from eyeline.errors import ConfigError, EyelineError
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard
from eyeline_models.importing import Wish, bring

CACHE = Path("build/tradeoff")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.tradeoff", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--model", default="centernet-mobilenetv3", help="the cloud's model")
    parser.add_argument("--edge-model", default=DetectSettings().model, help="the model on the device")
    parser.add_argument("--noise", type=float, default=0.0, help="sigma of added noise, in grey levels")
    parser.add_argument(
        "--pan",
        type=float,
        default=0.0,
        metavar="PX",
        help="show a window of two thirds of the picture, moving to and fro by so many pixels a frame",
    )
    parser.add_argument("--frames", type=int, help="only so many of the clip")
    parser.add_argument(
        "--enough",
        type=float,
        default=1.0,
        metavar="F1",
        help="leave out finer x264 points from this F1 on (the summary uses none above 0.985)",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--fresh", action="store_true", help="measure baselines anew, whatever is kept of them"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="take all but the full curve from this tradeoff.json of the same pictures and model",
    )
    options = parser.parse_args(arguments)
    if options.noise < 0 or options.pan < 0 or (options.frames is not None and options.frames < 1):
        parser.error("--noise and --pan must be at least 0, --frames at least 1")
    cv2.setNumThreads(1)
    try:
        run(options, Console(width=170))
    except EyelineError as problem:
        print(f"tradeoff: {problem}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace, console: Console) -> dict[str, float | None]:
    """Measure everything and write it; returns the summary. Raises `EyelineError`."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    before = _read(options.keep) if options.keep is not None else None
    card = served(options.model)
    model = Model(card)
    pictures = Pictures(options.video, options.frames, options.noise, options.pan)
    with console.status("reference") as status:
        scene = Scene(pictures, model, reference(pictures, model, CACHE), Bands())
        began = time.monotonic()
        head = _head(options, scene)
        kept = _of_before(options.keep, before, head) if before is not None else None
        found = kept if kept is not None else list(_baselines(options, scene, status.update))
        edge = load_edge(DetectSettings(model=str(served(options.edge_model).path)))
        for point in full.run(scene, edge):
            found.append(point)
            _say(console, point)
        for operating in PIXELS if kept is None else ():
            status.update(operating.name)
            found.append(eyeline.run(scene, operating))
            _say(console, found[-1])
    figures = report.write(out / "tradeoff.json", head, found)
    noise = f", noise {options.noise:g}" if options.noise else ""
    pan = f", panned {options.pan:g} px a frame" if options.pan else ""
    title = f"{options.video.name}{noise}{pan}: {len(pictures)} frames"
    report.plot(out / "tradeoff.png", title, found, figures)
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=190).print(report.table(found))
    console.print(report.table(found))
    for name, value in figures.items():
        console.print(f"  {name:34s} {'-' if value is None else f'{value:10.4g}'}")
    console.print(f"{out / 'tradeoff.json'}, {time.monotonic() - began:.0f} s")
    return figures


def _head(options: argparse.Namespace, scene: Scene) -> dict[str, Any]:
    """What was measured on."""
    card, pictures = scene.model.card, scene.pictures
    return {
        "video": {
            "file": options.video.name,
            "noise": options.noise,
            "pan": options.pan,
            "size": list(pictures.size),
            "fps": pictures.fps,
        },
        "frames": len(pictures),
        "reference": {"model": card.name, "sha256": card.sha256, "bands": asdict(scene.bands)},
    }


def _read(file: Path) -> dict[str, Any]:
    """An earlier result; raises `ConfigError` for what is none."""
    try:
        before = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"--keep {file} cannot be read: {problem}") from None
    if not isinstance(before, dict) or "points" not in before:
        raise ConfigError(f"--keep {file} is no tradeoff.json")
    return before


def _of_before(file: Path, before: dict[str, Any], head: dict[str, Any]) -> list[Point]:
    """An earlier result but its full curve; raises `ConfigError` if it is of something else."""
    if any(before.get(key) != value for key, value in head.items()):
        raise ConfigError(f"{file} was not measured on the same pictures with the same model")
    return [Point(**point) for point in before["points"] if point["kind"] != "eyeline"]


def _baselines(options: argparse.Namespace, scene: Scene, step: Callable[[str], None]) -> Iterator[Point]:
    """B1 to B5, each kept by the digest of all that decides it."""
    key = f"{scene.pictures.digest} {scene.model.card.sha256}"
    edge_card = served(options.edge_model)
    if edge_card.sha256 != scene.model.card.sha256:
        step("edge only")
        settings = DetectSettings(model=str(edge_card.path))
        yield _kept(
            options,
            f"edge {edge_card.sha256} {key}",
            lambda: baselines.edge_only(scene, load_edge(settings)),
        )
    step("jpeg")
    yield _kept(options, f"jpeg {key}", lambda: baselines.jpeg(scene))
    if not options.noise and not options.pan:
        step("passthrough")
        yield _kept(options, f"own {key}", lambda: baselines.passthrough(scene))
    for longer_px in dict.fromkeys((max(scene.model.card.input_size), max(scene.pictures.size))):
        for crf in reversed(baselines.CRFS):
            step(f"x264 {longer_px}px crf{crf}")
            point = _kept(
                options,
                f"x264 {crf} {longer_px} {key}",
                lambda crf=crf, side=longer_px: baselines.x264(scene, crf, side),
            )
            yield point
            if point.f1 >= options.enough:
                break


def _kept(options: argparse.Namespace, what: str, measure: Any) -> Point:
    key = hashlib.sha256(f"{baselines.VERSION} {what}".encode()).hexdigest()[:24]
    file = CACHE / f"baseline-{key}.json"
    if file.is_file() and not options.fresh:
        return Point(**json.loads(file.read_text("utf-8")))
    found: Point = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(found)), "utf-8")
    return found


def served(name: str) -> ModelCard:
    """The model of that name; an export that is no served model yet becomes one in the cache."""
    path = Path(name)
    if path.suffix == ".onnx" and path.is_file() and not (path.parent / catalogue.CARD).is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        folder = CACHE / "models" / f"{path.stem.replace('.', '-')}-{digest}"
        if not (folder / catalogue.CARD).is_file():
            bring(path, Wish(name=folder.name), CACHE / "models")
        return catalogue.load(str(folder))
    if path.suffix == ".onnx" and not path.is_file():
        raise ConfigError(f"{name} is no file")
    return catalogue.load(name)


def _say(console: Console, point: Point) -> None:
    console.print(
        f"{point.name:34s} {point.bytes_per_frame:9.1f} B  F1 {point.f1:.4f}"
        f"  {point.inferences_per_frame:.3f} inferences"
    )


if __name__ == "__main__":
    raise SystemExit(main())
