"""Triton's Python backend: one ONNX Runtime run for each batch that Triton put together.

Copied into the model repository as `{model}/{version}/model.py`, with `model.onnx` beside it. Inside Triton
there is only numpy and onnxruntime. Parameters of the model's configuration: `intra_op_threads`.

Exported with Triton's own metrics, by model: `eyeline_triton_ort_runs_total`, to be equal to Triton's count
of executions, and `eyeline_triton_ort_images_total`.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

INPUT = "images"
OUTPUTS = ("boxes", "count")
# Starts the message of a failure that would be the same again; the client does not retry it.
FAILURE = "eyeline: "

_CUDA = "CUDAExecutionProvider"
# What DLPack calls a capsule whose tensor was taken over.
_TAKEN = b"used_dltensor"
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes, _rename.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and run it once, so that the first request is as fast as the next."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_threads"])
        options.inter_op_num_threads = 1
        # Spinning threads would take the core from the next model, and from whoever feeds us.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU" and _CUDA in ort.get_available_providers():
            providers.insert(0, (_CUDA, {"device_id": int(args["model_instance_device_id"])}))
        self._session = ort.InferenceSession(str(path), options, providers=providers)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        # Kept: Triton drops a family's metrics with the family.
        self._families = [
            pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
            for name, text in (
                ("eyeline_triton_ort_runs_total", "Runs of the graph, one a batch."),
                ("eyeline_triton_ort_images_total", "Images in those runs."),
            )
        ]
        self._runs, self._images = (family.Metric(labels=labels) for family in self._families)
        shape = [int(size) for size in config["input"][0]["dims"]]
        self._session.run(OUTPUTS, {INPUT: np.zeros([1, *shape], np.uint8)})

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a batch from one run."""
        # Views of shared memory, so a single request is not copied at all. By DLPack, since this Triton's
        # own conversions (`as_numpy`, `Tensor(name, array)`) read the array structure of numpy 1: with numpy
        # 2 they take every item for zero bytes long.
        images = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, INPUT)) for request in requests]
        try:
            batch = images[0] if len(images) == 1 else np.concatenate(images)
            outputs = self._session.run(OUTPUTS, {INPUT: batch})
        except Exception as problem:  # noqa: BLE001  # whatever it is belongs to these requests
            failure = pb_utils.TritonError(f"{FAILURE}{problem}")
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        self._runs.increment(1)
        self._images.increment(len(batch))
        responses, start = [], 0
        for image in images:
            end = start + len(image)
            # Slices along the first axis are contiguous: Triton copies them once, to where it sends from.
            tensors = [
                _tensor(name, output[start:end]) for name, output in zip(OUTPUTS, outputs, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = end
        return responses


def _tensor(name: str, array: Any) -> Any:
    """An output for Triton, not copied.

    This Triton takes a capsule over under a name of its own, which numpy's end of the capsule does not know:
    it would complain on stderr about every output. So it gets the name that the standard gives.
    """
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _rename(capsule, _TAKEN)
    return tensor
