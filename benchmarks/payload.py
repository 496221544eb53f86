"""How a picture should travel from worker to Triton: raw on the wire, in shared memory, or encoded.

    python -m benchmarks.payload [--frames 200] [--out benchmarks/results/payload.json]

CPU time of client and server for one picture of the street clip, and the bytes on the wire. The model is a
trivial one, so that what is left is the way of the picture. Encoded pictures are JPEGs, decoded inside the
server by its Python backend. Ways take turns; figures are medians over the turns, and ratios are to the raw
way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
import psutil
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2

from benchmarks import reference
from benchmarks.machine import describe
from cloud_inference import triton_repository
from cloud_inference.triton import TritonModel
from cloud_inference.triton_repository import Served, Serving
from cloud_inference.triton_server import TritonServer
from eyeline_models import catalogue

CLIP: Final = Path(__file__).parent / "clips" / "street.mp4"
QUALITY: Final = 85
_TURNS: Final = 3
_IN_FLIGHT: Final = 8

# What a server does that takes encoded pictures; the tensor is bytes.
_DECODER: Final = """
import cv2
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            data = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "data"))
            image = cv2.imdecode(data.reshape(-1), cv2.IMREAD_COLOR)
            mean = np.asarray([image[::16, ::16].mean()], np.float32)
            tensor = pb_utils.Tensor.from_dlpack("mean", mean)
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return responses
"""
_DECODER_CONFIG: Final = """
name: "encoded"
backend: "python"
max_batch_size: 0
input [ { name: "data" data_type: TYPE_UINT8 dims: [ -1 ] } ]
output [ { name: "mean" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


def trivial(path: Path, width: int, height: int) -> Served:
    """A served graph that looks at one pixel."""
    nodes = [
        helper.make_node("Slice", ["images", "start", "end", "axes"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["pixel"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixel", "shape"], ["column"]),
        helper.make_node("Mul", ["column", "row"], ["boxes"]),
        helper.make_node("ReduceSum", ["column", "sum_axes"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["count"], to=TensorProto.INT32),
    ]
    constants = {
        "start": np.array([0, 0, 0], np.int64),
        "end": np.array([1, 1, 1], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "shape": np.array([-1, 1, 1], np.int64),
        "row": np.zeros((1, 4, 6), np.float32),
        "sum_axes": np.array([1, 2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "trivial",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", height, width, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["B", 4, 6]),
            helper.make_tensor_value_info("count", TensorProto.INT32, ["B"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return triton_repository.inspect("raw", path)


def cpu_s(pid: int) -> float:
    """Of a process and its children, so far."""
    found = psutil.Process(pid)
    return float(sum(sum(it.cpu_times()[:2]) for it in (found, *found.children(recursive=True))))


class Ways:
    """The three ways, each a coroutine that asks about one picture and returns the bytes that it sent."""

    def __init__(self, url: str, served: Served) -> None:
        self.wire = TritonModel(url, served, shared_memory=0)
        self.shared = TritonModel(url, served, shared_memory=32)

    async def raw(self, image: NDArray[np.uint8]) -> int:
        """Pixels on the wire."""
        await self.wire.infer(image[None])
        return int(image.nbytes)

    async def memory(self, image: NDArray[np.uint8]) -> int:
        """Pixels in shared memory."""
        await self.shared.infer(image[None])
        return 0

    async def encoded(self, image: NDArray[np.uint8]) -> int:
        """A JPEG, made here and decoded there."""
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        request = service_pb2.ModelInferRequest(model_name="encoded")
        request.inputs.add(name="data", datatype="UINT8", shape=[len(data)])
        request.raw_input_contents.append(data.tobytes())
        await self.wire.stub.ModelInfer(request, timeout=10)
        return len(data)


async def run(frames: int) -> dict[str, Any]:
    """Every way in turns."""
    card = catalogue.load("centernet-mobilenetv3")
    clip = reference.open_clip(CLIP)
    letterbox = card.letterbox(*clip.size)
    pictures = [letterbox.apply(it) for it in reference.pictures(clip, min(frames, clip.frames))]
    width, height = card.input_size
    rows: dict[str, list[dict[str, float]]] = {"raw": [], "memory": [], "encoded": []}
    with tempfile.TemporaryDirectory(prefix="eyeline-payload-") as text:
        folder = Path(text)
        served = trivial(folder / "trivial.onnx", width, height)
        home = folder / "models" / "encoded" / "1"
        home.mkdir(parents=True)
        (home / "model.py").write_text(_DECODER)
        (home.parent / "config.pbtxt").write_text(_DECODER_CONFIG)
        server = TritonServer([served], work_dir=folder, serving=Serving(max_batch=8, max_queue_delay_us=0))
        await server.start()
        try:
            ways = Ways(server.url, served)
            async with ways.wire, ways.shared:
                await ways.wire.wait_ready()
                await ways.shared.wait_ready()
                assert server.pid is not None
                for turn in range(_TURNS + 1):
                    for name, kept in rows.items():
                        row = await _turn(getattr(ways, name), pictures, frames, server.pid)
                        if turn:  # the first warms up
                            kept.append(row)
        finally:
            await server.stop()
    medians = {
        name: {key: round(statistics.median(row[key] for row in turns), 4) for key in turns[0]}
        for name, turns in rows.items()
    }
    for figures in medians.values():
        base = medians["raw"]
        cpu, raw_cpu = (it["client_ms"] + it["server_ms"] for it in (figures, base))
        figures["cpu_to_raw"] = round(cpu / raw_cpu, 3)
    return {
        "machine": describe(),
        "picture": [width, height],
        "jpeg_quality": QUALITY,
        "in_flight": _IN_FLIGHT,
        "frames": frames,
        "turns": _TURNS,
        "ways": medians,
    }


async def _turn(ask: Any, pictures: list[NDArray[np.uint8]], frames: int, server: int) -> dict[str, float]:
    slots = asyncio.Semaphore(_IN_FLIGHT)
    sent = 0

    async def one(image: NDArray[np.uint8]) -> None:
        nonlocal sent
        async with slots:
            size = await ask(image)
            sent += size

    there, here = cpu_s(server), time.process_time()
    async with asyncio.TaskGroup() as group:
        for index in range(frames):
            group.create_task(one(pictures[index % len(pictures)]))
    return {
        "client_ms": (time.process_time() - here) / frames * 1e3,
        "server_ms": (cpu_s(server) - there) / frames * 1e3,
        "wire_bytes": sent / frames,
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    result = asyncio.run(run(options.frames))
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
