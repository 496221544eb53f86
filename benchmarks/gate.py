"""The motion gate on real clips: what it misses, what it opens for without need, what idle time costs.

    python -m benchmarks.gate [--model CLOUD] [--out FILE] VIDEO ...

A new object is one that the cloud model finds (score 0.5 and more) in at least three frames of its life
after the first second; it counts as missed when no frame that shows it was sent. Each case of `gate_cases` is
put on the clip, and on its calmest three seconds, played to and fro for a minute, where every frame that
finds the gate open (or is sent) is one too many. Gate and plan are the agent's own, with their defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.gate_cases import CASES, Case, Luma
from benchmarks.score import iou
from benchmarks.tradeoff.__main__ import CACHE, served
from benchmarks.tradeoff.clip import Model, Pictures, reference
from edge_agent.config import DetectSettings, EncodeSettings, GateSettings
from edge_agent.frame import Frame
from edge_agent.gate import Gate
from edge_agent.plan import Action, LinkState, Planner
from eyeline.errors import EyelineError
from eyeline.values import Detections, FloatArray

MUST, IGNORE = 0.5, 0.2
LEAST_FRAMES = 3
# An object that the model loses for longer is another one when it comes back.
_LOST_FRAMES = 10
_IDLE_S = 60.0
# An idle stretch: so long, and no part of 48 x 32 of the picture differs by more grey levels from its median.
_CALM_S = 3.0
_CALM_LEVELS = 8.0
_LEARN_S = 10.0


@dataclass(slots=True)
class Object:
    """Frames in which the reference shows it, ascending; sure: those with the full score."""

    name: str
    box: FloatArray
    shown: list[int] = field(default_factory=list)
    sure: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one clip and case.

    late_s: 95th percentile of the time from an object's first sight to the first frame sent that shows it.
    idle_open, idle_sent: share of the frames of an empty minute; None where the clip is never calm.
    """

    clip: str
    case: str
    objects: int
    missed: int
    late_s: float
    open_share: float
    sent_share: float
    idle_open: float | None
    idle_sent: float | None


def objects(found: Sequence[Detections]) -> list[Object]:
    """What the reference shows, over time: greedy, by overlap with where it was last."""
    alive: list[Object] = []
    every: list[Object] = []
    for index, detections in enumerate(found):
        alive = [it for it in alive if index - it.shown[-1] <= _LOST_FRAMES]
        seen = detections.take(detections.scores >= IGNORE)
        overlap = iou(np.stack([it.box for it in alive]), seen.boxes) if alive else np.zeros((0, len(seen)))
        names = np.array([it.name for it in alive], object)[:, None]
        overlap[names != np.array(seen.class_names, object)[None, :]] = 0
        taken: dict[int, Object] = {}
        for flat in np.argsort(-overlap, axis=None, kind="stable"):
            row, column = divmod(int(flat), max(len(seen), 1))
            if overlap[row, column] <= 0.2:
                break
            if column not in taken and all(it is not alive[row] for it in taken.values()):
                taken[column] = alive[row]
        for column in range(len(seen)):
            it = taken.get(column)
            if it is None:
                it = Object(seen.class_names[column], seen.boxes[column])
                alive.append(it)
                every.append(it)
            it.box = seen.boxes[column]
            it.shown.append(index)
            it.sure += bool(seen.scores[column] >= MUST)
    return every


def look(planes: Iterable[Luma], fps: float) -> tuple[list[bool], list[bool]]:
    """For each frame: whether the gate was open, and whether it was sent."""
    gate = Gate(GateSettings())
    planner = Planner(EncodeSettings(), DetectSettings(enabled=False))
    opened, sent = [], []
    for index, plane in enumerate(planes):
        now_ns = 10**9 + int(index * 1e9 / fps)
        decision = gate.look(plane, now_ns)
        opened.append(decision.open)
        sent.append(planner.decide(decision, now_ns, LinkState()).action is Action.SEND)
    return opened, sent


def calm_stretch(planes: Iterable[Luma], fps: float) -> tuple[int, int]:
    """The stretch of `_CALM_S` in which least happens: first and last frame, or (0, 0) when much does."""
    small = np.stack([cv2.resize(it, (48, 32), interpolation=cv2.INTER_AREA) for it in planes]).astype(
        np.int16
    )
    length = round(_CALM_S * fps)
    best, least = (0, 0), _CALM_LEVELS
    for start in range(0, len(small) - length, max(1, length // 4)):
        some = small[start : start + length]
        change = float(np.abs(some - np.median(some, 0)).max())
        if change < least:
            best, least = (start, start + length), change
    return best


def to_and_fro(planes: Sequence[Luma], count: int) -> Iterator[Luma]:
    """The same pictures forwards and backwards, so many: a still scene's own noise, without end."""
    turn = [*range(len(planes)), *range(len(planes) - 2, 0, -1)]
    for index in range(count):
        yield planes[turn[index % len(turn)]]


def measure(pictures: Pictures, found: Sequence[Detections], case: str, apply: Case) -> Outcome:
    """One case on one clip."""
    fps = pictures.fps
    opened, sent = look(apply(_planes(pictures), fps), fps)
    lateness, missed = [], 0
    new = [it for it in objects(found) if it.sure >= LEAST_FRAMES and it.shown[0] >= fps]
    for it in new:
        first = next((at for at in it.shown if sent[at]), None)
        missed += first is None
        if first is not None:
            lateness.append((first - it.shown[0]) / fps)
    start, end = calm_stretch(_planes(pictures), fps)
    idle = None
    if end > start:
        calm = [plane for index, plane in enumerate(_planes(pictures)) if start <= index < end]
        learn = round(_LEARN_S * fps)
        idle = look(apply(to_and_fro(calm, round(_IDLE_S * fps) + learn), fps), fps)
        idle = idle[0][learn:], idle[1][learn:]
    return Outcome(
        clip=pictures.path.name,
        case=case,
        objects=len(new),
        missed=missed,
        late_s=float(np.percentile(lateness, 95)) if lateness else 0.0,
        open_share=float(np.mean(opened)),
        sent_share=float(np.mean(sent)),
        idle_open=float(np.mean(idle[0])) if idle else None,
        idle_sent=float(np.mean(idle[1])) if idle else None,
    )


def _planes(pictures: Pictures) -> Iterator[Luma]:
    for shown in pictures:
        yield Frame(1, 0, 0, shown).luma()


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each clip and case."""
    shown = Table(
        "clip", "case", "new objects", "missed", "late p95 s", "open", "sent", "idle: open", "idle: sent"
    )
    for one in outcomes:
        idle = [f"{it:.3f}" if it is not None else "-" for it in (one.idle_open, one.idle_sent)]
        shown.add_row(
            one.clip,
            one.case,
            str(one.objects),
            str(one.missed),
            f"{one.late_s:.1f}",
            f"{one.open_share:.3f}",
            f"{one.sent_share:.3f}",
            *idle,
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gate", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--model", default="centernet-mobilenetv3", help="the cloud's model")
    parser.add_argument("--frames", type=int, help="only so many of each clip")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    outcomes = []
    try:
        model = Model(served(options.model))
        for video in options.videos:
            pictures = Pictures(video, options.frames, 0.0)
            found = reference(pictures, model, CACHE)
            for case, apply in CASES.items():
                outcomes.append(measure(pictures, found, case, apply))
    except EyelineError as problem:
        print(f"gate: {problem}", file=sys.stderr)
        return 1
    Console(width=120).print(table(outcomes))
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
