"""The whole system as separate processes on this machine, for demo, benchmarks and fault runs."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cloud_inference import access
from cloud_inference.config import CloudSettings
from cloud_inference.local import LocalOptions, Running, running
from eyeline import Client
from eyeline.errors import EyelineError, ServerFailed
from eyeline.process import Child
from eyeline.v1 import device_pb2

SITE, DEVICE = "local", "edge"
_STATUS_WITHIN_S = 20.0
_FLUSH_S = 60.0


class Cloud:
    """Hub, Triton, worker, API and, if asked for, the web page. `state` gets data, keys and logs.

    An async context manager.
    """

    def __init__(
        self,
        state: Path,
        *,
        settings: CloudSettings | None = None,
        cpus: tuple[int, ...] | None = None,
        devices: Sequence[str] = (DEVICE,),
        tls: bool = False,
        web: bool = False,
    ) -> None:
        self.settings = settings or CloudSettings()
        self._options = LocalOptions(
            state.absolute(),
            devices=tuple((SITE, device) for device in devices),
            cpus=cpus,
            tls=tls,
            web_port=0 if web else None,
            quiet=True,
        )
        self._running: contextlib.AbstractAsyncContextManager[Running] | None = None
        self.running: Running | None = None

    async def __aenter__(self) -> Self:
        self._running = running(self.settings, self._options)
        self.running = await self._running.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            await self._running.__aexit__(kind, error, trace)

    @property
    def endpoints(self) -> dict[str, Any]:
        """What `endpoints.json` says."""
        if self.running is None:
            raise ServerFailed("the cloud side is not running")
        return self.running.endpoints

    @property
    def api(self) -> str:
        """Address of the gRPC API."""
        return str(self.endpoints["api"])

    def client(self) -> Client:
        """A client of the API; with TLS it trusts our authority and has a token for everything."""
        if self.endpoints["ca"] is None:
            return Client(self.api)
        token = access.mint(
            Path(self.endpoints["token_key"]),
            tenant=self._options.tenant,
            cameras=["*/*"],
            methods=access.METHODS,
            expires_s=86_400,
        )
        return Client(self.api, token, tls=Path(self.endpoints["ca"]))

    @property
    def model(self) -> str:
        """The model that answers for cameras."""
        return str(self.endpoints["model"])

    def tenant(self) -> dict[str, Any]:
        """Credentials files of the cloud's user, and of the devices."""
        (tenant,) = self.endpoints["tenants"].values()
        return dict(tenant)

    def device(self, name: str = DEVICE) -> dict[str, str]:
        """Names and credentials file of a device."""
        credentials: dict[str, str] = next(it for it in self.tenant()["devices"] if it["device"] == name)
        return credentials


@dataclass(frozen=True, slots=True)
class TritonCounters:
    """Triton's own counts: pictures, and runs of the model."""

    inferences: int
    executions: int


def triton_counters(cloud: Cloud) -> TritonCounters:
    """Read from Triton's own metrics endpoint."""
    with urllib.request.urlopen(cloud.endpoints["triton"]["metrics"], timeout=5) as answer:  # noqa: S310
        text = answer.read().decode()

    def value(metric: str) -> int:
        found = re.findall(
            rf'^{metric}{{[^}}]*model="{re.escape(cloud.model)}"[^}}]*}} (\S+)$', text, re.MULTILINE
        )
        return sum(int(float(number)) for number in found)

    return TritonCounters(value("nv_inference_count"), value("nv_inference_exec_count"))


class Agent:
    """An edge agent, as a process of its own; an async context manager.

    cameras: name to a source, with further settings of that camera. settings: further sections of its file.
    program: what runs it, before `run --config FILE`.
    """

    def __init__(
        self,
        cloud: Cloud,
        state: Path,
        cameras: Mapping[str, Mapping[str, Any]],
        *,
        settings: Mapping[str, Any] | None = None,
        device: str = DEVICE,
        program: Sequence[str] = (sys.executable, "-m", "edge_agent"),
    ) -> None:
        credentials = cloud.device(device)
        self._program = program
        state = state.absolute()
        self._device = device
        self._api = cloud.api
        self._state = state
        self._settings = {
            "site": SITE,
            "device": device,
            "state_dir": str(state),
            "hub": {
                "url": cloud.endpoints["hub"],
                "creds_file": credentials["creds"],
            },
            "http": {"port": 0},
            "cameras": [{"name": name, **camera} for name, camera in cameras.items()],
            **(settings or {}),
        }
        self.process: Child | None = None

    async def __aenter__(self) -> Self:
        self._state.mkdir(parents=True, exist_ok=True)
        config = self._state / "agent.yaml"
        config.touch(mode=0o600)
        config.write_text(yaml.safe_dump(self._settings))
        self.process = Child(
            [*self._program, "run", "--config", str(config)],
            name="edge agent",
            log=self._state / "agent.log",
        )
        await self.process.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            await self.process.stop(_FLUSH_S if error is None else 5.0)

    def check(self) -> None:
        """Raise `ServerFailed` with its last words when it has ended by itself."""
        if self.process is not None and self.process.returncode is not None:
            raise ServerFailed(f"the edge agent ended: {self.process.last_words(1)}")

    async def finish(self, client: Client) -> device_pb2.DeviceStatus:
        """Stop capturing, hand over what was captured, end; its last status. Raises `ServerFailed`."""
        asked_ns = time.time_ns()
        if self.process is None:
            raise ServerFailed("the edge agent was not started")
        status = await self.process.stop(_FLUSH_S)
        if status != 0:
            raise ServerFailed(f"the edge agent ended with status {status}: {self.process.last_words(1)}")
        end = time.monotonic() + _STATUS_WITHIN_S
        while time.monotonic() < end:
            last = await self.status(client)
            if last is not None and last.reported_ns >= asked_ns:
                return last
        raise ServerFailed("the edge agent left no last status")

    async def status(self, client: Client) -> device_pb2.DeviceStatus | None:
        """What it last reported to the cloud; None before that."""
        try:
            return (await client.device(SITE, self._device)).status
        except EyelineError:
            return None


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
