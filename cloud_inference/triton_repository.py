"""Triton's model repository, written from served ONNX graphs.

A served graph takes `images` uint8 [B, H, W, 3] and gives `boxes` float32 [B, K, 6] and `count` int32 [B]. It
runs on ONNX Runtime in Triton's Python backend, or as a TensorRT plan; names and shapes are the same, so that
a model can go over from one to the other while it is served.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from cloud_inference.errors import ModelMismatch
from eyeline_models.catalogue import ModelCard

_BACKEND_MODEL = Path(__file__).with_name("triton_backend") / "model.py"
# What runs it: ONNX Runtime in the Python backend, or TensorRT.
Form = Literal["onnx", "plan"]
Device = Literal["cpu", "gpu", "auto"]
_UINT8, _FLOAT, _INT32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32


@dataclass(frozen=True, slots=True)
class Served:
    """A graph to serve: its name, its file, and its sizes in pixels; `rows` is K."""

    name: str
    onnx: Path
    height: int
    width: int
    rows: int
    version: int = 1

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the input, in pixels."""
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class Serving:
    """How Triton batches and runs.

    max_batch: on a CPU a batch saves nothing. Measured with the default model on one core, an image takes 33
    ms alone, 36 ms in a batch of 4 and 39 ms in one of 16, which also needs 0.8 GB and makes everybody wait
    0.6 s; so the default is small. On a GPU it should be larger. max_queue_delay_us: how long a request waits
    for company when the model is idle. preferred_batch: with such sizes a load below them waits the whole
    delay out, so there is none unless `tune` found one good. threads: of ONNX Runtime, for one run. device:
    "auto" is a GPU where Triton has one. instances: of the model, on each device. max_queue: requests that
    may wait; 0 is no limit. queue_timeout_us: a request that says nothing else waits no longer for its turn;
    0 is no limit. Workers say in each request how much of the time that counts from the frame's capture is
    left. warm_up: run the smallest and the largest batch before the first request.
    """

    max_batch: int = 4
    max_queue_delay_us: int = 500
    threads: int = 1
    preferred_batch: tuple[int, ...] = ()
    device: Device = "cpu"
    instances: int = 1
    max_queue: int = 0
    queue_timeout_us: int = 30_000_000
    warm_up: bool = True


def inspect(name: str, path: Path, version: int = 1) -> Served:
    """Read the sizes from a graph; raises `ModelMismatch` when it is not a served one."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as problem:
        raise ModelMismatch(f"model {name}: {path} cannot be read as ONNX ({problem})") from None
    tensors = {value.name: _signature(value) for value in (*graph.input, *graph.output)}
    images, boxes, count = (tensors.get(tensor) for tensor in ("images", "boxes", "count"))
    if (
        images is None
        or boxes is None
        or count is None
        or (images[0], boxes[0], count[0]) != (_UINT8, _FLOAT, _INT32)
        or len(images[1]) != 4
        or images[1][3] != 3
        or len(boxes[1]) != 3
        or boxes[1][2] != 6
        or 0 in (*images[1][1:], *boxes[1][1:])
    ):
        raise ModelMismatch(
            f"model {name}: {path} is not a served graph: it needs images uint8 [B,H,W,3], "
            "boxes float32 [B,K,6] and count int32 [B]; make one with `cloud-inference models import`"
        )
    return Served(name, path, images[1][1], images[1][2], boxes[1][1], version)


def of_card(card: ModelCard) -> Served:
    """The graph of a model of the catalogue; raises `ModelMismatch` when it is not what its card says."""
    served = inspect(card.name, card.path)
    if served.input_size != tuple(card.input_size):
        raise ModelMismatch(
            f"model {card.name}: {card.path} takes pictures of {served.width}x{served.height}, and its card "
            f"says {card.input_size[0]}x{card.input_size[1]}: "
            "make it anew with `cloud-inference models import`"
        )
    return served


def write(root: Path, models: Iterable[Served], serving: Serving = Serving()) -> None:
    """Write the repository; what is there of the same models is replaced."""
    for model in models:
        shutil.rmtree(root / model.name, ignore_errors=True)
        write_version(root / model.name / str(model.version), model.onnx.read_bytes(), "onnx")
        write_config(root, model, serving)


def write_version(folder: Path, data: bytes, form: Form) -> None:
    """One version's files, in a new folder."""
    folder.mkdir(parents=True)
    if form == "onnx":
        shutil.copyfile(_BACKEND_MODEL, folder / "model.py")
    (folder / ("model.onnx" if form == "onnx" else "model.plan")).write_bytes(data)


def write_config(root: Path, model: Served, serving: Serving, form: Form = "onnx") -> None:
    """The model's configuration, whole or not at all."""
    path = root / model.name / "config.pbtxt"
    draft = path.with_suffix(".new")
    draft.write_text(config_pbtxt(model, serving, form), encoding="utf-8")
    draft.replace(path)


def config_pbtxt(model: Served, serving: Serving = Serving(), form: Form = "onnx") -> str:
    """The model's configuration for Triton."""
    backend = 'backend: "python"' if form == "onnx" else 'platform: "tensorrt_plan"'
    batching = [f"max_queue_delay_microseconds: {serving.max_queue_delay_us}"]
    if serving.preferred_batch:
        batching.append(f"preferred_batch_size: [ {', '.join(map(str, serving.preferred_batch))} ]")
    batching.append(
        "default_queue_policy { timeout_action: REJECT allow_timeout_override: true "
        f"default_timeout_microseconds: {serving.queue_timeout_us} max_queue_size: {serving.max_queue} }}"
    )
    # A plan runs on a GPU and nowhere else.
    kind = "KIND_GPU" if form == "plan" else f"KIND_{serving.device.upper()}"
    sizes = sorted({1, serving.max_batch}) if serving.warm_up else []
    warm_up = "".join(
        f"""model_warmup {{
  name: "{size}" batch_size: {size}
  inputs {{
    key: "images"
    value {{ data_type: TYPE_UINT8 dims: [ {model.height}, {model.width}, 3 ] zero_data: true }}
  }}
}}
"""
        for size in sizes
    )
    return f"""\
name: "{model.name}"
{backend}
max_batch_size: {serving.max_batch}
input [
  {{ name: "images" data_type: TYPE_UINT8 dims: [ {model.height}, {model.width}, 3 ] }}
]
output [
  {{ name: "boxes" data_type: TYPE_FP32 dims: [ {model.rows}, 6 ] }},
  # The graph gives [B]; Triton knows no tensor without a dimension beside the batch.
  {{ name: "count" data_type: TYPE_INT32 dims: [ 1 ] reshape: {{ shape: [ ] }} }}
]
dynamic_batching {{
  {(chr(10) + "  ").join(batching)}
}}
instance_group [ {{ kind: {kind} count: {serving.instances} }} ]
# A new version is loaded before the one in use goes.
version_policy: {{ latest {{ num_versions: 1 }} }}
response_cache {{ enable: false }}
parameters {{ key: "intra_op_threads" value: {{ string_value: "{serving.threads}" }} }}
{warm_up}"""


def shared_memory_bytes(models: Iterable[Served], serving: Serving = Serving()) -> int:
    """Shared memory that the Python backend needs for a full batch in and out of the largest model."""
    largest = max((model.height * model.width * 3 + model.rows * 24 for model in models), default=1 << 20)
    return 2 * serving.instances * serving.max_batch * largest + (4 << 20)


def _signature(value: onnx.ValueInfoProto) -> tuple[int, list[int]]:
    """Element type and dimensions, 0 for a dynamic one."""
    tensor = value.type.tensor_type
    return tensor.elem_type, [dimension.dim_value for dimension in tensor.shape.dim]
