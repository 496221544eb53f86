"""Triton on an accelerator: throughput and latency against batch size.

    python -m benchmarks.gpu [--model NAME] [--out FILE] [--seconds 5]

Serves the model on ONNX Runtime in Triton's Python backend (CUDA where `onnxruntime-gpu` is installed) and,
where the Python package `tensorrt` is, as a TensorRT plan, and asks for batches of rising size. Writes
`benchmarks/results/gpu-NAME.json` with the machine. Where there is no GPU it says so and ends, unless
`--dry-run` asks for the same steps on the CPU, to see that they work; those figures are marked as such.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from benchmarks.machine import describe
from cloud_inference import triton_repository
from cloud_inference.engines import tensorrt
from cloud_inference.engines.repository import LiveModel
from cloud_inference.engines.tensorrt import Profile
from cloud_inference.engines.typed import Precision, convert
from cloud_inference.errors import EngineFailed
from cloud_inference.triton import TritonModel
from cloud_inference.triton_repository import Served, Serving
from cloud_inference.triton_server import TritonServer
from cloud_inference.tune import measure
from eyeline.errors import EyelineError
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard

RESULTS: Final = Path(__file__).parent / "results"
# Requests in flight: one alone, and enough to keep the device busy while answers travel.
_IN_FLIGHT: Final = (1, 4)


def graphics() -> list[dict[str, str]]:
    """Name, driver, memory and compute capability of each GPU; none without NVIDIA's driver."""
    asked = "name,driver_version,memory.total,compute_cap"
    try:
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    names = ("name", "driver", "memory", "compute_capability")
    return [
        dict(zip(names, (part.strip() for part in line.split(",")), strict=False))
        for line in said.splitlines()
    ]


async def sweep(url: str, served: Served, batches: list[int], seconds: float) -> list[dict[str, Any]]:
    """Every batch size, alone and with several requests in flight."""
    rows = []
    async with TritonModel(url, served, timeout_s=120) as model:
        await model.wait_ready()
        for batch in batches:
            pictures = np.random.default_rng(batch).integers(
                0, 255, (batch, served.height, served.width, 3), np.uint8
            )
            for in_flight in _IN_FLIGHT:
                measured = await measure(model, pictures, in_flight=in_flight, seconds=seconds)
                rows.append(asdict(measured))
                print(
                    f"  batch {batch:>3}, {in_flight} in flight: {measured.per_s:>9.1f} pictures/s, "
                    f"p50 {measured.p50_ms:.2f} ms, p95 {measured.p95_ms:.2f} ms"
                )
    return rows


def plans(card: ModelCard, most: int) -> dict[str, bytes]:
    """A plan for the GPU here in float32 and float16; none where TensorRT is not installed."""
    try:
        builder = tensorrt.find("tensorrt")
    except EngineFailed as problem:
        print(f"without TensorRT: {problem}")
        return {}
    model, found = onnx.load(card.path), {}
    for precision in (Precision.FP32, Precision.FP16):
        try:
            graph = convert(model, precision).SerializeToString()
            found[f"{builder} {precision}"] = builder.build(graph, Profile(1, min(8, most), most)).plan
        except EyelineError as problem:
            print(f"without {precision}: {problem}")
    return found


async def run(card: ModelCard, *, dry: bool, batches: list[int], seconds: float) -> dict[str, Any]:
    """Everything, as it is written to the file."""
    served = triton_repository.of_card(card)
    serving = Serving(max_batch=max(batches), max_queue_delay_us=0, device="cpu" if dry else "auto")
    forms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="eyeline-gpu-") as folder:
        server = TritonServer([served], work_dir=Path(folder), serving=serving, explicit=True)
        await server.start()
        try:
            name = f"ONNX Runtime {onnxruntime.__version__}, Python backend"
            print(name)
            forms[name] = await sweep(server.url, served, batches, seconds)
            async with LiveModel(server.url, server.repository, served, serving) as live:
                for title, plan in ({} if dry else plans(card, max(batches))).items():
                    print(title)
                    try:
                        await live.switch(plan, "plan")
                    except EyelineError as problem:
                        print(f"  {problem}")
                        continue
                    forms[title] = await sweep(server.url, served, batches, seconds)
        finally:
            await server.stop()
    return {
        "model": {"name": card.name, "version": str(card.version), "input": list(card.input_size)},
        "machine": describe() | {"gpus": graphics()},
        "dry_run_on_cpu": dry,
        "onnxruntime_providers": onnxruntime.get_available_providers(),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds_per_point": seconds,
        "forms": forms,
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="centernet-mobilenetv3")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, to see that it works")
    options = parser.parse_args(argv)
    found = graphics()
    if not found and not options.dry_run:
        print("no NVIDIA GPU is here: nothing was measured (--dry-run tries the steps on the CPU)")
        return 2
    batches = sorted({int(part) for part in options.batches.split(",")})
    try:
        card = catalogue.load(options.model)
        work = run(card, dry=options.dry_run and not found, batches=batches, seconds=options.seconds)
        result = asyncio.run(work)
    except EyelineError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    device = found[0]["name"].lower().replace(" ", "-") if found else "dry-run"
    out = options.out or RESULTS / f"gpu-{device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
