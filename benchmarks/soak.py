"""Hours of moderate work: memory and file descriptors of every process, and whether a frame was lost.

    python -m benchmarks.soak --hours 1 --cameras 8 [--out FILE]

Real processes on this machine: hub, Triton, worker, API, and an agent with its own broker, whose cameras play
a street in real time. What was shown is counted by the harness's own record, as in `benchmarks.faults`.
`resident_mb_per_h` is the slope of resident memory after warm-up (the first fifth, at most ten minutes), by
least squares over the means of twelve equal stretches, with its 95 % interval: neighbouring samples are not
independent, these nearly are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.faults_record import Counted, count
from benchmarks.faults_rig import POLICIES, Rig, Scenario
from eyeline.errors import EyelineError

_SAMPLE_S: Final = 2.0
_STRETCHES: Final = 12
# Student's t for 95 %, two-sided, at ten degrees of freedom.
_T: Final = 2.228
_LONGEST_WARM_UP_S: Final = 600.0
# Memory counts as flat while no more growth than this is proven over the measured time; in minutes, Triton
# is still meeting batches of new sizes.
GROWTH_MB: Final = 10.0
_MORE_FILES: Final = 5
_MEGA: Final = 1e6


@dataclass(slots=True)
class Series:
    """Samples of one process: seconds since start, resident bytes, open files, processor seconds."""

    samples: list[tuple[float, int, int, float]] = field(default_factory=list)

    def figures(self, warm_up_s: float) -> dict[str, Any]:
        """What the JSON file says of it."""
        rows = np.array([it for it in self.samples if it[0] >= warm_up_s] or self.samples, float)
        slope, half = slope_per_h(rows[:, 0], rows[:, 1] / _MEGA)
        tenth = max(1, len(rows) // 10)
        hours = (rows[-1, 0] - rows[0, 0]) / 3600
        return {
            "resident_mb_first": round(float(rows[:tenth, 1].mean()) / _MEGA, 1),
            "resident_mb_last": round(float(rows[-tenth:, 1].mean()) / _MEGA, 1),
            "resident_mb_max": round(max(it[1] for it in self.samples) / _MEGA, 1),
            "resident_mb_per_h": round(slope, 2),
            "resident_mb_per_h_ci95": [round(slope - half, 2), round(slope + half, 2)],
            "grown_mb_proven": round(max(0.0, (slope - half) * hours), 2),
            "files_first": int(np.median(rows[:tenth, 2])),
            "files_last": int(np.median(rows[-tenth:, 2])),
            "files_max": max(it[2] for it in self.samples),
            "cores": round(self.samples[-1][3] / max(self.samples[-1][0], 1e-9), 3),
        }


def slope_per_h(seconds: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Slope an hour, and half of its 95 % interval, over the means of equal stretches."""
    stretches = [it for it in np.array_split(np.arange(len(seconds)), _STRETCHES) if len(it)]
    if len(stretches) < _STRETCHES:
        return 0.0, math.inf
    x = np.array([seconds[it].mean() for it in stretches]) / 3600
    y = np.array([values[it].mean() for it in stretches])
    across = x - x.mean()
    slope = float((across * y).sum() / (across**2).sum())
    left = y - y.mean() - slope * across
    error = math.sqrt(float((left**2).sum()) / (_STRETCHES - 2) / float((across**2).sum()))
    return slope, _T * error


@dataclass(slots=True)
class Soaked:
    """What came of a run."""

    seconds: float
    cameras: int
    counted: Counted
    series: dict[str, Series]
    restarts: int

    def as_json(self) -> dict[str, Any]:
        """Everything measured."""
        warm_up_s = min(self.seconds / 5, _LONGEST_WARM_UP_S)
        one = self.counted
        return {
            "hours": round(self.seconds / 3600, 4),
            "cameras": self.cameras,
            "captured": one.captured,
            "results": one.results,
            "lost": one.lost,
            "duplicates": one.duplicates,
            "out_of_order": one.out_of_order,
            "dropped_by_policy": one.dropped_by_policy,
            "degraded": dict(one.reasons),
            "lost_frames": one.lost_frames[:50],
            "p50_ms": one.p50_ms,
            "p95_ms": one.p95_ms,
            "restarts": self.restarts,
            "warm_up_s": warm_up_s,
            "processes": {name: it.figures(warm_up_s) for name, it in self.series.items()},
        }


def problems(figures: dict[str, Any], growth_mb: float = GROWTH_MB) -> list[str]:
    """One line for each thing that is not as it must be."""
    found = [
        f"{figures[name]} frames {text}"
        for name, text in (
            ("lost", "lost"),
            ("duplicates", "answered twice"),
            ("out_of_order", "out of order"),
        )
        if figures[name]
    ]
    if figures["restarts"]:
        found.append(f"{figures['restarts']} restarts")
    for name, process in figures["processes"].items():
        if process["grown_mb_proven"] > growth_mb:
            found.append(f"{name} grew by {process['grown_mb_proven']:.0f} MB at least")
        if process["files_last"] > process["files_first"] + _MORE_FILES:
            found.append(f"{name} has {process['files_last']} files open, after {process['files_first']}")
    return found


async def soak(seconds: float, cameras: int, state: Path, *, fps: int, max_fps: float) -> Soaked:
    """Run it; raises `EyelineError` when the system does not come up or a part of it ends."""
    scenario = Scenario(
        "soak",
        "hours of moderate work",
        lambda rig: rig.at(seconds),
        seconds,
        fps,
        cameras,
        agent={"encode": {"max_fps": max_fps}},
        settle_s=60,
    )
    series: dict[str, Series] = {}
    async with Rig(scenario, state) as rig:
        sampling = asyncio.create_task(_sample(rig, series))
        try:
            await scenario.play(rig)
            await rig.settle()
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
        stored = await rig.stored()
        restarts = sum(rig.cloud.running.supervisor.restarts.values()) if rig.cloud.running else 0
    counted = count(rig.runs, rig.heard, stored, POLICIES)
    return Soaked(seconds, cameras, counted, series, restarts)


async def _sample(rig: Rig, series: dict[str, Series]) -> None:
    began = time.monotonic()
    while True:
        for name, process in rig.processes():
            with contextlib.suppress(psutil.Error):
                # Triton's model runs in a child of its own.
                family = [process, *process.children(recursive=True)] if name == "triton" else [process]
                resident = sum(it.memory_info().rss for it in family)
                files = sum(it.num_fds() for it in family)
                cpu_s = sum(sum(it.cpu_times()[:2]) for it in family)
                row = (time.monotonic() - began, resident, files, cpu_s)
                series.setdefault(name, Series()).samples.append(row)
        await asyncio.sleep(_SAMPLE_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; the exit status is 0 when nothing was lost and everything stayed flat."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--fps", type=int, default=5, help="of each camera")
    parser.add_argument("--max-fps", type=float, default=1.0, help="pictures a second that a camera sends")
    parser.add_argument("--growth-mb", type=float, default=GROWTH_MB, help="that a process may show")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--state", type=Path, help="keep logs and data in this folder")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        with tempfile.TemporaryDirectory(prefix="eyeline-soak-") as temporary:
            state = (options.state or Path(temporary)).absolute()
            state.mkdir(parents=True, exist_ok=True)
            soaked = asyncio.run(
                soak(options.hours * 3600, options.cameras, state, fps=options.fps, max_fps=options.max_fps)
            )
    except EyelineError as problem:
        print(f"soak: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("soak: stopped", file=sys.stderr)
        return 130
    figures = soaked.as_json()
    found = problems(figures, options.growth_mb)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**figures, "problems": found}, indent=2) + "\n")
    console.print(_table(figures))
    console.print(
        f"captured {figures['captured']} results {figures['results']} lost {figures['lost']} "
        f"duplicates {figures['duplicates']} out of order {figures['out_of_order']} "
        f"dropped by policy {figures['dropped_by_policy']} {figures['degraded'] or ''} "
        f"p50 {figures['p50_ms']} ms p95 {figures['p95_ms']} ms"
    )
    for line in found:
        console.print(f"[red]{line}[/red]")
    return 1 if found else 0


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title=f"{figures['hours']:g} h, {figures['cameras']} cameras", title_style="bold")
    table.add_column("process")
    for name in ("MB first", "MB last", "MB/h", "95 %", "files first", "files last", "cores"):
        table.add_column(name, justify="right")
    for name, it in figures["processes"].items():
        low, high = it["resident_mb_per_h_ci95"]
        table.add_row(
            name,
            f"{it['resident_mb_first']:.1f}",
            f"{it['resident_mb_last']:.1f}",
            f"{it['resident_mb_per_h']:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
            str(it["files_first"]),
            str(it["files_last"]),
            f"{it['cores']:.2f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
