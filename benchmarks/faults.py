"""A day of faults in minutes: what is lost, doubled, reordered or late when things break.

    python -m benchmarks.faults --out DIR [--only NAME ...] [--patience TIMES]

Real processes (hub, Triton, workers, API, an agent with its own broker) and a link of ours between agent and
hub. Each scenario starts a system of its own. Counted against the harness's own record of what the cameras
showed (`faults_record`): `captured` frames were shown to a running agent; `results` have a final answer;
`lost` have none that reached both the store and the subscriber, or one that says DEGRADED for a reason that
is no policy of the scenario; `dropped_by_policy` are DEGRADED for such a reason, or were not yet kept when
the agent was killed. `recovery_s`: from the end of the fault (a kill's moment) to the first trustworthy
answer for a later live frame, at the subscriber; a scenario fails beyond 5 s. `p95_ms`: from capture to the
subscriber, over all frames.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.faults_record import Answer, Counted, count
from benchmarks.faults_rig import POLICIES, Rig, Scenario
from benchmarks.faults_scenarios import SCENARIOS, small_disk
from eyeline.errors import ConfigError, EyelineError

_LIVE = 1
Tamper = Callable[[Rig], Any]


@dataclass(frozen=True, slots=True)
class Record:
    """One scenario's line of `faults.json`."""

    name: str
    captured: int
    results: int
    lost: int
    duplicates: int
    out_of_order: int
    dropped_by_policy: int
    recovery_s: float | None
    p95_ms: float | None

    @property
    def is_clean(self) -> bool:
        """Nothing lost, nothing twice, nothing out of order, and answers flow again."""
        bad = self.lost or self.duplicates or self.out_of_order
        return not bad and self.captured > 0 and self.recovery_s is not None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record, with what a person wants to know when it is not as it should be."""

    record: Record
    counted: Counted
    problem: str
    memory_mb: dict[str, int]
    notes: dict[str, Any]

    @property
    def holds(self) -> bool:
        """Whether the scenario went as it must."""
        return self.record.is_clean and not self.problem


async def perform(
    scenario: Scenario,
    state: Path,
    *,
    patience: float = 1.0,
    left_out: int | None = None,
    tamper: Tamper | None = None,
) -> Outcome:
    """Run one scenario in a folder of its own; raises `EyelineError` when the system does not come up.

    patience: how many times its `recovers_s` a recovery may take. left_out, tamper: seeded losses, for the
    test of this harness: a picture that the recording lacks, and a function that is awaited before the stored
    results are read.
    """
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    with small_disk(state / "agent") if scenario.name == "disk_full" else contextlib.nullcontext():
        async with Rig(scenario, state, left_out=left_out) as rig:
            await scenario.play(rig)
            await rig.settle()
            if tamper is not None:
                await tamper(rig)
            stored = await rig.stored()
    counted = count(rig.runs, rig.heard, stored, POLICIES | scenario.policies)
    rig.notes["off_schedule_ms"] = counted.off_schedule_ms
    record = Record(
        scenario.name,
        counted.captured,
        counted.results,
        counted.lost,
        counted.duplicates,
        counted.out_of_order,
        counted.dropped_by_policy,
        _recovery_s(rig.heard, rig.restored_ns),
        counted.p95_ms,
    )
    problem = scenario.check(rig) if scenario.check is not None else ""
    problem = problem or _slow(record.recovery_s, scenario.recovers_s * patience)
    memory = {name: used >> 20 for name, used in rig.memory.items()}
    return Outcome(record, counted, problem, memory, rig.notes)


def _recovery_s(heard: Sequence[Answer], restored_ns: int | None) -> float | None:
    if restored_ns is None:
        return 0.0
    after = [
        it.received_ns
        for it in heard
        if it.captured_ns >= restored_ns and it.lane == _LIVE and not it.degraded
    ]
    return round((min(after) - restored_ns) / 1e9, 2) if after else None


def _slow(recovery_s: float | None, within_s: float) -> str:
    if recovery_s is None or recovery_s <= within_s:
        return ""
    return f"answers flowed again after {recovery_s:.1f} s, not within {within_s:g} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run scenarios; the exit status is 0 when every one of them held."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for faults.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(known), help=", ".join(known))
    parser.add_argument(
        "--patience",
        type=_positive,
        default=1.0,
        metavar="TIMES",
        help="let a recovery take so many times what it may: for a machine with other work (default 1)",
    )
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    out: Path = options.out.absolute()
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise ConfigError(f"--out {out} cannot be written: {problem.strerror}") from None
        outcomes = []
        with _logging_to(out / "harness.log"):
            for name in options.only or known:
                console.print(f"{name}: {known[name].about} ...")
                outcome = asyncio.run(perform(known[name], out / "state", patience=options.patience))
                outcomes.append(outcome)
                console.print(_line(outcome))
                write(out, outcomes)
    except EyelineError as problem:
        print(f"faults: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("faults: stopped", file=sys.stderr)
        return 130
    shutil.rmtree(out / "state", ignore_errors=True)
    console.print(_table(outcomes))
    return 0 if all(outcome.holds for outcome in outcomes) else 1


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def write(out: Path, outcomes: Sequence[Outcome]) -> None:
    """`faults.json`, and `details.json` with reasons, memory and what was lost."""
    (out / "faults.json").write_text(json.dumps([asdict(it.record) for it in outcomes], indent=2) + "\n")
    details = [
        {
            "name": it.record.name,
            "holds": it.holds,
            "problem": it.problem,
            "degraded": dict(it.counted.reasons),
            "lost": it.counted.lost_frames[:200],
            "p50_ms": it.counted.p50_ms,
            "late_frames": it.counted.late,
            "off_schedule_ms": it.counted.off_schedule_ms,
            "largest_resident_mb": it.memory_mb,
            "notes": it.notes,
        }
        for it in outcomes
    ]
    (out / "details.json").write_text(json.dumps(details, indent=2) + "\n")


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Our own events, of killed and restarted children, in a file."""
    with path.open("w", encoding="utf-8") as file:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(file))
        try:
            yield
        finally:
            structlog.reset_defaults()


def _line(outcome: Outcome) -> str:
    record = outcome.record
    mark = "[green]holds[/green]" if outcome.holds else "[red]fails[/red]"
    return (
        f"  {mark} captured {record.captured} results {record.results} lost {record.lost} "
        f"twice {record.duplicates} reordered {record.out_of_order} dropped {record.dropped_by_policy} "
        f"{dict(outcome.counted.reasons) or ''} recovery {record.recovery_s} s p95 {record.p95_ms} ms "
        f"{outcome.problem}"
    )


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Eyeline, a day of faults", title_style="bold")
    table.add_column("scenario")
    for name in ("captured", "results", "lost", "duplicates", "out of order", "dropped by policy"):
        table.add_column(name, justify="right")
    for name in ("recovery, s", "p95, ms"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        record = asdict(outcome.record)
        style = None if outcome.holds else "red"
        table.add_row(*("-" if value is None else str(value) for value in record.values()), style=style)
    return table


if __name__ == "__main__":
    sys.exit(main())
