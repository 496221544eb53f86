"""Pictures in memory shared with a Triton on the same host, instead of on the wire.

Measured with 416x416 pictures (519 kB) and a trivial model: a request alone takes 0.1 to 0.7 ms less (of 2.0
to 2.6 ms), eight in flight 20 to 40 % less a picture, and our own CPU time falls from 0.45-0.65 to 0.32 ms.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

_FOLDER = Path("/dev/shm")  # noqa: S108  # where POSIX shared memory is
_TIMEOUT_S = 2.0


class Slots:
    """A region with a place for each of several requests, registered with one server.

    Its file is unlinked as soon as Triton has opened it: whatever happens to us, nothing is left behind.
    """

    def __init__(self, region: str, memory: mmap.mmap, slots: int, slot_bytes: int) -> None:
        self.region = region
        self._memory = memory
        self._pixels = np.frombuffer(memory, np.uint8).reshape(slots, slot_bytes)
        self._free = list(range(slots))
        self.slot_bytes = slot_bytes

    @classmethod
    async def register(cls, stub: Any, slots: int, slot_bytes: int) -> Slots:
        """Make the region and let the server open it.

        Raises OSError when there is no room, and `grpc.aio.AioRpcError` when the server cannot open it,
        as on another host.
        """
        region = f"eyeline-{os.getpid()}-{secrets.token_hex(6)}"
        path = _FOLDER / region
        size = slots * slot_bytes
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Reserved now: a full /dev/shm is an error here rather than a SIGBUS later.
            os.posix_fallocate(descriptor, 0, size)
            memory = mmap.mmap(descriptor, size)
            await stub.SystemSharedMemoryRegister(
                service_pb2.SystemSharedMemoryRegisterRequest(
                    name=region, key=f"/{region}", offset=0, byte_size=size
                ),
                timeout=_TIMEOUT_S,
            )
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)
        return cls(region, memory, slots, slot_bytes)

    async def unregister(self, stub: Any) -> None:
        """Let the server forget it, if it is there."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.SystemSharedMemoryUnregister(
                service_pb2.SystemSharedMemoryUnregisterRequest(name=self.region), timeout=_TIMEOUT_S
            )

    def put(self, images: NDArray[np.uint8]) -> int | None:
        """Copy images into a free place and return its number; None when they do not fit or all are taken.

        A request that was given up may still be read from its place: its answer goes nowhere, and whoever has
        the place next is not disturbed.
        """
        if images.nbytes > self.slot_bytes or not self._free:
            return None
        slot = self._free.pop()
        self._pixels[slot, : images.nbytes].reshape(images.shape)[...] = images
        return slot

    def give_back(self, slot: int) -> None:
        """The place is free again."""
        self._free.append(slot)
