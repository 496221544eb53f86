"""Pictures to the inference server, many in flight, bounded, and again when it comes back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from cloud_inference.inflight import InFlight
from cloud_inference.metrics import INFER_RETRIES, INFER_SECONDS
from eyeline.errors import EyelineError

_log = structlog.get_logger()

# Enough to keep a server that batches busy until its answers say how many it takes.
_FIRST_IN_FLIGHT = 16
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 0.5

INFERENCE_FAILED = "inference_failed"


class Model(Protocol):
    """What answers for pictures: `cloud_inference.triton.TritonModel`, or a fake in tests."""

    async def infer(self, images: NDArray[np.uint8]) -> Any:
        """`boxes` float32 [B, K, 6] and `count` int32 [B] for uint8 [B, H, W, 3] BGR."""
        ...


@dataclass(frozen=True, slots=True)
class Inferred:
    """Rows for one picture: boxes float32 [K, 6], of which the first `count` hold. Times in ns."""

    boxes: NDArray[np.float32]
    count: int
    start_ns: int
    end_ns: int


class Inference:
    """All cameras of a process share one; `most` pictures are in flight at a time."""

    def __init__(self, model: Model, *, most: int) -> None:
        self._model = model
        self._slots = InFlight(most, first=_FIRST_IN_FLIGHT)
        self._away = False

    async def reserve(self) -> None:
        """Wait for a place; the picture is decoded only then, so that memory stays bounded."""
        await self._slots.acquire()

    @property
    def quiet(self) -> bool:
        """Whether no more than one place is taken."""
        return self._slots.used <= 1

    def release(self) -> None:
        """Give a reserved place back."""
        self._slots.release()

    async def run(self, image: NDArray[np.uint8]) -> Inferred | None:
        """Rows for one picture, uint8 [H, W, 3] BGR; None when the server can never answer for it.

        A server that is away is asked again until it comes back: the frames behind this one wait in the hub.
        """
        wait = _FIRST_WAIT_S
        while True:
            start_ns, began = time.time_ns(), time.perf_counter()
            try:
                answer = await self._model.infer(image[None])
            except EyelineError as problem:
                if not problem.retryable:
                    _log.error("inference_failed", reason=str(problem))
                    return None
                if not self._away:
                    self._away = True
                    _log.warning("inference_away", reason=str(problem))
                INFER_RETRIES.inc()
                self._slots.failed(time.perf_counter() - began)
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT_S)
                continue
            if self._away:
                self._away = False
                _log.info("inference_back")
            took_s = time.perf_counter() - began
            self._slots.answered(took_s)
            INFER_SECONDS.observe(took_s)
            return Inferred(answer.boxes[0], int(answer.count[0]), start_ns, time.time_ns())
