"""`cloud-inference tune MODEL`: batching settings from measurement, on the machine that will serve.

Each setting gets a Triton of its own and rising load: so many requests of one picture in flight, each asked
again as soon as it is answered. What counts is the most pictures a second whose 95th percentile keeps to the
bound.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from cloud_inference import triton_repository
from cloud_inference.triton import TritonModel
from cloud_inference.triton_repository import Served, Serving
from cloud_inference.triton_server import TritonServer
from eyeline.errors import ConfigError

# A setting that is not better by this much is not worth more instances or a longer wait.
_WORTH: Final = 1.03
_WARM_UP: Final = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """Under one load: pictures a second, latency of requests in milliseconds, mean size of Triton's
    batches.
    """

    in_flight: int
    batch: int
    per_s: float
    p50_ms: float
    p95_ms: float
    mean_batch: float


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting with its best load that keeps to the bound; None when not even the least does."""

    serving: Serving
    best: Measured | None
    loads: tuple[Measured, ...]


async def measure(
    model: TritonModel, pictures: NDArray[np.uint8], *, in_flight: int, seconds: float
) -> Measured:
    """Ask for so long, always with so many requests in flight; pictures uint8 [B, H, W, 3] is one request."""
    for _ in range(min(in_flight, _WARM_UP)):
        await model.infer(pictures)
    before = await model.statistics()
    took: list[float] = []
    began = time.perf_counter()

    async def ask() -> None:
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            await model.infer(pictures)
            took.append(time.perf_counter() - asked)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(ask())
    elapsed = time.perf_counter() - began
    after = await model.statistics()
    p50, p95 = np.percentile(took, [50, 95])
    runs = after.executions - before.executions
    return Measured(
        in_flight=in_flight,
        batch=len(pictures),
        per_s=round(len(took) * len(pictures) / elapsed, 2),
        p50_ms=round(float(p50) * 1e3, 3),
        p95_ms=round(float(p95) * 1e3, 3),
        mean_batch=round((after.inferences - before.inferences) / runs, 2) if runs else 0.0,
    )


def settings(base: Serving, instances: Sequence[int], delays_us: Sequence[int]) -> Iterator[Serving]:
    """What is tried: with a preferred batch only where there is a delay to wait it out in."""
    for count, delay in itertools.product(instances, delays_us):
        yield replace(base, instances=count, max_queue_delay_us=delay)
        if delay and base.max_batch > 1:
            yield replace(base, instances=count, max_queue_delay_us=delay, preferred_batch=(base.max_batch,))


async def tune(
    served: Served,
    base: Serving,
    *,
    bound_ms: float,
    instances: Sequence[int],
    delays_us: Sequence[int],
    loads: Sequence[int],
    seconds: float,
    tell: Callable[[str], None],
) -> list[Tried]:
    """Try every setting; the best first. Raises `ServerFailed`."""
    image = np.random.default_rng(1).integers(0, 255, (1, served.height, served.width, 3), np.uint8)
    tried = []
    for serving in settings(base, instances, delays_us):
        with tempfile.TemporaryDirectory(prefix="eyeline-tune-") as folder:
            server = TritonServer([served], work_dir=Path(folder), serving=serving)
            await server.start()
            try:
                async with TritonModel(server.url, served, timeout_s=60) as model:
                    await model.wait_ready()
                    measured: list[Measured] = []
                    for in_flight in loads:
                        measured.append(await measure(model, image, in_flight=in_flight, seconds=seconds))
                        # More load does not make it faster again.
                        if measured[-1].p95_ms > bound_ms:
                            break
            finally:
                await server.stop()
        keeping = [it for it in measured if it.p95_ms <= bound_ms]
        best = max(keeping, key=lambda it: it.per_s, default=None)
        tried.append(Tried(serving, best, tuple(measured)))
        tell(row(tried[-1]))
    return ranked(tried)


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """Best first: a simpler setting unless another is really faster. Settings come in order of their cost."""
    left, order = [it for it in tried if it.best is not None], []
    while left:
        most = max(it.best.per_s for it in left if it.best is not None)
        first = next(it for it in left if it.best is not None and it.best.per_s * _WORTH >= most)
        order.append(first)
        left.remove(first)
    return order + [it for it in tried if it.best is None]


HEAD: Final = "instances  delay_us  preferred  in flight  pictures/s   p50 ms   p95 ms  mean batch"


def row(tried: Tried) -> str:
    """One setting, for the table."""
    serving, best = tried.serving, tried.best
    preferred = ",".join(map(str, serving.preferred_batch)) or "-"
    start = f"{serving.instances:>9}  {serving.max_queue_delay_us:>8}  {preferred:>9}"
    if best is None:
        return f"{start}  {'-':>9}  no load keeps to the bound"
    return (
        f"{start}  {best.in_flight:>9}  {best.per_s:>10.1f}  {best.p50_ms:>7.1f}  {best.p95_ms:>7.1f}  "
        f"{best.mean_batch:>10.2f}"
    )


def written(served: Served, tried: Sequence[Tried], bound_ms: float) -> str:
    """`config.pbtxt` of the best, with the table above it."""
    lines = [f"# Measured for p95 <= {bound_ms:g} ms, best first:", f"# {HEAD}"]
    lines += [f"# {row(it)}" for it in tried]
    return "\n".join(lines) + "\n" + triton_repository.config_pbtxt(served, tried[0].serving)


def command(
    model: Annotated[str, typer.Argument(help="Name of the model, or its folder.")],
    out: Annotated[Path, typer.Option(help="The config.pbtxt to write.")],
    latency_ms: Annotated[float, typer.Option(min=0.1, help="Bound of the 95th percentile.")] = 200.0,
    max_batch: Annotated[int, typer.Option(min=1, max=256)] = 4,
    instances: Annotated[str, typer.Option(help="Numbers to try.")] = "1,2",
    delays_us: Annotated[str, typer.Option(help="Queue delays to try, microseconds.")] = "0,500,2000",
    loads: Annotated[str, typer.Option(help="Requests in flight, rising.")] = "1,2,4,8,16,32",
    seconds: Annotated[float, typer.Option(min=0.1, help="For each load.")] = 5.0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of one run of the model.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, gpu or auto.")] = "auto",
    as_json: Annotated[Path | None, typer.Option("--json", help="Write every figure there.")] = None,
) -> None:
    """Measure batching settings on this machine, and write the configuration of the best."""
    import json

    from cloud_inference.running import run
    from eyeline import log
    from eyeline_models import catalogue

    if device not in {"cpu", "gpu", "auto"}:
        raise ConfigError(f"--device {device!r} must be cpu, gpu or auto")
    log.configure(level="error")
    served = triton_repository.of_card(catalogue.load(model))
    base = Serving(max_batch, threads=threads, device=device)  # type: ignore[arg-type]  # looked at above
    print(HEAD)

    async def work() -> None:
        tried = await tune(
            served,
            base,
            bound_ms=latency_ms,
            instances=_numbers(instances, "--instances", least=1),
            delays_us=_numbers(delays_us, "--delays-us"),
            loads=_numbers(loads, "--loads", least=1),
            seconds=seconds,
            tell=print,
        )
        if tried[0].best is None:
            raise ConfigError(
                f"no setting keeps to {latency_ms:g} ms on this machine: allow more, or another model"
            )
        out.write_text(written(served, tried, latency_ms), encoding="utf-8")
        if as_json is not None:
            as_json.write_text(json.dumps([asdict(it) for it in tried], indent=1), encoding="utf-8")
        print(f"best: {row(tried[0]).strip()}; written to {out}")

    run(work())


def _numbers(text: str, option: str, least: int = 0) -> list[int]:
    parts: list[Any] = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) >= least for part in parts):
        raise ConfigError(f"{option} {text!r} must be numbers from {least} on, such as 1,2,4")
    return sorted({int(part) for part in parts})
