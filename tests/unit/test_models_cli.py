"""`python -m eyeline_models`, as `cloud-inference models` is too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from eyeline_models.cli import app
from tests.support.models_networks import constant_network, yolox_values


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EYELINE_MODELS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def models(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def theirs(tmp_path: Path) -> Path:
    return constant_network(tmp_path / "theirs.onnx", {"output": yolox_values(64, 64, 3)}, size=("w", "h"))


def test_import_list_and_show(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    done = models(
        "import", theirs(tmp_path), "--name", "mine", "--classes", tmp_path / "names.txt",
        "--size", "64", "64", "--threshold", "0.25", "--rgb", "--licence", "ours",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "mine: yolox, 64x64, 3 classes, runs" in done.output
    listed = models("list").output
    assert "centernet-mobilenetv3" in listed
    assert "mine" in listed
    assert "yolox-x" in listed
    shown = models("show", "mine").output
    assert "cat 0.25, dog 0.25, bird 0.25" in shown
    assert "licence:  ours" in shown


def test_import_elsewhere_says_how_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    into = tmp_path / "elsewhere"
    done = models(
        "import", theirs(tmp_path), "--name", "mine", "--classes", tmp_path / "names.txt",
        "--size", "64", "64", "--into", into,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"EYELINE_MODELS={into}" in done.output.replace("\n", "")


def test_show_of_what_is_not_here_yet() -> None:
    shown = models("show", "yolox-l").output
    assert "yolox_l.onnx" in shown
    assert "--accept-digest" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "centernet"], "did you mean 'centernet-mobilenetv3'?"),
        (["fetch", "nothing"], "known: yolox-s"),
        (["fetch", "yolox-s"], "--accept-digest"),
        (["import", "none.onnx", "--name", "mine"], "none.onnx: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(arguments: list[str], said: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "eyeline_models", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 2
    assert said in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_devices_install_lists_and_shows_without_onnx() -> None:
    # As on a device: the `edge` extra brings ONNX Runtime but not onnx.
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'onnx' else find(name, *rest)\n"
        "from eyeline_models.cli import main; main()"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert "centernet-mobilenetv3" in run("list").stdout
    refused = run("import", "any.onnx", "--name", "mine")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "eyeline[cloud]" in refused.stderr
