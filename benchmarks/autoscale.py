"""Replays a day of camera load against the autoscalers of deploy/k8s, and against other metrics.

    python -m benchmarks.autoscale --out DIR [--cameras 3000] [--hours 24] [--seed 1] [--scenario NAME ...]

Ours are the rules as they stand in `deploy/k8s/components/hpa/autoscalers.yaml`; the others get the same
limits and behaviour with another metric: CPU; GPU utilisation; queue time; age of the oldest frame. Told for
each scenario: delay of live frames until Triton has answered (agents do not ease off here), replicas (mean
and most), cost in GPU-hours. It is a simulation: rates of a replica are parameters (`Machine`), of which only
the worker's was measured. Writes DIR/autoscale.json and a plot a scenario.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.autoscale_cluster import Load, Machine, Outcome, Seconds, simulate
from benchmarks.autoscale_hpa import Metric, Rules, read, replaced

mpl.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen before

MANIFEST: Final = Path("deploy/k8s/components/hpa/autoscalers.yaml")
LATE_S: Final = 2.0
_HOUR: Final = 3600
# A worker's processor costs a twentieth of a GPU.
_WORKER: Final = Machine(frames_per_s=280, start_s=20, price=0.05)
_TRITON: Final = Machine(frames_per_s=900, start_s=60, price=1.0)
_SLICES: Final = 7


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens on that day."""

    name: str
    what: str
    load: Callable[[argparse.Namespace], Load]
    triton: Machine = _TRITON
    # Replicas of Triton allowed, over what the manifest allows.
    triton_replicas: int = 1


def metrics() -> dict[str, tuple[tuple[Metric, ...], tuple[Metric, ...]] | None]:
    """What each policy scales workers and Triton by; None for what the manifest says."""
    cpu = Metric("cpu", "utilization", 0.75)
    oldest = Metric("oldest_seconds", "value", LATE_S)
    return {
        "seconds of work (ours)": None,
        "CPU": ((cpu,), (Metric("triton_cpu", "utilization", 0.75),)),
        "GPU utilisation": ((cpu,), (Metric("gpu", "utilization", 0.7),)),
        "queue time": (
            (Metric("hub_queue_seconds", "value", 1.0),),
            (Metric("triton_queue_seconds", "value", 0.05),),
        ),
        "age of oldest": ((oldest,), (oldest,)),
    }


def policies(manifest: Path) -> dict[str, dict[str, Rules]]:
    """Rules by policy and by what they scale."""
    ours = read(manifest)
    found = {}
    for name, pair in metrics().items():
        found[name] = (
            ours
            if pair is None
            else {
                "eyeline-worker": replaced(ours["eyeline-worker"], pair[0]),
                "eyeline-triton": replaced(ours["eyeline-triton"], pair[1]),
            }
        )
    return found


def busy_share(options: argparse.Namespace) -> Seconds:
    """Share of cameras that see something move, by second: two rush hours, gusts, a thunderstorm at 15:00."""
    rng = np.random.default_rng(options.seed)
    hours = np.arange(options.hours * _HOUR) / _HOUR
    share = 0.06 + 0.42 * np.exp(-(((hours - 8.3) / 1.1) ** 2)) + 0.5 * np.exp(-(((hours - 17.6) / 1.5) ** 2))
    share = share + 0.2 * np.exp(-(((hours - 13.0) / 3.0) ** 2))
    gusts = np.repeat(rng.normal(0, 0.06, len(hours) // 120 + 1), 120)[: len(hours)]
    share = share * (1 + gusts)
    share[(hours >= 15) & (hours < 15 + 0.1)] = 0.85
    return np.clip(share, 0.02, 1.0)


def day(options: argparse.Namespace) -> Load:
    """An ordinary one."""
    rng = np.random.default_rng(options.seed + 1)
    live = rng.poisson(busy_share(options) * options.cameras * options.fps).astype(np.float64)
    length = len(live)
    return Load(live, np.zeros(length), np.zeros(length, bool), np.zeros(length))


def _between(load: Load, start_h: float, end_h: float) -> slice:
    return slice(int(start_h * _HOUR), min(int(end_h * _HOUR), len(load.live)))


def outage(options: argparse.Namespace) -> Load:
    """Two of five cameras are cut off from 6 to 9; what they kept comes at twice their live rate."""
    load = day(options)
    live, backlog, part = load.live.copy(), load.backlog.copy(), 0.4
    cut = _between(load, 6, 9)
    kept = float(live[cut].sum()) * part
    live[cut] *= 1 - part
    for second in range(cut.stop, len(live)):
        backlog[second] = min(kept, 2 * part * load.live[second])
        kept -= backlog[second]
        if kept <= 0:
            break
    return replace(load, live=live, backlog=backlog)


def no_metrics(options: argparse.Namespace) -> Load:
    """Prometheus is away from 16:00 to 16:40, while the rush hour begins."""
    load = day(options)
    load.no_metrics[_between(load, 16, 16 + 2 / 3)] = True
    return load


def skewed(options: argparse.Namespace) -> Load:
    """From 2 in the morning on one device's clock is an hour behind."""
    load = day(options)
    load.false_age_s[_between(load, 2, 24)] = 3600.0
    return load


def poisoned(options: argparse.Namespace) -> Load:
    """At 2 in the morning a message comes that no worker can use."""
    load = day(options)
    found = _between(load, 2, 24)
    load.false_age_s[found] = np.arange(found.stop - found.start)
    return load


SCENARIOS: Final = (
    Scenario("day", "an ordinary day", day),
    Scenario("outage", "two of five cameras away from 6 to 9, then their backlog", outage),
    Scenario("slow-gpu", "a new GPU node takes six minutes", day, replace(_TRITON, start_s=360)),
    Scenario("no-metrics", "Prometheus away for 40 minutes while the rush hour begins", no_metrics),
    Scenario(
        "cold-engine",
        "a new Triton serves a quarter as fast for ten minutes, until its engine is built",
        day,
        replace(_TRITON, cold_s=600, cold_frames_per_s=225),
    ),
    Scenario("skewed-clock", "a device's clock is an hour behind", skewed),
    Scenario("poison", "one message that is never answered", poisoned),
    Scenario(
        "mig",
        f"{_SLICES} slices a GPU",
        day,
        replace(_TRITON, frames_per_s=900 / _SLICES, price=1 / _SLICES),
        _SLICES,
    ),
)


def figures(outcome: Outcome) -> dict[str, float]:
    """Of one day under one policy."""
    order = np.argsort(outcome.delays)
    weights = np.cumsum(outcome.frames[order])
    points = np.searchsorted(weights, np.array([0.5, 0.95, 0.99]) * weights[-1])
    p50, p95, p99 = outcome.delays[order][np.minimum(points, len(order) - 1)]
    late = float(outcome.frames[outcome.delays > LATE_S].sum() / outcome.frames.sum())
    return {
        "p50_s": float(p50),
        "p95_s": float(p95),
        "p99_s": float(p99),
        "late_share": late,
        "backlog_left_frames": outcome.backlog_left,
        "workers_mean": float(outcome.workers.mean()),
        "workers_most": float(outcome.workers.max()),
        "tritons_mean": float(outcome.tritons.mean()),
        "tritons_most": float(outcome.tritons.max()),
        "cost_gpu_hours": outcome.cost,
    }


def run(scenario: Scenario, rules: Mapping[str, Rules], options: argparse.Namespace) -> Outcome:
    """That day under these rules."""
    triton = rules["eyeline-triton"]
    wider = replace(
        triton, least=triton.least * scenario.triton_replicas, most=triton.most * scenario.triton_replicas
    )
    return simulate(scenario.load(options), {**rules, "eyeline-triton": wider}, _WORKER, scenario.triton)


def plot(path: Path, scenario: Scenario, outcomes: Mapping[str, Outcome]) -> None:
    """Load, replicas of Triton, and delay over the day."""
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    for name, outcome in outcomes.items():
        hours = np.arange(len(outcome.delays)) / _HOUR
        (line,) = axes[1].plot(hours, outcome.tritons, label=name, linewidth=1)
        axes[2].plot(hours[::30], outcome.delays[::30] + 0.5, color=line.get_color(), linewidth=0.8)
    smooth = np.convolve(outcome.frames, np.ones(60) / 60, "same")
    axes[0].plot(hours, smooth, color="#333333", linewidth=0.8)
    for axis, text in zip(axes, ("live frames a second", "Triton replicas", "delay in s"), strict=True):
        axis.set_ylabel(text)
        axis.grid(alpha=0.3)
    axes[2].set_yscale("log")
    axes[2].set_xlabel("hour of the day")
    axes[1].legend(fontsize=8, ncols=2, loc="upper left")
    figure.suptitle(f"{scenario.name}: {scenario.what}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _table(scenario: Scenario, rows: Mapping[str, dict[str, float]]) -> Table:
    table = Table(title=f"{scenario.name}: {scenario.what}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("scaled by", no_wrap=True)
    heads = ("p95", "p99 s", "> 2 s", "workers", "Triton", "GPU-h")
    for head in heads:
        table.add_column(head, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            *(f"{row[key]:.0f}" for key in ("p95_s", "p99_s")),
            f"{row['late_share']:.2%}",
            f"{row['workers_mean']:.1f}/{row['workers_most']:.0f}",
            f"{row['tritons_mean']:.1f}/{row['tritons_most']:.0f}",
            f"{row['cost_gpu_hours']:.0f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoscale", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for autoscale.json and the plots")
    parser.add_argument("--cameras", type=int, default=3000)
    parser.add_argument(
        "--fps", type=float, default=2.0, help="frames with pixels a second, of a busy camera"
    )
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", action="append", choices=[each.name for each in SCENARIOS])
    options = parser.parse_args(arguments)
    if not MANIFEST.is_file():
        print(f"autoscale: {MANIFEST} is not here; run it in the repository's root", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    console, found = Console(), []
    for scenario in SCENARIOS:
        if options.scenario and scenario.name not in options.scenario:
            continue
        outcomes = {name: run(scenario, rules, options) for name, rules in policies(MANIFEST).items()}
        rows = {name: figures(outcome) for name, outcome in outcomes.items()}
        console.print(_table(scenario, rows))
        plot(options.out / f"{scenario.name}.png", scenario, outcomes)
        found.append({"scenario": scenario.name, "what": scenario.what, "policies": rows})
    head: dict[str, Any] = {key: getattr(options, key) for key in ("cameras", "fps", "hours", "seed")}
    (options.out / "autoscale.json").write_text(
        json.dumps({**head, "scenarios": found}, indent=1) + "\n", "utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
