"""One model of a Triton in explicit control, going over to another form or version with no request failed.

A new version gets a folder with a higher number, and the configuration is replaced; then Triton is asked to
load the model. It loads the new version beside the old one, sends requests there once it is ready and warm,
and lets the old one finish what it has. A version that does not load is taken away again, and the old one
goes on.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cloud_inference import triton_repository
from cloud_inference.errors import EngineFailed, TritonUnavailable
from cloud_inference.triton_repository import Form, Served, Serving
from eyeline.errors import EyelineError

_LOAD_TIMEOUT_S: Final = 300.0


class LiveModel:
    """One model in one server's repository; an async context manager.

    url: `host:port` of Triton's gRPC endpoint. root: the repository, as a folder that we may write.
    """

    def __init__(self, url: str, root: Path, model: Served, serving: Serving) -> None:
        self._url, self._root, self._model, self._serving = url, root, model, serving
        self._folder = root / model.name
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()

    @property
    def version(self) -> int:
        """The newest version's number in the repository; 0 without any."""
        numbers = (it.name for it in self._folder.glob("*") if it.is_dir() and it.name.isdigit())
        return max(map(int, numbers), default=0)

    async def switch(self, data: bytes, form: Form) -> int:
        """Serve this instead; returns the version's number once it answers and the old one has gone.

        Raises `EngineFailed` when Triton does not take it, which leaves all as it was, and
        `TritonUnavailable`.
        """
        old, new = self.version, self.version + 1
        config = self._folder / "config.pbtxt"
        before = config.read_bytes() if config.exists() else None
        triton_repository.write_version(self._folder / str(new), data, form)
        triton_repository.write_config(self._root, self._model, self._serving, form)
        try:
            await self._load()
        except BaseException:
            shutil.rmtree(self._folder / str(new), ignore_errors=True)
            if before is not None:
                config.write_bytes(before)
                # Or Triton calls itself not ready, for the version that failed.
                with contextlib.suppress(EyelineError):
                    await self._load()
            raise
        for number in range(1, old + 1):
            shutil.rmtree(self._folder / str(number), ignore_errors=True)
        return new

    async def _load(self) -> None:
        name = self._model.name
        try:
            await self._stub.RepositoryModelLoad(
                service_pb2.RepositoryModelLoadRequest(model_name=name), timeout=_LOAD_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as problem:
            said = " ".join((problem.details() or problem.code().name).split())[:300]
            if problem.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise TritonUnavailable(f"Triton at {self._url}: {said}") from None
            raise EngineFailed(f"Triton at {self._url} does not load {name}: {said}") from None
