"""The motion gate on real clips: what it misses, what it opens for without need, what idle time costs.

    python -m benchmarks.gate [--model CLOUD] [--windows 1x1 ...] [--out FILE] VIDEO ...

A new object is one that the cloud model finds (score 0.5 and more) in at least three frames of its life
after the first second; it counts as missed when no frame that shows it was sent, and as unnoticed when the
gate was closed in all of them. A window is a part of the picture taken for a camera of its own, where
objects come and go that a whole street always has some of: 3x2 makes six of each clip.

Each case of `gate_cases` is put on the clip, and on its calmest three seconds, played to and fro for a
minute, where every frame that finds the gate open (or is sent) is one too many. Gate and plan are the agent's
own, with their defaults.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
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
# An object belongs to a window that shows so much of its box.
_SHOWN = 0.6


@dataclass(slots=True)
class Object:
    """Frames in which the reference shows it, ascending; sure: those with the full score."""

    name: str
    box: FloatArray
    shown: list[int] = field(default_factory=list)
    sure: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one clip and case, all windows of a grid (columns x rows) together.

    missed: never sent; unnoticed: of those, the ones that never found the gate open. late_s: 95th percentile
    of the time from an object's first sight to the first frame sent that shows it. idle_open, idle_sent:
    share of the frames of an empty minute; None where no window is ever calm.
    """

    clip: str
    grid: str
    case: str
    objects: int
    missed: int
    unnoticed: int
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


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the picture, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    def part(self, plane: Luma) -> Luma:
        """What it shows of a picture."""
        return np.ascontiguousarray(plane[self.top : self.bottom, self.left : self.right])

    def shown(self, found: Detections) -> Detections:
        """The objects that are in it, boxes in its own pixels, cut off at its edges."""
        corner = np.array([self.left, self.top] * 2, np.float32)
        far = np.array([self.right - self.left, self.bottom - self.top] * 2, np.float32)
        cut = np.clip(found.boxes - corner, 0, far)
        inside = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
        boxes = found.boxes
        whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = np.flatnonzero((inside >= _SHOWN * whole) & (inside > 0))
        names = tuple(found.class_names[it] for it in kept)
        return Detections.build(cut[kept], found.scores[kept], found.class_ids[kept], names)


def windows(size: tuple[int, int], columns: int, rows: int) -> list[Window]:
    """A picture of that width and height, cut into a grid."""
    across = np.linspace(0, size[0], columns + 1).astype(int).tolist()
    down = np.linspace(0, size[1], rows + 1).astype(int).tolist()
    return [
        Window(left, top, right, bottom)
        for top, bottom in itertools.pairwise(down)
        for left, right in itertools.pairwise(across)
    ]


def measure(
    pictures: Pictures, found: Sequence[Detections], case: str, apply: Case, grid: tuple[int, int] = (1, 1)
) -> Outcome:
    """One case on one clip, in every window."""
    fps = pictures.fps
    opened_at: list[NDArray[np.bool_]] = []
    idle: list[tuple[float, float]] = []
    lateness: list[float] = []
    sent_share, count, missed, unnoticed = [], 0, 0, 0
    for window in windows(pictures.size, *grid):
        planes = [window.part(plane) for plane in _planes(pictures)]
        opened, sent = look(apply(planes, fps), fps)
        opened_at.append(np.array(opened))
        sent_share.append(float(np.mean(sent)))
        shown = [window.shown(one) for one in found]
        for it in objects(shown):
            if it.sure < LEAST_FRAMES or it.shown[0] < fps:
                continue
            count += 1
            first = next((at for at in it.shown if sent[at]), None)
            if first is None:
                missed += 1
                unnoticed += not any(opened[at] for at in it.shown)
            else:
                lateness.append((first - it.shown[0]) / fps)
        start, end = calm_stretch(planes, fps)
        if end > start:
            idle.append(_idle(planes[start:end], apply, fps))
    return Outcome(
        clip=pictures.path.name,
        grid=f"{grid[0]}x{grid[1]}",
        case=case,
        objects=count,
        missed=missed,
        unnoticed=unnoticed,
        late_s=float(np.percentile(lateness, 95)) if lateness else 0.0,
        open_share=float(np.mean(opened_at)),
        sent_share=float(np.mean(sent_share)),
        idle_open=float(np.mean([it[0] for it in idle])) if idle else None,
        idle_sent=float(np.mean([it[1] for it in idle])) if idle else None,
    )


def _idle(calm: Sequence[Luma], apply: Case, fps: float) -> tuple[float, float]:
    """Shares of the frames of an empty minute that find the gate open, and that are sent."""
    learn = round(_LEARN_S * fps)
    opened, sent = look(apply(to_and_fro(calm, round(_IDLE_S * fps) + learn), fps), fps)
    return float(np.mean(opened[learn:])), float(np.mean(sent[learn:]))


def _planes(pictures: Pictures) -> Iterator[Luma]:
    for shown in pictures:
        yield Frame(1, 0, 0, shown).luma()


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each clip and case."""
    shown = Table(
        "clip",
        "windows",
        "case",
        "new objects",
        "missed",
        "unnoticed",
        "late p95 s",
        "open",
        "sent",
        "idle: open",
        "idle: sent",
    )
    for one in outcomes:
        idle = [f"{it:.3f}" if it is not None else "-" for it in (one.idle_open, one.idle_sent)]
        shown.add_row(
            one.clip,
            one.grid,
            one.case,
            str(one.objects),
            str(one.missed),
            str(one.unnoticed),
            f"{one.late_s:.1f}",
            f"{one.open_share:.3f}",
            f"{one.sent_share:.3f}",
            *idle,
        )
    return shown


def _grid(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    if not (columns.isdigit() and rows.isdigit() and 1 <= int(columns) <= 8 and 1 <= int(rows) <= 8):
        raise argparse.ArgumentTypeError(f"{text!r} is no grid such as 3x2, at most 8x8")
    return int(columns), int(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gate", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--model", default="centernet-mobilenetv3", help="the cloud's model")
    parser.add_argument(
        "--windows",
        nargs="+",
        type=_grid,
        default=[(1, 1)],
        metavar="COLUMNSxROWS",
        help="cut each clip into so many, each a camera of its own; several are measured in turn",
    )
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
            for grid in options.windows:
                for case, apply in CASES.items():
                    outcomes.append(measure(pictures, found, case, apply, grid))
    except EyelineError as problem:
        print(f"gate: {problem}", file=sys.stderr)
        return 1
    Console(width=140).print(table(outcomes))
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
