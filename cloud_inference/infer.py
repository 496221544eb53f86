"""Pictures to the inference server, many in flight, bounded, and again when it comes back."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from cloud_inference.inflight import InFlight
from cloud_inference.metrics import INFER_GIVEN_UP, INFER_RETRIES, INFER_SECONDS
from eyeline.errors import EyelineError

_log = structlog.get_logger()

# Enough to keep a server that batches busy until its answers say how many it takes.
_FIRST_IN_FLIGHT = 16
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 0.5

INFERENCE_FAILED = "inference_failed"
DEADLINE = "deadline"


class Model(Protocol):
    """What answers for pictures: `cloud_inference.triton.TritonModel`, or a fake in tests."""

    async def infer(self, images: NDArray[np.uint8], *, within_s: float | None = None) -> Any:
        """`boxes` float32 [B, K, 6] and `count` int32 [B] for uint8 [B, H, W, 3] BGR; given up in time."""
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

    @property
    def model(self) -> Model:
        """What is asked."""
        return self._model

    async def reserve(self, *, late: bool = False) -> None:
        """Wait for a place; the picture is decoded only then, so that memory stays bounded.

        late: behind all that are not, and not all places.
        """
        await self._slots.acquire(late=late)

    @property
    def quiet(self) -> bool:
        """Whether no more than one place is taken."""
        return self._slots.used <= 1

    def release(self, *, late: bool = False) -> None:
        """Give a reserved place back."""
        self._slots.release(late=late)

    async def run(self, image: NDArray[np.uint8], *, within_s: float | None = None) -> Inferred | str:
        """Rows for one picture, uint8 [H, W, 3] BGR; or the reason why there are none.

        A server that is away is asked again until it comes back: the frames behind this one wait in the hub.
        within_s: what is not answered by then is given up, at the server too.
        """
        wait = _FIRST_WAIT_S
        end = math.inf if within_s is None else time.monotonic() + within_s
        while True:
            left_s = end - time.monotonic()
            if left_s <= 0:
                return DEADLINE
            start_ns, began = time.time_ns(), time.perf_counter()
            try:
                answer = await self._model.infer(image[None], within_s=None if within_s is None else left_s)
            except EyelineError as problem:
                if not problem.retryable:
                    _log.error("inference_failed", reason=str(problem))
                    return INFERENCE_FAILED
                if time.monotonic() >= end:
                    INFER_GIVEN_UP.inc()
                    self._slots.failed(time.perf_counter() - began)
                    return DEADLINE
                if not self._away:
                    self._away = True
                    _log.warning("inference_away", reason=str(problem))
                INFER_RETRIES.inc()
                self._slots.failed(time.perf_counter() - began)
                await asyncio.sleep(min(wait, max(0.0, end - time.monotonic())))
                wait = min(wait * 2, _LONGEST_WAIT_S)
                continue
            if self._away:
                self._away = False
                _log.info("inference_back")
            took_s = time.perf_counter() - began
            self._slots.answered(took_s)
            INFER_SECONDS.observe(took_s)
            return Inferred(answer.boxes[0], int(answer.count[0]), start_ns, time.time_ns())
