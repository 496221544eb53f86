"""The commands of the README, as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

from eyeline import Client
from tests.support.eventually import eventually
from tests.support.models_networks import constant_network, yolox_values

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "benchmarks" / "clips" / "street.mp4"
README = (ROOT / "README.md").read_text()

# What a command line of the README is tried by.
ELSEWHERE = {
    "make demo": "tests/integration/test_demo.py runs what it runs; .ci/run does the set-up",
    "make test": ".ci/run",
    "cloud-inference release": "tests/integration/test_updates.py",
    "cloud-inference rollout": "tests/integration/test_updates.py",
    "cloud-inference erase": "tests/integration/test_erase.py",
    "cloud-inference audit": "tests/integration/test_audit.py",
    "cloud-inference enroll": "tests/integration/test_security.py",
    "cloud-inference revoke": "tests/integration/test_security.py",
    "cloud-inference token": "tests/integration/test_security.py",
    "cloud-inference local --tls": "tests/integration/test_security.py",
    "eyeline --help": "tests/unit/test_cli.py",
    "eyeline sink": "tests/integration/test_sinks.py",
}


def commands() -> list[str]:
    """Every command line in a shell block, without its comment."""
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        lines += [re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Shell:
    """Runs command lines as a person would, in a folder and a home of their own."""

    def __init__(self, folder: Path, *programs: Path) -> None:
        self.folder = folder
        path = ":".join([*(str(program) for program in programs), os.environ["PATH"]])
        self.environment = {
            "PATH": path,
            "HOME": str(folder),
            "EYELINE_TRITON_HOME": str(ROOT / ".triton"),
            "EYELINE_EDGE__STATE_DIR": str(folder / "agent-state"),
            "EYELINE_EDGE__HTTP__PORT": "0",
            "PIP_CONSTRAINT": str(ROOT / ".ci" / "constraints.txt"),
            "LANG": "C.UTF-8",
        }

    async def start(self, line: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            "bash", "-c", f"exec env {line}",
            cwd=self.folder, env=self.environment, start_new_session=True,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def run(self, line: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", line, cwd=self.folder, env=self.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, f"{line}\n{output.decode()}"
        return output.decode()


async def stop(process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    await process.communicate()
    return process.returncode or 0


def test_every_command_is_tried_somewhere() -> None:
    tried = {*INSTALL, *CLOUD, *AGENT, *EVERYDAY, *MODEL}
    assert [line for line in commands() if line not in tried and not line.startswith(tuple(ELSEWHERE))] == []
    assert [line for line in tried if line not in commands()] == []


INSTALL = (
    "python3 -m pip wheel --no-deps -w dist .",
    'python3 -m pip install "$(ls dist/eyeline-*.whl)[edge]"',
)
CLOUD = ("cloud-inference local --device default/front-door",)
AGENT = (
    "edge-agent init --join front-door.creds --camera front=rtsp://user@192.0.2.7/stream1",
    "edge-agent check --config edge-agent.yaml",
    "edge-agent run --config edge-agent.yaml",
)
EVERYDAY = (
    "eyeline status",
    "eyeline doctor",
    "eyeline report --since 1h --out report.html",
    "eyeline grab default/front --out front.jpg",
    "eyeline export coco --from 1h --out results.json",
)
MODEL = (
    "cloud-inference models import yolox_nano.onnx --name my-detector --into models",
    "EYELINE_MODELS=models cloud-inference local --set triton.model=my-detector",
)


@pytest.mark.long
async def test_from_an_empty_folder_to_the_first_answers(tmp_path: Path) -> None:
    """Build and install the agent, start the cloud, join, check, run, and read answers."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    )
    venv = tmp_path / "venv"
    await Shell(tmp_path).run(f"{sys.executable} -m venv {venv}")
    device = Shell(source, venv / "bin")
    for line in INSTALL:
        await device.run(line)
    (line,) = CLOUD
    api = free_port()
    cloud_shell = Shell(tmp_path, Path(sys.executable).parent)
    cloud = await cloud_shell.start(f"{line} --hub-port {free_port()} --api-port {api}")
    try:
        joining = tmp_path / ".local/state/eyeline/cloud/devices/default/default/front-door.creds"
        await eventually(joining.exists, within_s=30)
        shutil.copy(joining, source / "front-door.creds")
        init, check, run = AGENT
        await device.run(
            init.replace("rtsp://user@192.0.2.7/stream1", str(CLIP)) + f" --state-dir {tmp_path}/agent-state"
        )
        said = await device.run(check)
        assert "centernet" in said
        agent = await device.start(run)
        try:
            async with Client(f"127.0.0.1:{api}") as client, asyncio.timeout(30):
                subscription = client.subscribe(since_ns=1)
                answers = [await anext(subscription) for _ in range(20)]
                await subscription.aclose()
            assert {answer.camera for answer in answers} == {"front"}
            for line in EVERYDAY:
                await cloud_shell.run(f"EYELINE_SERVER=127.0.0.1:{api} {line}")
            assert (tmp_path / "front.jpg").read_bytes().startswith(b"\xff\xd8")
            assert "default/front" in (tmp_path / "report.html").read_text()
        finally:
            assert await stop(agent) == 0
    finally:
        assert await stop(cloud) == 0


@pytest.mark.long
async def test_bringing_a_model(tmp_path: Path) -> None:
    constant_network(tmp_path / "yolox_nano.onnx", {"output": yolox_values(64, 64, 80)})
    shell = Shell(tmp_path, Path(sys.executable).parent)
    bring, serve = MODEL
    await shell.run(bring)
    cloud = await shell.start(f"{serve} --hub-port {free_port()} --api-port {free_port()}")
    try:
        endpoints = tmp_path / ".local/state/eyeline/cloud/endpoints.json"
        await eventually(endpoints.exists, within_s=30)
        assert '"model": "my-detector"' in endpoints.read_text()
    finally:
        assert await stop(cloud) == 0
