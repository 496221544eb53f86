"""Real programs as a user starts them: in processes of their own, with their words kept in a file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from eyeline import creds
from tests.support.cameras import wait_for

ROOT = Path(__file__).parents[2]


def lives(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended stays as a zombie until the machine's first process takes note."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Program:
    """One program, in a session of its own; killed, with all that is below it, on leaving."""

    def __init__(self, argv: Sequence[str], said: Path, env: Mapping[str, str] | None = None) -> None:
        self._said = said
        with said.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)

    @property
    def said(self) -> str:
        """Everything it wrote so far."""
        return self._said.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Its log lines of that event, with these fields."""
        # The last line may be half written.
        lines = [line for line in self.said.splitlines(keepends=True) if line.endswith("\n")]
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [
            event
            for event in found
            if event["event"] == name and all(event.get(key) == value for key, value in fields.items())
        ]

    def until(self, name: str, *, within_s: float = 20, count: int = 1, **fields: Any) -> dict[str, Any]:
        """The event, as soon as it was logged so many times."""

        def there() -> bool:
            found = len(self.events(name, **fields)) >= count
            assert found or self.running, self.said
            return found

        try:
            wait_for(there, within_s, f"{name} {fields}")
        except AssertionError as problem:
            raise AssertionError(f"{problem}\n{self.said}") from None
        return self.events(name, **fields)[count - 1]

    def send(self, number: int, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def wait(self, within_s: float = 30) -> int:
        """Its exit status."""
        return self._process.wait(within_s)

    def end(self, number: int = signal.SIGTERM, within_s: float = 30) -> int:
        """Ask it to end; its exit status."""
        self.send(number)
        return self.wait(within_s)

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the HTTP server that it told of."""
        return http_get(f"http://127.0.0.1:{self.until('http_listening')['port']}/{path}")


def http_get(url: str) -> tuple[int, str]:
    """Status and text, also of an error."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # of our own servers
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, problem.read().decode()


def metric(text: str, name: str, **labels: str) -> float:
    """A sample of a Prometheus page; 0 when it is not there yet."""
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(f'{key}="{it}"' in head for key, it in labels.items()):
            return float(value)
    return 0.0


def module(name: str, *arguments: str) -> list[str]:
    """The command line of one of our programs."""
    return [sys.executable, "-m", name, *arguments]


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """So many different ports, held until the context ends."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        yield [it.getsockname()[1] for it in sockets]


def some_free_ports(count: int) -> list[int]:
    """So many ports that were free a moment ago."""
    with free_ports(count) as ports:
        return ports


class Running:
    """`cloud-inference local`, up."""

    def __init__(self, program: Program, state: Path) -> None:
        self.program, self.state = program, state
        self.endpoints: dict[str, Any] = json.loads((state / "endpoints.json").read_text())
        (self.tenant,) = self.endpoints["tenants"].values()

    def device(self, name: str) -> dict[str, str]:
        found: dict[str, str] = next(it for it in self.tenant["devices"] if it["device"] == name)
        return found


@contextlib.contextmanager
def local_system(folder: Path, devices: Sequence[str]) -> Iterator[Running]:
    """The cloud side on free ports, with these devices at site `yard`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "cloud"
    arguments = ["--state", str(state), "--hub-port", "0", "--api-port", "0", "--web-port", "0"]
    for device in devices:
        arguments += ["--device", f"yard/{device}"]
    with Program(module("cloud_inference", "local", *arguments), folder / "local.log") as program:
        program.until("local_ready", within_s=60)
        yield Running(program, state)
        program.end()


def agent_file(folder: Path, hub_url: str, device: Mapping[str, str], **settings: Any) -> Path:
    """A configuration for an agent of that device, as `local_system` made it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "agent.yaml"
    base = {
        "site": device["site"],
        "device": device["device"],
        "state_dir": str(folder / "state"),
        "hub": {"url": hub_url, "creds_file": device["creds"]},
        "http": {"port": 0},
        "detect": {"enabled": False},
        "gate": {"enabled": False},
    }
    config.write_text(yaml.safe_dump({**base, **settings}))
    return config


def seed(device: Mapping[str, str]) -> str:
    """The secret of a device's credentials."""
    return creds.read(Path(device["creds"])).key.seed


def agent(config: Path, *more: str, argv: Sequence[str] | None = None, password: str = "") -> Program:
    """`edge-agent run`; its words go to `agent.log` beside its configuration.

    password: of the hub, for a configuration with a user.
    """
    start = list(argv) if argv is not None else module("edge_agent")
    return Program(
        [*start, "run", "--config", str(config), *more],
        config.with_name("agent.log"),
        {"EYELINE_EDGE__HUB__PASSWORD": password} if password else None,
    )
