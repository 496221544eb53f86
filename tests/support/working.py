"""One camera worked by the real code of a worker, with a stand-in model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_inference.camera import Camera
from cloud_inference.infer import Inference
from cloud_inference.shares import Bus, Shared
from cloud_inference.track import Tracks
from tests.support.cards import square_card


@dataclass(frozen=True, slots=True)
class Rows:
    """What a model answers."""

    boxes: NDArray[np.float32]
    count: NDArray[np.int32]


class BrightSquare:
    """Finds what is bright in each picture."""

    async def infer(self, images: NDArray[np.uint8], *, within_s: float | None = None) -> Rows:
        del within_s  # it is never away
        rows = np.zeros((len(images), 10, 6), np.float32)
        counts = np.zeros(len(images), np.int32)
        for index, image in enumerate(images):
            ys, xs = np.nonzero(image[:, :, 1] > 150)
            if len(xs):
                rows[index, 0] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, 0.9, 0
                counts[index] = 1
        return Rows(rows, counts)


def worker_bus(connection: Any, tenant: str = "acme") -> Bus:
    """A tenant's connection as workers want it."""
    return Bus(tenant, connection, connection.jetstream(timeout=2))


@contextlib.asynccontextmanager
async def working(
    connection: Any, *, tenant: str = "acme", site: str = "yard", camera: str = "gate"
) -> AsyncIterator[None]:
    """Answer one camera's frames."""
    with ThreadPoolExecutor(2) as executor:
        shared = Shared(
            worker="w1",
            inference=Inference(BrightSquare(), most=32),
            card=square_card(),
            tracks=Tracks(),
            executor=executor,
            max_in_flight=8,
            propagate="smooth",
        )
        task = asyncio.create_task(Camera(shared, worker_bus(connection, tenant), site, camera).run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
