"""The measuring programs on a real Triton, with little load: that they work, not what they find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks import gpu, payload

ROOT = Path(__file__).parents[2]


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.long
def test_tune_measures_and_writes_the_configuration(tmp_path: Path) -> None:
    out, figures = tmp_path / "config.pbtxt", tmp_path / "figures.json"
    words = ("cloud_inference", "tune", "blazeface-back", "--out", str(out), "--json", str(figures))
    few = ("--instances", "1", "--delays-us", "0,500", "--loads", "1,2", "--seconds", "0.5")
    done = program(*words, *few, "--latency-ms", "5000")
    assert done.returncode == 0, done.stderr
    assert "best: " in done.stdout
    config = text_format.Parse(out.read_text(), model_config_pb2.ModelConfig())
    assert config.name == "blazeface-back"
    assert out.read_text().startswith("# Measured for p95 <= 5000 ms")
    assert [len(it["loads"]) for it in json.loads(figures.read_text())] == [2, 2, 2]
    never = program(*words, *few, "--latency-ms", "0.1", "--delays-us", "0")
    assert (never.returncode, never.stderr.count("\n")) == (2, 1)
    assert "no setting keeps to 0.1 ms" in never.stderr
    wrong = program(*words, "--loads", "some")
    assert "--loads 'some' must be numbers from 1 on" in wrong.stderr


@pytest.mark.long
def test_the_gpu_benchmark_runs_dry(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--dry-run", "--model", "blazeface-back", "--out", str(out), "--seconds", "0.3"]
    assert gpu.main([*options, "--batches", "1,2"]) == 0
    result = json.loads(out.read_text())
    assert result["machine"]["cores"]
    if not result["machine"]["gpus"]:
        assert result["dry_run_on_cpu"]
    (rows,) = [it for name, it in result["forms"].items() if name.startswith("ONNX Runtime")]
    assert [(it["batch"], it["in_flight"]) for it in rows] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert all(it["per_s"] > 0 and it["p50_ms"] <= it["p95_ms"] for it in rows)


@pytest.mark.long
async def test_the_payload_benchmark_compares_all_ways() -> None:
    result = await payload.run(20)
    ways = result["ways"]
    assert set(ways) == {"raw", "memory", "encoded"}
    assert ways["raw"]["wire_bytes"] == 416 * 416 * 3
    assert ways["memory"]["wire_bytes"] == 0
    assert 0 < ways["encoded"]["wire_bytes"] < ways["raw"]["wire_bytes"] / 4
