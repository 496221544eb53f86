"""The benchmark of a look against an inference: what it says, not how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.edge_look import WARM, main


def test_says_what_a_look_costs_and_how_far_the_models_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "look.json"
    assert main(["--model", "centernet-mobilenetv3", "--frames", str(WARM + 4), "--out", str(out)]) == 0
    assert "a look of centernet-mobilenetv3-288 beside an inference of centernet-mobilenetv3" in (
        capsys.readouterr().out
    )
    found = json.loads(out.read_text())
    assert found["frames"] == WARM + 4
    assert found["look_ms"] >= found["look_least_ms"] > 0
    assert found["inference_ms"] >= found["inference_least_ms"] > 0
    assert found["ratio_of_least"] == pytest.approx(found["look_least_ms"] / found["inference_least_ms"])
    # The same network, in fewer pixels.
    assert 0.6 < found["f1"] <= 1


def test_what_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "centernet"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("edge_look: no model is named 'centernet'")
    assert said.count("\n") == 1
    assert main(["--model", "centernet-mobilenetv3", "--video", str(tmp_path / "none.mp4")]) == 1
    assert "none.mp4 is not a video that can be read" in capsys.readouterr().err
