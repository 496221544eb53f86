"""The system of one fault scenario: every part a process of its own, a link of ours between agent and hub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import psutil
import yaml
from nats.aio.client import Client as Nats
from nats.js import JetStreamContext

from benchmarks.faults_proxy import Proxy
from benchmarks.faults_record import Answer, Recording, Run, record
from benchmarks.system import SITE, Agent, Cloud
from cloud_inference.config import CloudSettings
from cloud_inference.feed import Feed
from eyeline import Client, bus, subjects
from eyeline.errors import ServerFailed
from eyeline.process import Child
from eyeline.v1 import result_pb2
from eyeline.values import Result

_START_WITHIN_S: Final = 30.0
_SAMPLE_S: Final = 0.5
# Everywhere: a device without the time for a frame drops it before the encoder, and says so.
POLICIES: Final = frozenset({"overload"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is shown and what goes wrong.

    seconds, fps: of the recording that each camera plays. policies: reasons, beside `POLICIES`, for which
    frames may be answered DEGRADED here, each a stated policy. agent: sections of its configuration.
    recovers_s: how soon trustworthy answers must flow again.
    """

    name: str
    about: str
    play: Callable[[Rig], Awaitable[None]]
    seconds: float = 24.0
    fps: int = 10
    cameras: int = 1
    policies: frozenset[str] = frozenset()
    agent: Mapping[str, Any] = field(default_factory=dict)
    cloud: CloudSettings | None = None
    cpus: tuple[int, ...] | None = None
    workers: int = 1
    settle_s: float = 40.0
    recovers_s: float = 5.0
    program: Callable[[Path], list[str]] | None = None
    # Extra conditions on what the rig saw; each returns what is wrong, or nothing.
    check: Callable[[Rig], str] | None = None


class Rig:
    """One scenario's processes, its record of what was shown and heard; an async context manager."""

    def __init__(self, scenario: Scenario, state: Path, *, left_out: int | None = None) -> None:
        self.scenario = scenario
        self.state = state
        self.runs: list[Run] = []
        self.heard: list[Answer] = []
        # Since when the system could answer again; our clock.
        self.restored_ns: int | None = None
        # Largest resident memory seen, in bytes, by process.
        self.memory: dict[str, int] = {}
        # For scenarios to tell what they saw.
        self.notes: dict[str, Any] = {}
        # Seconds that our subscriber takes for each answer.
        self.read_pause_s = 0.0
        self.recording: Recording = record(
            state / "camera.mp4", round(scenario.seconds * scenario.fps), scenario.fps, left_out=left_out
        )
        self.agent: Agent | None = None
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            return await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> Self:
        scenario, stack = self.scenario, self._stack
        self.cloud = await stack.enter_async_context(
            Cloud(self.state / "cloud", settings=scenario.cloud, cpus=scenario.cpus)
        )
        hub = urlsplit(self.cloud.endpoints["hub"])
        assert hub.hostname is not None
        assert hub.port is not None
        self.proxy = await stack.enter_async_context(Proxy(hub.hostname, hub.port))
        self.nats = await self.connect()
        stack.push_async_callback(self.nats.close)
        self.js: JetStreamContext = self.nats.jetstream()
        for number in range(2, scenario.workers + 1):
            await self.start_worker(number)
        self.client = await stack.enter_async_context(Client(self.cloud.api))
        stack.push_async_callback(self._stop_tasks)
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._sample())]
        stack.push_async_callback(self._stop_agent)
        await self.start_agent()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # Processes

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(f"cam{number}" for number in range(1, self.scenario.cameras + 1))

    @property
    def agent_state(self) -> Path:
        """The agent's state folder."""
        return self.state / "agent"

    async def start_agent(self) -> None:
        """Start it, also after it was killed; its cameras play from the start."""
        credentials = self.cloud.device()
        hub = {
            "url": f"nats://127.0.0.1:{self.proxy.port}",
            "creds_file": credentials["creds"],
        }
        program = self.scenario.program
        self.agent = Agent(
            self.cloud,
            self.agent_state,
            {name: {"source": str(self.recording.path), "realtime": True} for name in self.cameras},
            settings={"hub": hub, **self.scenario.agent},
            program=program(self.state) if program else (sys.executable, "-m", "edge_agent"),
        )
        self.runs.append(Run(len(self.runs) + 1, self.cameras, self.recording, time.time_ns()))
        await self.agent.__aenter__()

    async def kill_agent(self, *, with_broker: bool) -> None:
        """SIGKILL it; with its broker it is the device that dies: no part ends in an orderly way."""
        assert self.agent is not None
        assert self.agent.process is not None
        if with_broker:
            os.kill(int((self.agent_state / "spool" / "broker.pid").read_text()), signal.SIGKILL)
        self.agent.process.send(signal.SIGKILL)
        self.runs[-1].killed_ns = time.time_ns()
        await self.agent.process.wait()

    def pid(self, name: str) -> int:
        """Process id of hub, triton, worker, worker2, api as they were started."""
        assert self.cloud.running is not None  # started
        return self.cloud.running.pids[name]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send one of them a signal."""
        os.kill(self.pid(name), number)

    async def owner(self, camera: str = "cam1") -> str:
        """Name of the worker that answers a camera, as `pid` takes it."""
        leases = await self.js.key_value(subjects.LEASES)
        holder = ((await leases.get(subjects.camera_key(SITE, camera))).value or b"").decode()
        assert self.cloud.running is not None
        for name, pid in self.cloud.running.pids.items():
            if f"-{pid}-" in holder:
                return name
        raise ServerFailed(f"no worker of ours owns {camera}: {holder}")

    async def start_worker(self, number: int) -> None:
        """One more beside those that run; returns when it has announced itself."""
        name = f"worker{number}"
        folder = self.state / "cloud"
        values = yaml.safe_load((folder / "cloud.yaml").read_text())
        values["http"]["worker_port"] = 0
        config = folder / f"{name}.yaml"
        config.touch(mode=0o600)
        config.write_text(yaml.safe_dump(values))
        child = Child(
            [sys.executable, "-m", "cloud_inference", "worker", "--config", str(config)],
            name=name,
            log=folder / f"{name}.log",
        )
        assert self.cloud.running is not None  # started
        self.cloud.running.pids[name] = await child.start()
        self._stack.push_async_callback(child.stop, 5.0)
        workers = await self.js.key_value(subjects.WORKERS)

        async def announced() -> bool:
            with contextlib.suppress(Exception):
                return len(await workers.keys()) >= number
            return False

        await until(announced, _START_WITHIN_S, f"{name} announces itself")

    async def connect(self, *, as_device: bool = False) -> Nats:
        """To the hub, past the link: as the cloud's user, or as the device's."""
        (tenant,) = self.cloud.endpoints["tenants"].values()
        user = self.cloud.device() if as_device else tenant
        return await bus.connect(
            self.cloud.endpoints["hub"],
            name="faults",
            creds_file=Path(user["creds"]),
            inbox_prefix=subjects.device_inbox(SITE, "edge") if as_device else "_INBOX",
        )

    def pictures(self) -> int:
        """Pictures that the model has answered so far, as our subscriber got them."""
        return sum(it.has_pixels for it in self.heard)

    # Time

    async def at(self, seconds: float) -> None:
        """Wait until the newest run's cameras have shown so many seconds."""
        run = self.runs[-1]

        def began_ns() -> float | None:
            found = [it for it in self.heard if it.counter == run.counter and it.captured_ns]
            if not found:
                return None
            return found[0].captured_ns - (found[0].first - 1) * 1e9 / run.recording.fps

        await until(lambda: began_ns() is not None, _START_WITHIN_S, "the first answer")
        began = began_ns()
        assert began is not None  # just seen
        await asyncio.sleep(max(0.0, (began - time.time_ns()) / 1e9 + seconds))
        if self.agent is not None:
            self.agent.check()

    def restored(self) -> None:
        """From now on, the system can answer again: recovery counts from here."""
        self.restored_ns = time.time_ns()

    async def settle(self) -> None:
        """Wait until every camera has played and everything is answered; what is missing then is counted."""
        run = self.runs[-1]
        end = time.monotonic() + run.recording.seconds + self.scenario.settle_s

        def complete() -> bool:
            newest = {(it.camera, it.counter): 0 for it in self.heard}
            for it in self.heard:
                key = (it.camera, it.counter)
                newest[key] = newest[key] + it.last - it.first + 1
            return all(newest.get((camera, run.counter), 0) >= run.recording.frames for camera in run.cameras)

        while time.monotonic() < end and not complete():
            if self.agent is not None:
                self.agent.check()
            await asyncio.sleep(0.1)
        # A duplicate would come now.
        await asyncio.sleep(1.0)

    # What came of it

    async def _listen(self) -> None:
        async for result in self.client.subscribe(since_ns=time.time_ns(), final_only=True):
            self.heard.append(Answer.of(result, time.time_ns()))
            if self.read_pause_s:
                await asyncio.sleep(self.read_pause_s)

    async def stored(self) -> list[Answer]:
        """Every final result that the hub holds, in stream order."""
        found: list[Answer] = []
        feed = Feed(
            self.nats, self.js, subjects.RESULTS, [subjects.result_subject("*", "*")], start_sequence=1
        )
        try:
            await feed.open()
            while feed.pending_at_start:
                messages = await feed.take(256)
                for message in messages:
                    batch = result_pb2.ResultBatch.FromString(message.data)
                    found += [Answer.of(Result.from_proto(it), 0) for it in batch.results if it.final]
                if messages[-1].pending == 0:
                    break
        finally:
            await feed.close()
        return found

    async def _sample(self) -> None:
        while True:
            for name, process in self.processes():
                with contextlib.suppress(psutil.Error):
                    used = process.memory_info().rss
                    self.memory[name] = max(self.memory.get(name, 0), used)
            await asyncio.sleep(_SAMPLE_S)

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """Every process of the system that runs now, by name."""
        pids = dict(self.cloud.running.pids) if self.cloud.running is not None else {}
        if self.agent is not None and self.agent.process is not None and self.agent.process.pid:
            pids["agent"] = self.agent.process.pid
            with contextlib.suppress(OSError, ValueError):
                pids["broker"] = int((self.agent_state / "spool" / "broker.pid").read_text())
        found = []
        for name, pid in pids.items():
            with contextlib.suppress(psutil.Error):
                found.append((name, psutil.Process(pid)))
        return found

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stop_agent(self) -> None:
        if self.agent is not None and self.agent.process is not None:
            await self.agent.process.stop(20.0)


async def until(condition: Callable[[], Any], within_s: float, what: str) -> None:
    """Poll a function, plain or async, until it is true; raises `ServerFailed`."""
    end = time.monotonic() + within_s
    while True:
        outcome = condition()
        if asyncio.iscoroutine(outcome):
            outcome = await outcome
        if outcome:
            return
        if time.monotonic() > end:
            raise ServerFailed(f"{what}: not within {within_s:g} s")
        await asyncio.sleep(0.05)
