"""A short soak, with the same criteria as the long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import soak

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_minutes_of_moderate_work_lose_nothing_and_stay_flat(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    status = soak.main(["--hours", "0.05", "--cameras", "8", "--growth-mb", "40", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert status == 0, figures["problems"]
    assert figures["captured"] == figures["results"] == 0.05 * 3600 * 5 * 8
    assert figures["lost"] == figures["duplicates"] == figures["out_of_order"] == figures["restarts"] == 0
    assert set(figures["processes"]) == {"hub", "triton", "worker", "api", "agent", "broker"}
