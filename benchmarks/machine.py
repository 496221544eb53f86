"""What a benchmark ran on, and who else used it meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


def describe() -> dict[str, Any]:
    """Cores, processor, memory, kernel and Python; no names and no paths."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


class Others:
    """How many cores' worth of time went to processes that are neither ours nor our children's."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _busy_s() - sum(_ours().values())

    def share(self) -> float:
        """Cores, since the start; processes of ours must still run."""
        spent = _busy_s() - sum(_ours().values()) - self._before
        return max(0.0, spent / max(time.monotonic() - self._began, 1e-9))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _ours() -> dict[int, float]:
    me = psutil.Process()
    found = {}
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = float(sum(process.cpu_times()[:2]))
    return found


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Seconds that the threads of a process ran, and that they were ready and had to wait for a core."""

    ran_s: float
    waited_s: float

    def __sub__(self, before: Scheduled) -> Scheduled:
        return Scheduled(self.ran_s - before.ran_s, self.waited_s - before.waited_s)


def scheduled(pid: int) -> Scheduled:
    """So far, as Linux counts it; threads that have ended are left out."""
    ran = waited = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            one, two, _ = file.read_text().split()
            ran, waited = ran + int(one), waited + int(two)
    return Scheduled(ran / 1e9, waited / 1e9)
