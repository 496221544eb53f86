"""How much serving adds, and how much it gets out of Triton.

    python -m benchmarks.e2e [--seconds 20] [--frames 400] [--repeats 3] [--out build/e2e]

Overhead: one camera at its own pace (open loop), every frame with pixels; from publishing at the edge to the
result at a gRPC subscriber, less the time of the request to Triton, hop by hop; beside it a bare client asking
the same Triton about the same pictures. Throughput: a hub filled before the worker may start, Triton pinned to
one core; against a bare client with many requests in flight, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import load, reference
from benchmarks.system import DEVICE, SITE, Agent, Cloud
from cloud_inference.config import CloudSettings
from cloud_inference.triton import TritonModel
from eyeline import Client, bus, subjects
from eyeline.errors import EyelineError
from eyeline.v1 import result_pb2
from eyeline.values import Provenance, Result
from eyeline_models import catalogue

CLIP = Path(__file__).with_name("clips") / "street.mp4"
_WARM_UP_S = 4.0
_IN_FLIGHT = 16
_CAMERAS = 4


async def overhead(state: Path, seconds: float) -> dict[str, Any]:
    """Milliseconds a frame, by hop, and of a bare client."""
    settings = CloudSettings.model_validate({"worker": {"propagate": "causal"}})
    found: list[tuple[Result, int]] = []
    async with Cloud(state / "cloud", settings=settings) as cloud, Client(cloud.api) as client:
        camera = {"source": str(CLIP.absolute()), "realtime": True, "loop": True}
        every_frame = {
            "gate": {"enabled": False},
            "detect": {"enabled": False},
            "encode": {"max_fps": 240},
        }
        async with Agent(cloud, state / "agent", {"cam1": camera}, settings=every_frame):
            began = time.monotonic()
            subscription = client.subscribe()
            try:
                async with asyncio.timeout(seconds + _WARM_UP_S):
                    async for result in subscription:
                        received_ns = time.time_ns()
                        if time.monotonic() - began > _WARM_UP_S and result.provenance is Provenance.CLOUD:
                            found.append((result, received_ns))
            except TimeoutError:
                await subscription.aclose()
        direct = await _direct_ms(cloud)
    return {"frames": len(found), "direct_request_ms": _spread(direct), **_hops(found)}


def _hops(found: list[tuple[Result, int]]) -> dict[str, Any]:
    names = ("published", "hub_stored", "consumed", "decoded", "infer_start", "infer_end", "answered")
    columns: dict[str, list[float]] = {}
    for result, received_ns in found:
        times = [getattr(result.proto.times, f"{name}_ns") for name in names] + [received_ns]
        for (one, two), (start, end) in zip(
            itertools.pairwise([*names, "received"]), itertools.pairwise(times), strict=True
        ):
            columns.setdefault(f"{one} -> {two}", []).append((end - start) / 1e6)
        request = times[5] - times[4]
        columns.setdefault("overhead", []).append((received_ns - times[0] - request) / 1e6)
        columns.setdefault("capture to received", []).append((received_ns - result.captured_ns) / 1e6)
    return {
        "overhead_ms": _spread(columns.pop("overhead")),
        "capture_to_received_ms": _spread(columns.pop("capture to received")),
        "hops_ms": {name: _spread(values) for name, values in columns.items()},
    }


def _pictures(count: int) -> list[NDArray[np.uint8]]:
    card = catalogue.load(CloudSettings().triton.model)
    clip = reference.open_clip(CLIP)
    letterbox = card.letterbox(*clip.size)
    return [letterbox.apply(picture) for picture in reference.pictures(clip, count)]


async def _direct_ms(cloud: Cloud) -> list[float]:
    """A bare client, one picture every tenth of a second as the camera gives them."""
    card = catalogue.load(cloud.model)
    taken = []
    async with TritonModel(cloud.endpoints["triton"]["grpc"], card) as model:
        for picture in await asyncio.to_thread(_pictures, 60):
            began = time.perf_counter()
            await model.infer(picture[None])
            taken.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(max(0.0, 0.1 - (time.perf_counter() - began)))
    return taken[5:]


async def throughput(state: Path, frames: int, repeats: int) -> dict[str, Any]:
    """Answers a second of the pipeline and of a bare client, in turns, Triton on one core."""
    pictures = await asyncio.to_thread(_pictures, 64)
    ours, bare, cpu_ms = [], [], []
    async with Cloud(state / "cloud", cpus=(0,)) as cloud:
        user = cloud.tenant()
        connection = await bus.connect(
            cloud.endpoints["hub"], name="benchmark", user=user["user"], password=user["password"]
        )
        try:
            js = connection.jetstream(timeout=10)
            running = cloud.running
            worker = psutil.Process(running.pids["worker"]) if running is not None else psutil.Process()
            for run in range(1, repeats + 1):
                bare.append(await _bare_rate(cloud, pictures, frames))
                worker.send_signal(signal.SIGSTOP)
                before = (await js.stream_info(subjects.RESULTS)).state.last_seq
                for number in range(_CAMERAS):
                    await load.fill(
                        js,
                        load.envelopes(
                            CLIP,
                            f"run{run}-{number}",
                            frames // _CAMERAS,
                            site=SITE,
                            device=DEVICE,
                            run=run,
                        ),
                    )
                cpu = sum(worker.cpu_times()[:2])
                worker.send_signal(signal.SIGCONT)
                rate = await _stored_rate(js, before, frames // _CAMERAS * _CAMERAS)
                ours.append(rate)
                cpu_ms.append((sum(worker.cpu_times()[:2]) - cpu) / frames * 1e3)
        finally:
            await connection.close()
    return {
        "frames": frames,
        "cameras": _CAMERAS,
        "eyeline_per_s": [round(rate, 2) for rate in ours],
        "bare_client_per_s": [round(rate, 2) for rate in bare],
        "ratio_median": round(statistics.median(a / b for a, b in zip(ours, bare, strict=True)), 4),
        "worker_cpu_ms_per_frame": round(statistics.median(cpu_ms), 2),
    }


async def _bare_rate(cloud: Cloud, pictures: list[NDArray[np.uint8]], count: int) -> float:
    card = catalogue.load(cloud.model)
    async with TritonModel(cloud.endpoints["triton"]["grpc"], card, timeout_s=60) as model:
        slots = asyncio.Semaphore(_IN_FLIGHT)

        async def ask(picture: NDArray[np.uint8]) -> None:
            async with slots:
                await model.infer(picture[None])

        for warm in pictures[:8]:
            await ask(warm)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in range(count):
                group.create_task(ask(pictures[index % len(pictures)]))
        return count / (time.perf_counter() - began)


async def _stored_rate(js: Any, before: int, frames: int) -> float:
    """Answers a second between the first and the last stored batch, on the hub's clock."""
    end = time.monotonic() + 300
    counted, sequence = 0, before
    stamps: list[tuple[int, int]] = []
    while counted < frames:
        if time.monotonic() > end:
            raise EyelineError(f"only {counted} of {frames} frames were answered in 300 s")
        last = (await js.stream_info(subjects.RESULTS)).state.last_seq
        while sequence < last:
            sequence += 1
            message = await js.get_msg(subjects.RESULTS, sequence)
            batch = result_pb2.ResultBatch.FromString(message.data or b"")
            counted += len(batch.results)
            stamps.append((int(message.time.timestamp() * 1e9), len(batch.results)))
        await asyncio.sleep(0.2)
    seconds = (stamps[-1][0] - stamps[0][0]) / 1e9
    return (counted - stamps[0][1]) / seconds


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        raise EyelineError("no frame was answered with pixels")
    return {f"p{share}": round(float(np.percentile(values, share)), 2) for share in (50, 95, 99)}


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown"
    )
    return {"cores": os.cpu_count(), "processor": model, "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write `e2e.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of the overhead measurement")
    parser.add_argument("--frames", type=int, default=400, help="of each throughput run")
    parser.add_argument("--repeats", type=int, default=3, help="throughput runs of either side")
    parser.add_argument("--out", type=Path, default=Path("build/e2e"))
    options = parser.parse_args(argv)
    state = options.out / "state"
    shutil.rmtree(state, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        figures = {
            "machine": machine(),
            "overhead": asyncio.run(overhead(state / "overhead", options.seconds)),
            "throughput": asyncio.run(throughput(state / "throughput", options.frames, options.repeats)),
        }
    except EyelineError as problem:
        print(f"e2e: {problem}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(state, ignore_errors=True)
    (options.out / "e2e.json").write_text(json.dumps(figures, indent=2) + "\n")
    Console().print(_table(figures))
    return 0


def _table(figures: dict[str, Any]) -> Table:
    one, two = figures["overhead"], figures["throughput"]
    table = Table("", "p50", "p95", "p99", title=f"milliseconds, {one['frames']} frames of one camera")
    for name, spread in one["hops_ms"].items():
        table.add_row(name, *(f"{spread[key]:.2f}" for key in ("p50", "p95", "p99")))
    for name in ("overhead_ms", "capture_to_received_ms", "direct_request_ms"):
        spread = one[name]
        table.add_row(name.removesuffix("_ms"), *(f"{spread[key]:.2f}" for key in ("p50", "p95", "p99")))
    table.caption = (
        f"throughput: {statistics.median(two['eyeline_per_s'])} answers a second, bare client "
        f"{statistics.median(two['bare_client_per_s'])}: {two['ratio_median']:.1%}; "
        f"worker {two['worker_cpu_ms_per_frame']} ms of processor a frame"
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
