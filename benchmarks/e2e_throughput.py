"""Answers a second out of a hub that was filled before, against load generators at the same Triton."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from nats.aio.client import Client
from numpy.typing import NDArray

from benchmarks import load, perf_analyzer, reference
from benchmarks.machine import Others, scheduled
from benchmarks.system import DEVICE, SITE, Cloud
from cloud_inference.feed import Feed
from cloud_inference.triton import TritonModel
from eyeline import bus, subjects
from eyeline.errors import EyelineError
from eyeline.v1 import result_pb2
from eyeline_models import catalogue

CAMERAS: Final = 4
# Of the load generators; more only waits in Triton's queue.
IN_FLIGHT: Final = 16
_TRITON_CPU: Final = 0
_ANSWERED_WITHIN_S: Final = 300.0
_PERF_ANALYZER_S: Final = 6.0


async def measure(state: Path, clip: Path, frames: int, repeats: int) -> dict[str, Any]:
    """Bare client, perf_analyzer and Eyeline in turns, Triton on one core throughout."""
    coded = await asyncio.to_thread(load.encode, clip, frames // CAMERAS)
    frames = len(coded.units) * CAMERAS
    analyzer = perf_analyzer.find()
    turns: dict[str, list[_Turn]] = {}
    cpu_ms: dict[str, list[float]] = {}
    busy: list[float] = []
    async with (
        Cloud(state / "cloud", cpus=(_TRITON_CPU,)) as cloud,
        TritonModel(cloud.endpoints["triton"]["grpc"], catalogue.load(cloud.model), timeout_s=60) as model,
    ):
        await model.wait_ready()
        pid = _model_process(cloud)
        connection = await bus.connect(
            cloud.endpoints["hub"], name="benchmark", creds_file=Path(cloud.tenant()["creds"])
        )
        try:
            pictures = await asyncio.to_thread(_pictures, clip, model, min(frames, 64))
            for number in range(1, repeats + 1):
                others = Others()
                work = _bare(model, pictures, frames)
                turns.setdefault("bare_client", []).append(await _turn(model, pid, work, frames))
                if analyzer is not None:
                    work = perf_analyzer.rate(
                        analyzer,
                        model.url,
                        model.name,
                        in_flight=IN_FLIGHT,
                        seconds=_PERF_ANALYZER_S,
                        report=state / "perf_analyzer.csv",
                    )
                    turns.setdefault("perf_analyzer", []).append(await _turn(model, pid, work))
                filled = _Filled(cloud, connection, coded, number)
                await filled.fill()
                turns.setdefault("eyeline", []).append(await _turn(model, pid, filled.rate(), frames))
                for name, spent in filled.cpu_ms.items():
                    cpu_ms.setdefault(name, []).append(spent)
                busy.append(others.share())
        finally:
            await connection.close()
    return {
        "frames": frames,
        "cameras": CAMERAS,
        "in_flight_of_load_generators": IN_FLIGHT,
        **_figures(turns, frames),
        "cpu_ms_per_frame": {name: round(statistics.median(ms), 2) for name, ms in cpu_ms.items()},
        "cores_taken_by_others": [round(share, 2) for share in busy],
    }


@dataclass(frozen=True, slots=True)
class _Turn:
    """One side's turn.

    per_s: answers a second. mean_batch: of Triton, meanwhile. inferences: likewise. cpu_ms: of Triton's model
    process, an inference. ready: share of the time that this process ran or waited for its core.
    """

    per_s: float
    mean_batch: float
    inferences: int
    cpu_ms: float
    ready: float

    @property
    def undisturbed_per_s(self) -> float:
        """What it would be if nobody else had used Triton's core."""
        return self.ready / self.cpu_ms * 1e3


def _model_process(cloud: Cloud) -> int:
    """The process in which Triton's Python backend runs the model."""
    if cloud.running is None:
        raise EyelineError("the cloud side is not running")
    (stub,) = psutil.Process(cloud.running.pids["triton"]).children()
    return int(stub.pid)


async def _turn(model: TritonModel, pid: int, work: Awaitable[float], frames: int | None = None) -> _Turn:
    """Do the work, and note what Triton did meanwhile. frames: how many the rate was measured over."""
    before, scheduled_before = await model.statistics(), scheduled(pid)
    rate = await work
    after, spent = await model.statistics(), scheduled(pid) - scheduled_before
    inferences = max(after.inferences - before.inferences, 1)
    return _Turn(
        per_s=rate,
        mean_batch=inferences / max(after.executions - before.executions, 1),
        inferences=inferences,
        cpu_ms=spent.ran_s / inferences * 1e3,
        ready=min(1.0, (spent.ran_s + spent.waited_s) / ((frames or inferences) / rate)),
    )


def _pictures(clip: Path, model: TritonModel, count: int) -> list[NDArray[np.uint8]]:
    opened = reference.open_clip(clip)
    letterbox = catalogue.load(model.name).letterbox(*opened.size)
    return [letterbox.apply(picture) for picture in reference.pictures(opened, count)]


async def _bare(model: TritonModel, pictures: list[NDArray[np.uint8]], count: int) -> float:
    """Inferences a second of a client that does nothing else, `IN_FLIGHT` requests at a time."""
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def ask(picture: NDArray[np.uint8]) -> None:
        async with slots:
            await model.infer(picture[None])

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for index in range(count):
            group.create_task(ask(pictures[index % len(pictures)]))
    return count / (time.perf_counter() - began)


class _Filled:
    """One turn of ours: fresh cameras, all their frames in the hub before the worker may move."""

    def __init__(self, cloud: Cloud, connection: Client, coded: load.Coded, turn: int) -> None:
        if cloud.running is None:
            raise EyelineError("the cloud side is not running")
        self._connection, self._js = connection, connection.jetstream(timeout=10)
        self._coded, self._turn = coded, turn
        self._frames = len(coded.units) * CAMERAS
        self._processes = {name: psutil.Process(cloud.running.pids[name]) for name in ("worker", "hub")}
        self._before = 0
        self.cpu_ms: dict[str, float] = {}

    async def fill(self) -> None:
        """Stop the worker and fill the hub."""
        self._processes["worker"].send_signal(signal.SIGSTOP)
        self._before = (await self._js.stream_info(subjects.RESULTS)).state.last_seq
        for number in range(CAMERAS):
            camera = f"turn{self._turn}-{number}"
            envelopes = load.envelopes(self._coded, camera, site=SITE, device=DEVICE, run=self._turn)
            await load.fill(self._js, envelopes)

    async def rate(self) -> float:
        """Answers a second, from the first message that the worker took to the last stored answer."""
        before = {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}
        self._processes["worker"].send_signal(signal.SIGCONT)
        feed = Feed(
            self._connection,
            self._js,
            subjects.RESULTS,
            ["eyeline.v1.result.>"],
            start_sequence=self._before + 1,
        )
        first_ns = last_ns = counted = 0
        try:
            async with asyncio.timeout(_ANSWERED_WITHIN_S):
                while counted < self._frames:
                    for message in await feed.take():
                        for result in result_pb2.ResultBatch.FromString(message.data).results:
                            self._check(result)
                            counted += result.last_sequence - result.key.sequence + 1
                            taken_ns = result.times.consumed_ns
                            first_ns = min(first_ns, taken_ns) if first_ns else taken_ns
                        last_ns = max(last_ns, message.stored_ns)
        except TimeoutError:
            raise EyelineError(
                f"only {counted} of {self._frames} frames were answered in {_ANSWERED_WITHIN_S:g} s"
            ) from None
        finally:
            await feed.close()
        for name, process in self._processes.items():
            spent = sum(process.cpu_times()[:2]) - before[name]
            self.cpu_ms[name] = spent / self._frames * 1e3
        return self._frames / ((last_ns - first_ns) / 1e9)

    @staticmethod
    def _check(result: result_pb2.Result) -> None:
        if result.provenance != result_pb2.PROVENANCE_CLOUD:
            name = result_pb2.Provenance.Name(result.provenance)
            raise EyelineError(f"frame {result.key.sequence} was answered {name} ({result.reason})")


def _figures(turns: dict[str, list[_Turn]], frames: int) -> dict[str, Any]:
    rates = {name: [turn.per_s for turn in of] for name, of in turns.items()}
    rival = max((name for name in rates if name != "eyeline"), key=lambda it: statistics.median(rates[it]))
    alone = {name: [turn.undisturbed_per_s for turn in of] for name, of in turns.items()}
    return {
        "sides": {
            name: {
                "per_s": round(statistics.median(rates[name]), 2),
                "per_s_by_turn": [round(rate, 2) for rate in rates[name]],
                "undisturbed_per_s": round(statistics.median(alone[name]), 2),
                "mean_batch": round(statistics.median(turn.mean_batch for turn in of), 2),
                "triton_cpu_ms_per_inference": round(statistics.median(turn.cpu_ms for turn in of), 2),
                "triton_ready_share": round(statistics.median(turn.ready for turn in of), 4),
            }
            for name, of in turns.items()
        },
        # More than 1 where requests ran out of time and were made again.
        "inferences_per_frame": round(
            statistics.median(turn.inferences for turn in turns["eyeline"]) / frames, 3
        ),
        "rival": rival,
        "ratio": _ratio(rates["eyeline"], rates[rival]),
        "ratio_undisturbed": _ratio(alone["eyeline"], alone[rival]),
    }


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    by_turn = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "of_medians": round(statistics.median(ours) / statistics.median(theirs), 4),
        "by_turn": [round(ratio, 4) for ratio in by_turn],
    }
