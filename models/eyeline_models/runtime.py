"""Running a served model with ONNX Runtime in this process: on the edge, and in benchmarks."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from eyeline_models.catalogue import ModelCard
from eyeline_models.errors import BadModel, ModelError

# Best first.
PROVIDERS: Final = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


class Detector:
    """A served model, loaded. Calls may come from any thread, one at a time."""

    def __init__(self, card: ModelCard, *, threads: int = 1, provider: str = "auto") -> None:
        """Raises `ModelError` when it cannot be loaded here."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads cost more on a small device than they gain. The memory arena stays on: with it
        # the process was measured 10 to 30 MB smaller than with the C library's heap.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(str(card.path), options, _providers(provider))
        except ModelError:
            raise
        except Exception as problem:  # noqa: BLE001  # ONNX Runtime's errors share no public base
            reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
            raise BadModel(f"{card.path} cannot be loaded: {reason}") from None
        self._check(card)
        self.card = card

    def _check(self, card: ModelCard) -> None:
        """Raise `BadModel` when the graph is not a served one, or of another size than its card says."""
        found = {
            tensor.name: (tensor.type, tensor.shape)
            for tensor in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        width, height = card.input_size
        for name, kind, shape in (
            ("images", "uint8", [height, width, 3]),
            ("boxes", "float", [None, 6]),
            ("count", "int32", []),
        ):
            has, dimensions = found.get(name, ("", []))
            fits = has == f"tensor({kind})" and len(dimensions) == 1 + len(shape)
            if not fits or any(
                wanted not in {None, it} for wanted, it in zip(shape, dimensions[1:], strict=True)
            ):
                wanted = ", ".join("B" if it is None else str(it) for it in ["B", *shape])
                actual = f"{has[7:-1]} {dimensions}" if has else "missing"
                raise BadModel(
                    f"{card.path} is no served model of this card: {name} must be {kind} [{wanted}] and is "
                    f"{actual}; make one with `cloud-inference models import`"
                )

    @property
    def provider(self) -> str:
        """The execution provider in use, by ONNX Runtime's name."""
        return str(self._session.get_providers()[0])

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """boxes float32 [B, K, 6] and count int32 [B] for uint8 [B, H, W, 3] BGR, letterboxed."""
        boxes, count = self._session.run(["boxes", "count"], {"images": images})
        return boxes, count


def _providers(wanted: str) -> list[str]:
    here = set(onnxruntime.get_available_providers())
    if wanted == "auto":
        return [name for name in PROVIDERS.values() if name in here]
    name = PROVIDERS.get(wanted.lower())
    if name is None:
        raise ModelError(f"unknown execution provider {wanted!r}; known: auto, {', '.join(PROVIDERS)}")
    if name not in here:
        raise ModelError(f"this ONNX Runtime has no {name}; it has {', '.join(sorted(here))}")
    return [name] if name == PROVIDERS["cpu"] else [name, PROVIDERS["cpu"]]
