"""Triton's own load generator, where `.ci/install-perf-analyzer` has put it."""

from __future__ import annotations

import asyncio
import csv
import os
from pathlib import Path
from typing import Final

from eyeline.errors import EyelineError

_HOME: Final = Path(__file__).parents[1] / ".cache" / "perf_analyzer"
_WITHIN_S: Final = 120.0


def find() -> Path | None:
    """The program, or None when it is not installed."""
    program = _HOME / "bin" / "perf_analyzer"
    return program if program.is_file() else None


async def rate(program: Path, url: str, model: str, *, in_flight: int, seconds: float, report: Path) -> float:
    """Inferences a second over gRPC, pictures in shared memory, so many requests in flight.

    One window of so many seconds, after a warm-up of the generator's own. Raises `EyelineError`.
    """
    report.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        str(program),
        *("-m", model, "-u", url, "-i", "grpc", "--async", "--shared-memory", "system"),
        *("--output-shared-memory-size", "65536", "--input-data", "random"),
        *("--concurrency-range", str(in_flight), "--measurement-interval", str(int(seconds * 1000))),
        # Whatever it is, one window: steadiness is for us to judge, over the repeats.
        *("--max-trials", "3", "--stability-percentage", "999", "-f", str(report)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "LD_LIBRARY_PATH": str(_HOME / "lib")},
    )
    try:
        async with asyncio.timeout(_WITHIN_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EyelineError(f"perf_analyzer did not end within {_WITHIN_S:g} s") from None
    try:
        with report.open(newline="") as file:
            return float(next(csv.DictReader(file))["Inferences/Second"])
    except (OSError, StopIteration, KeyError, ValueError):
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise EyelineError(f"perf_analyzer gave no figures: {last[0]}") from None
