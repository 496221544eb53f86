"""What serving adds to one camera's answers, hop by hop, beside a bare client that asks the same Triton."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import reference
from benchmarks.machine import Others
from benchmarks.system import Agent, Cloud
from cloud_inference.config import CloudSettings
from cloud_inference.triton import TritonModel
from eyeline import Client
from eyeline.errors import EyelineError
from eyeline.values import Provenance, Result
from eyeline_models import catalogue

_WARM_UP_S: Final = 4.0
_START_WITHIN_S: Final = 60.0
_STAGES: Final = (
    "published",
    "hub_stored",
    "consumed",
    "decoded",
    "infer_start",
    "infer_end",
    "answered",
    "received",
)
# Every frame goes to the cloud with its pixels, each by itself.
_EVERY_FRAME: Final[dict[str, Any]] = {
    "gate": {"enabled": False},
    "detect": {"enabled": False},
    "encode": {"max_fps": 240, "batch_ms": 0},
}


@dataclass(frozen=True, slots=True)
class _Play:
    """What is played, and for how long at a time."""

    clip: Path
    seconds: float


@dataclass(slots=True)
class _Taken:
    """Answers with the time they were received, Unix nanoseconds, and what the bare client took (ms)."""

    answers: list[tuple[Result, int]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    triton_ns: int = 0
    triton_requests: int = 0
    direct_ms: list[float] = field(default_factory=list)
    direct_request_ms: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


async def measure(state: Path, clip: Path, seconds: float, repeats: int) -> dict[str, Any]:
    """Eyeline and the bare client in turns, each for `seconds` at a time at the clip's own rate."""
    settings = CloudSettings.model_validate({"worker": {"propagate": "causal"}})
    play, taken = _Play(clip, seconds), _Taken()
    async with (
        Cloud(state / "cloud", settings=settings) as cloud,
        TritonModel(cloud.endpoints["triton"]["grpc"], catalogue.load(cloud.model)) as model,
    ):
        await model.wait_ready()
        for turn in range(repeats):
            await _direct(model, play, taken)
            await _through(cloud, model, state / f"agent{turn}", play, taken)
    return _figures(taken)


async def _through(cloud: Cloud, model: TritonModel, state: Path, play: _Play, taken: _Taken) -> None:
    """One camera, open loop: the clip sets the pace, whatever the answers do."""
    clip, seconds = play.clip, play.seconds
    camera = {"source": str(clip.absolute()), "realtime": True, "loop": True}
    found: list[tuple[Result, int]] = []
    async with Client(cloud.api) as client, client.subscribe() as subscription:
        await subscription.ready()
        async with Agent(cloud, state, {"cam1": camera}, settings=_EVERY_FRAME):
            async with asyncio.timeout(_START_WITHIN_S):
                await anext(subscription)
            begin_ns = time.time_ns() + int(_WARM_UP_S * 1e9)
            before, others = await model.statistics(), Others()
            counted = False
            async with asyncio.timeout(_WARM_UP_S + seconds + _START_WITHIN_S):
                async for result in subscription:
                    received_ns = time.time_ns()
                    if result.captured_ns < begin_ns:
                        continue
                    if not counted:
                        before, others, counted = await model.statistics(), Others(), True
                    if result.captured_ns > begin_ns + seconds * 1e9:
                        break
                    found.append((result, received_ns))
            after = await model.statistics()
            taken.busy.append(others.share())
    seen = [one for one in found if one[0].provenance is Provenance.CLOUD]
    taken.others.update(result.provenance.name for result, _ in found)
    taken.answers += seen
    taken.triton_ns += after.queue_ns + after.compute_ns - before.queue_ns - before.compute_ns
    taken.triton_requests += after.requests - before.requests
    taken.blocks.append(float(np.median([_overhead_ms(*one) for one in seen])))


async def _direct(model: TritonModel, play: _Play, taken: _Taken) -> None:
    """The same frames at the same pace, letterboxed and asked about by a program that does nothing else."""
    opened = reference.open_clip(play.clip)
    letterbox = catalogue.load(model.name).letterbox(*opened.size)
    pictures = await asyncio.to_thread(lambda: list(reference.pictures(opened, min(opened.frames, 100))))
    began = time.perf_counter()
    for number in range(int(play.seconds * opened.fps)):
        due = began + number / opened.fps
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        image = letterbox.apply(pictures[number % len(pictures)])
        asked = time.perf_counter()
        await model.infer(image[None])
        answered = time.perf_counter()
        if number >= opened.fps:
            # Late starts count, as for any open loop.
            taken.direct_ms.append((answered - due) * 1e3)
            taken.direct_request_ms.append((answered - asked) * 1e3)


def _stages_ns(result: Result, received_ns: int) -> list[int]:
    times = result.proto.times
    return [*(getattr(times, f"{stage}_ns") for stage in _STAGES[:-1]), received_ns]


def _overhead_ms(result: Result, received_ns: int) -> float:
    times = result.proto.times
    return (received_ns - times.published_ns - (times.infer_end_ns - times.infer_start_ns)) / 1e6


def _figures(taken: _Taken) -> dict[str, Any]:
    if not taken.answers:
        raise EyelineError("no frame was answered with pixels")
    hops: dict[str, list[float]] = {}
    for answer in taken.answers:
        for (one, start), (two, end) in itertools.pairwise(zip(_STAGES, _stages_ns(*answer), strict=True)):
            hops.setdefault(f"{one} -> {two}", []).append((end - start) / 1e6)
    requests = hops["infer_start -> infer_end"]
    return {
        "frames": len(taken.answers),
        "provenance": dict(taken.others),
        "overhead_ms": spread([_overhead_ms(*one) for one in taken.answers]),
        "overhead_p50_ms_by_run": [round(block, 2) for block in taken.blocks],
        "hops_ms": {name: spread(values) for name, values in hops.items()},
        "captured_to_received_ms": spread(
            [(received - result.captured_ns) / 1e6 for result, received in taken.answers]
        ),
        "clock_uncertainty_ms": spread([r.proto.clock_uncertainty_ns / 1e6 for r, _ in taken.answers]),
        # The request as its sender sees it, less what Triton's own statistics say of it.
        "request_mean_ms": round(float(np.mean(requests)), 2),
        "triton_own_mean_ms": round(taken.triton_ns / max(taken.triton_requests, 1) / 1e6, 2),
        "direct_ms": spread(taken.direct_ms),
        "direct_request_ms": spread(taken.direct_request_ms),
        "cores_taken_by_others": [round(share, 2) for share in taken.busy],
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile."""
    return {f"p{share}": round(float(np.percentile(values, share)), 2) for share in (50, 95, 99)}
