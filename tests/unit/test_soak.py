"""The soak's own arithmetic: a leak is told from noise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.faults_record import Counted
from benchmarks.soak import Series, Soaked, problems

HOUR_S = 3600.0


def series(mb_per_h: float, *, files: int = 0, noise_mb: float = 0.5) -> Series:
    times = np.arange(0.0, HOUR_S, 2.0)
    noise = np.random.default_rng(3).normal(0, noise_mb, len(times))
    resident = (100 + mb_per_h * times / HOUR_S + noise) * 1e6
    grown = 20 + files * times / HOUR_S
    return Series([(t, int(r), int(f), t / 10) for t, r, f in zip(times, resident, grown, strict=True)])


def soaked(**processes: Series) -> dict[str, object]:
    return Soaked(HOUR_S, 8, Counted(captured=10, results=10), processes, 0).as_json()


def test_the_slope_is_found_and_its_interval_covers_it() -> None:
    figures = series(30.0).figures(600.0)
    low, high = figures["resident_mb_per_h_ci95"]
    assert figures["resident_mb_per_h"] == pytest.approx(30.0, abs=1.0)
    assert low < 30.0 < high
    assert figures["grown_mb_proven"] == pytest.approx(25.0, abs=1.0)
    assert figures["cores"] == pytest.approx(0.1, abs=0.01)


def test_flat_memory_with_noise_is_no_problem() -> None:
    assert problems(soaked(agent=series(0.0), worker=series(2.0, noise_mb=10.0))) == []


def test_a_leak_of_memory_or_files_and_a_lost_frame_are_named() -> None:
    leaking = soaked(agent=series(30.0), worker=series(0.0, files=60))
    leaking["lost"] = 1
    found = problems(leaking)
    assert [line.split()[0] for line in found] == ["1", "agent", "worker"]
