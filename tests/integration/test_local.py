"""`cloud-inference local` as a user runs it: real hub, Triton, worker and API, in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from eyeline import bus, creds, subjects
from tests.support.eventually import eventually
from tests.support.programs import lives

UP_WITHIN_S = 60


@dataclass
class Local:
    process: asyncio.subprocess.Process
    state: Path
    log: Path

    @property
    def endpoints(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.state / "endpoints.json").read_text())
        return loaded

    def children(self) -> dict[str, psutil.Process]:
        """Every process below it, by what it is."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = child.cmdline()
                names = ("nats-server", "tritonserver", "triton_python_backend_stub")
                program = next((name for name in names if line and Path(line[0]).name == name), None)
                if program is None and "cloud_inference" in line:
                    program = line[line.index("cloud_inference") + 1]
                if program is not None:
                    found[program] = child
        return found


@contextlib.asynccontextmanager
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    state, log = tmp_path / "state", tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cloud_inference", "local", "--state", str(state)),
            *("--hub-port", "0", "--api-port", "0", "--device", "yard/box1"),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Local(process, state, log)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def up(running: Local) -> dict[str, psutil.Process]:
    def ready() -> bool:
        assert running.process.returncode is None, running.log.read_text()
        return (running.state / "endpoints.json").exists()

    await eventually(ready, within_s=UP_WITHIN_S)
    children = running.children()
    assert set(children) == {
        "nats-server",
        "tritonserver",
        "triton_python_backend_stub",
        "worker",
        "api",
        "web",
    }
    return children


def listening(endpoints: dict[str, Any]) -> list[str]:
    """Which of the addresses still take connections."""
    open_ones = []
    triton = endpoints["triton"]
    for address in (endpoints["hub"], endpoints["api"], triton["grpc"], triton["http"]):
        host, _, port = address.rpartition("//")[2].partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            open_ones.append(address)
    return open_ones


async def ended(children: dict[str, psutil.Process]) -> None:
    def alive() -> list[str]:
        return [name for name, child in children.items() if lives(child)]

    try:
        await eventually(lambda: not alive(), within_s=30)
    except AssertionError:
        raise AssertionError(f"still there: {alive()}") from None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
async def test_it_comes_up_works_and_leaves_nothing(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    async with local(tmp_path) as running:
        children = await up(running)
        endpoints = running.endpoints
        assert len(listening(endpoints)) == 4
        assert stat.S_IMODE((running.state / "endpoints.json").stat().st_mode) == 0o600

        # The device it made a user for can publish.
        device = endpoints["tenants"]["default"]["devices"][0]
        client = await bus.connect(
            endpoints["hub"],
            name="device",
            creds_file=Path(device["creds"]),
            inbox_prefix=subjects.device_inbox("yard", "box1"),
            wait=False,
        )
        await client.jetstream().publish(subjects.status_subject("yard", "box1"), b"")
        await client.close()

        running.process.send_signal(number)
        # A second, impatient one changes nothing.
        running.process.send_signal(number)
        assert await asyncio.wait_for(running.process.wait(), 30) == status
        await ended(children)
        assert listening(endpoints) == []
        assert not (running.state / "endpoints.json").exists()
        said = running.log.read_text()
        assert "Traceback" not in said
        assert creds.read(Path(device["creds"])).key.seed not in said
        assert not list(Path("/dev/shm").glob(f"eyeline-triton-{running.process.pid}-*"))


async def test_children_that_die_are_restarted_and_reported_and_never_outlive_it(tmp_path: Path) -> None:
    async with local(tmp_path) as running:
        children = await up(running)
        for program in ("worker", "tritonserver"):
            children[program].kill()

        def restarted() -> bool:
            now = running.children()
            return all(
                program in now and now[program].pid != children[program].pid
                for program in ("worker", "tritonserver", "triton_python_backend_stub")
            )

        await eventually(restarted, within_s=30)
        await eventually(lambda: running.log.read_text().count("child_restarted") == 2, within_s=30)
        children = running.children()
        running.process.kill()
        await running.process.wait()
        await ended(children)


async def test_ctrl_c_while_it_comes_up_leaves_nothing(tmp_path: Path) -> None:
    async with local(tmp_path) as running:
        await eventually(lambda: "tritonserver" in running.children(), within_s=30)
        children = running.children()
        running.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(running.process.wait(), 30) == 130
        await ended(children)
        assert "Traceback" not in running.log.read_text()


async def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cloud_inference", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **(env or {})},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_mistakes_are_one_line_and_status_2(tmp_path: Path) -> None:
    config = tmp_path / "cloud.yaml"
    config.write_text("triton:\n  modle: x\n")
    state = ("--state", str(tmp_path / "state"), "--hub-port", "0", "--api-port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = str(taken.getsockname()[1])
        cases = [
            (("worker", "--config", str(config)), "did you mean 'model'?"),
            (("worker", "--set", "nonsense"), "must be KEY=VALUE"),
            (("local", *state, "--device", "box1"), "must be SITE/DEVICE"),
            (("local", *state, "--set", "triton.model=centernet-mobilenet"), "did you mean"),
            (("local", *state, "--hub-port", busy), "address already in use"),
            (("triton", "--model", str(tmp_path / "no.onnx")), "holds no card.yaml"),
        ]
        for arguments, expected in cases:
            status, said = await run(*arguments)
            assert (status, said.strip().count("\n")) == (2, 0), said
            assert expected in said
    status, said = await run("local", *state, env={"EYELINE_TRITON_HOME": str(tmp_path)})
    assert status == 2
    assert ".ci/install-triton" in said


async def test_the_triton_command_serves_and_stops(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cloud_inference", "triton"),
            *("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"),
            stdout=output,
            stderr=output,
        )
    try:
        await eventually(lambda: "triton_serving" in log.read_text(), within_s=30)
        children = {str(child.pid): child for child in psutil.Process(process.pid).children(recursive=True)}
        assert len(children) == 2
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        await ended(children)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
