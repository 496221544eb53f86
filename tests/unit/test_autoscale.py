"""The simulated autoscaler does what Kubernetes' documentation says, and our rules what they promise."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import autoscale
from benchmarks.autoscale_cluster import MOST_BACKLOG_BUSY, MOST_BACKLOG_WORK, Load, Machine, simulate
from benchmarks.autoscale_hpa import Autoscaler, Direction, Metric, Policy, Rules, quantity, read, wanted

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / autoscale.MANIFEST
RULES = ROOT / "deploy" / "k8s" / "components" / "monitoring" / "rules.yaml"
OPTIONS = argparse.Namespace(cameras=300, fps=2.0, hours=3, seed=1)
FREE = Direction(0, (Policy("Percent", 1000, 15), Policy("Pods", 100, 15)))
AVERAGE = Metric("queued", "average", 10)


def scaler(*metrics: Metric, up: Direction = FREE, down: Direction = FREE, most: int = 50) -> Autoscaler:
    return Autoscaler(Rules(1, most, metrics, up, down))


@pytest.mark.parametrize(("text", "value"), [("200m", 0.2), ("2", 2.0), (3, 3.0), ("1k", 1000.0)])
def test_quantities(text: str | int, value: float) -> None:
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("metric", "reading", "replicas", "ready", "answer"),
    [
        # The documentation's own example: 200m against 100m doubles, 50m halves.
        (Metric("x", "value", 0.1), 0.2, 4, 4, 8),
        (Metric("x", "value", 0.1), 0.05, 4, 4, 2),
        # Within a tenth of the target nothing happens.
        (Metric("x", "value", 0.1), 0.109, 4, 4, 4),
        (AVERAGE, 41, 2, 2, 5),
        (AVERAGE, 21, 2, 2, 2),
        # Two of four are not ready: they count as idle before anything is scaled out.
        (Metric("cpu", "utilization", 0.5), 0.9, 4, 2, 4),
        (Metric("cpu", "utilization", 0.5), 1.5, 4, 2, 6),
        (AVERAGE, None, 2, 2, None),
    ],
)
def test_one_metric(
    metric: Metric, reading: float | None, replicas: int, ready: int, answer: int | None
) -> None:
    assert wanted(metric, reading, replicas, ready) == answer


def test_the_largest_answer_counts_and_a_missing_one_scales_nothing_in() -> None:
    two = (AVERAGE, Metric("other", "average", 1))
    assert scaler(*two).step(0, {"queued": 10, "other": 7}, 4, 4) == 7
    assert scaler(*two).step(0, {"queued": 10, "other": None}, 4, 4) == 4
    assert scaler(*two).step(0, {"queued": 90, "other": None}, 4, 4) == 9
    assert scaler(*two).step(0, {}, 4, 4) == 4


def test_scaling_in_waits_for_its_window() -> None:
    slow = scaler(AVERAGE, down=Direction(60, FREE.policies))
    assert slow.step(0, {"queued": 80}, 8, 8) == 8
    assert [slow.step(at, {"queued": 10}, 8, 8) for at in (15, 30, 45)] == [8, 8, 8]
    assert slow.step(61, {"queued": 10}, 8, 8) == 1


def test_policies_limit_each_period() -> None:
    up = Direction(0, (Policy("Percent", 100, 30), Policy("Pods", 2, 30)))
    eager = scaler(AVERAGE, up=up)
    assert eager.step(0, {"queued": 500}, 1, 1) == 3
    assert eager.step(15, {"queued": 500}, 3, 3) == 3
    assert eager.step(31, {"queued": 500}, 3, 3) == 6
    down = Direction(0, (Policy("Pods", 1, 120),))
    gentle = scaler(AVERAGE, down=down)
    assert gentle.step(0, {"queued": 0}, 5, 5) == 4
    assert gentle.step(60, {"queued": 0}, 4, 4) == 4
    assert gentle.step(121, {"queued": 0}, 4, 4) == 3


def test_the_manifest_is_read_and_the_rules_are_those_simulated() -> None:
    rules = read(MANIFEST)
    assert set(rules) == {"eyeline-worker", "eyeline-triton"}
    recorded = {
        rule["record"]: rule["expr"]
        for group in yaml.safe_load(RULES.read_text())["spec"]["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    assert f"{MOST_BACKLOG_WORK:.0f}\n)" in recorded["eyeline:worker_backlog_work:seconds"]
    assert f", {MOST_BACKLOG_BUSY:g})" in recorded["eyeline:triton_wanted:ratio"]
    scaled_by = {metric.name for each in rules.values() for metric in each.metrics}
    assert scaled_by <= {name.replace(":", "_") for name in recorded}


def constant(rate: float, seconds: int = 1800) -> Load:
    return Load(np.full(seconds, rate), np.zeros(seconds), np.zeros(seconds, bool), np.zeros(seconds))


def test_frames_wait_as_long_as_the_cluster_is_too_small() -> None:
    rules = read(MANIFEST)
    fixed = {name: replace(each, least=2, most=2) for name, each in rules.items()}
    worker, triton = Machine(280, 20, 0.05), Machine(100, 60, 1.0)
    assert simulate(constant(150), fixed, worker, triton).delays.max() <= 1
    behind = simulate(constant(400), fixed, worker, triton)
    # Half is served: who comes at the middle waits as long again.
    assert behind.delays[900] == pytest.approx(900, abs=30)
    scaled = simulate(constant(400), rules, worker, triton)
    assert scaled.tritons[-1] >= 4
    assert scaled.delays[-300] < 2


@pytest.mark.parametrize("scenario", ["skewed-clock", "poison"])
def test_one_bad_device_does_not_drive_the_replicas(scenario: str) -> None:
    (chosen,) = (each for each in autoscale.SCENARIOS if each.name == scenario)
    policies = autoscale.policies(MANIFEST)
    ours = autoscale.run(chosen, policies["seconds of work (ours)"], OPTIONS)
    age = autoscale.run(chosen, policies["age of oldest"], OPTIONS)
    assert age.tritons.max() == policies["age of oldest"]["eyeline-triton"].most
    assert ours.tritons.max() == policies["age of oldest"]["eyeline-triton"].least


def test_a_backlog_scales_no_further_than_its_cap() -> None:
    load = constant(60, 4 * 3600)
    load.backlog[600] = 50_000_000
    rules = read(MANIFEST)
    outcome = simulate(load, rules, Machine(280, 20, 0.05), Machine(100, 60, 1.0))
    assert outcome.backlog_left > 0
    assert outcome.workers.max() == 4
    assert outcome.tritons.max() <= 4
    assert outcome.delays.max() <= 2


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    asked = ["--out", str(tmp_path), "--hours", "1", "--cameras", "50", "--scenario", "day"]
    assert autoscale.main(asked) == 0
    assert "seconds of work (ours)" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"autoscale.json", "day.png"}
    monkeypatch.chdir(tmp_path)
    assert autoscale.main(asked) == 2
    assert "run it in the repository's root" in capsys.readouterr().err
