"""Asking Triton: many requests in flight over one gRPC channel.

The request is written by hand around the picture's bytes. The answer is Triton's protobuf message.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
import numpy as np
import structlog
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cloud_inference.errors import (
    InferenceFailed,
    ModelMismatch,
    ModelMissing,
    TritonTooSlow,
    TritonUnavailable,
)
from cloud_inference.triton_shm import Slots
from eyeline.errors import EyelineError

_log = structlog.get_logger()

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
# How our Python backend marks what would fail again; see triton_backend/model.py.
_DETERMINISTIC = "eyeline: "
# Field 7 of ModelInferRequest, raw_input_contents, length-delimited.
_RAW_INPUT_TAG = b"\x3a"

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 1.0
_ASK_TIMEOUT_S = 2.0

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The default doubles to two minutes: far too long for a server that restarts in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


class Card(Protocol):
    """What the client must know of a model, as `eyeline_models.catalogue.ModelCard` does."""

    @property
    def name(self) -> str:
        """Name in the catalogue and in Triton."""
        ...

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the input in pixels."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """For B images: boxes float32 [B, K, 6] (x1, y1, x2, y2 in pixels, score, class), count int32 [B]."""

    boxes: NDArray[np.float32]
    count: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Triton's own counts for a model since it was loaded.

    inferences: images; executions: batches that ran. queue_ns and compute_ns: sums over requests of the time
    spent waiting for a batch, and in the model with its inputs and outputs.
    """

    inferences: int
    executions: int
    requests: int
    queue_ns: int
    compute_ns: int

    @property
    def mean_batch(self) -> float:
        """Images a batch; 0 before the first."""
        return self.inferences / self.executions if self.executions else 0.0


class TritonModel:
    """One model of one server; an async context manager.

    url: `host:port` of Triton's gRPC endpoint. timeout_s: for one request, queueing included.
    shared_memory: how many single images may travel through memory shared with a Triton on this host, tried
    when the address is this host's; 0 sends all on the wire.
    """

    def __init__(self, url: str, card: Card, *, timeout_s: float = 5.0, shared_memory: int = 32) -> None:
        self.url = url
        self.name = card.name
        self._width, self._height = card.input_size
        self._timeout_s = timeout_s
        self._heads: dict[tuple[int, ...], bytes] = {}
        self._wanted_slots = shared_memory if _is_local(url) else 0
        self._slots: Slots | None = None
        self._registering = False
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._infer: Any = None

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.url, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = self._channel.unary_unary(
            _METHOD, request_serializer=None, response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; requests in flight are cancelled."""
        if self._slots is not None:
            await self._slots.unregister(self._stub)
            self._slots = None
        if self._channel is not None:
            await self._channel.close()

    async def infer(self, images: NDArray[np.uint8], *, within_s: float | None = None) -> Answer:
        """Ask about uint8 [B, H, W, 3] BGR images of the model's size.

        within_s: cancelled by then, at the server too, if that is sooner than the client's own limit; while
        it waits for its turn, Triton takes it out of its queue by itself.

        Raises `TritonUnavailable`, which a retry can mend, and `ModelMissing`, `ModelMismatch` or
        `InferenceFailed`, which it cannot.
        """
        expected = (self._height, self._width, 3)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
            raise InferenceFailed(
                f"model {self.name} takes uint8 images of {expected}, not {images.dtype} {images.shape[1:]}"
            )
        slots = self._slots
        slot = slots.put(images) if slots is not None else None
        try:
            if slots is None or slot is None:
                request = self._request(images)
            else:
                request = self._shared_request(images, slots, slot)
            timeout_s = self._timeout_s
            if within_s is not None and within_s < timeout_s:
                timeout_s = max(within_s, 0.001)
                request = _queue_timeout(timeout_s) + request
            response = await self._infer(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as problem:
            if slot is not None and self._lost_shared_memory(problem):
                # A server that was restarted knows nothing of it.
                if self._slots is slots:
                    self._slots = None
                await self.share()
                return await self.infer(images, within_s=within_s)
            if problem.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TritonTooSlow(f"Triton at {self.url} did not answer within {timeout_s:g} s") from None
            raise self._error(problem) from None
        finally:
            if slots is not None and slot is not None:
                slots.give_back(slot)
        return self._answer(response, len(images))

    async def wait_ready(self) -> None:
        """Wait for the server and for the model, saying so once, and check the model against the contract.

        Raises `ModelMissing` when the server is ready without it, and `ModelMismatch`.
        """
        delay, said = _FIRST_WAIT_S, False
        while True:
            try:
                await self.check()
            except TritonUnavailable as problem:
                if not said:
                    said = True
                    _log.warning("triton_waiting", server=self.url, model=self.name, reason=str(problem))
            else:
                await self.share()
                _log.info("triton_ready", server=self.url, model=self.name, shared_memory=self.shares)
                return
            await asyncio.sleep(delay * (1 + random.random() / 4))
            delay = min(delay * 2, _LONGEST_WAIT_S)

    async def check(self) -> None:
        """Ask once whether the server is ready and serves the model as the contract says.

        Raises what `wait_ready` raises, and `TritonUnavailable`.
        """
        try:
            ready = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_ASK_TIMEOUT_S)
            if not ready.ready:
                raise TritonUnavailable(f"Triton at {self.url} is still starting")
            metadata = await self._stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(name=self.name), timeout=_ASK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as problem:
            raise self._error(problem) from None
        self._check_contract(metadata)

    async def statistics(self) -> Statistics:
        """Triton's own counts for the model; raises what `infer` raises."""
        try:
            answer = await self._stub.ModelStatistics(
                service_pb2.ModelStatisticsRequest(name=self.name), timeout=_ASK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as problem:
            raise self._error(problem) from None
        versions = answer.model_stats
        times = [one.inference_stats for one in versions]
        return Statistics(
            inferences=sum(one.inference_count for one in versions),
            executions=sum(one.execution_count for one in versions),
            requests=sum(one.success.count for one in times),
            queue_ns=sum(one.queue.ns for one in times),
            compute_ns=sum(
                one.compute_input.ns + one.compute_infer.ns + one.compute_output.ns for one in times
            ),
        )

    def _request(self, images: NDArray[np.uint8]) -> bytes:
        """A serialized ModelInferRequest: its head, made once a shape, and the pixels, copied once."""
        head = self._heads.get(images.shape)
        if head is None:
            message = service_pb2.ModelInferRequest(model_name=self.name)
            message.inputs.add(name="images", datatype="UINT8", shape=images.shape)
            for name in ("boxes", "count"):
                message.outputs.add(name=name)
            head = message.SerializeToString() + _RAW_INPUT_TAG + _varint(images.nbytes)
            self._heads[images.shape] = head
        return b"".join((head, np.ascontiguousarray(images).data))

    def _shared_request(self, images: NDArray[np.uint8], slots: Slots, slot: int) -> bytes:
        """A serialized ModelInferRequest that says where the pixels are."""
        message = service_pb2.ModelInferRequest(model_name=self.name)
        tensor = message.inputs.add(name="images", datatype="UINT8", shape=images.shape)
        tensor.parameters["shared_memory_region"].string_param = slots.region
        tensor.parameters["shared_memory_byte_size"].int64_param = images.nbytes
        tensor.parameters["shared_memory_offset"].int64_param = slot * slots.slot_bytes
        for name in ("boxes", "count"):
            message.outputs.add(name=name)
        return bytes(message.SerializeToString())

    @property
    def stub(self) -> Any:
        """Triton's other calls, on the same channel."""
        return self._stub

    @property
    def shares(self) -> bool:
        """Whether pictures travel through shared memory."""
        return self._slots is not None

    async def share(self) -> None:
        """Set shared memory up, if it is wanted and works; the wire works in any case."""
        if self._slots is not None or not self._wanted_slots or self._registering:
            return
        self._registering = True
        try:
            size = self._height * self._width * 3
            self._slots = await Slots.register(self._stub, self._wanted_slots, size)
        except (OSError, grpc.aio.AioRpcError) as problem:
            reason = problem.details() if isinstance(problem, grpc.aio.AioRpcError) else str(problem)
            _log.info("triton_no_shared_memory", server=self.url, reason=reason)
            self._slots = None
        finally:
            self._registering = False

    @staticmethod
    def _lost_shared_memory(problem: grpc.aio.AioRpcError) -> bool:
        return "shared memory region" in (problem.details() or "").lower()

    def _answer(self, response: Any, images: int) -> Answer:
        raw = dict(
            zip((output.name for output in response.outputs), response.raw_output_contents, strict=False)
        )
        try:
            boxes = np.frombuffer(raw["boxes"], np.float32).reshape(images, -1, 6)
            count = np.frombuffer(raw["count"], np.int32).reshape(images)
        except (KeyError, ValueError):
            raise ModelMismatch(f"model {self.name} at {self.url} answered in another form") from None
        return Answer(boxes, count)

    def _error(self, problem: grpc.aio.AioRpcError) -> EyelineError:
        """Our error for a gRPC status."""
        details = " ".join((problem.details() or "").split())
        said = f"Triton at {self.url}: {details or problem.code().name}"
        match problem.code():
            # Of a model that is there and not served now: the server stops, or changes its version.
            case _ if "no available versions" in details:
                return TritonUnavailable(said)
            case grpc.StatusCode.NOT_FOUND:
                return self._missing(details)
            case grpc.StatusCode.INVALID_ARGUMENT if "unknown model" in details:
                return self._missing(details)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED:
                return InferenceFailed(said)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return TritonTooSlow(f"Triton at {self.url} did not answer in time")
            case _ if "timeout expired" in details.lower():
                return TritonTooSlow(said)
            case _ if _DETERMINISTIC in details:
                return InferenceFailed(said)
            case _:
                return TritonUnavailable(said)

    def _missing(self, details: str) -> EyelineError:
        return ModelMissing(f"Triton at {self.url} does not serve model {self.name} ({details})")

    def _check_contract(self, metadata: Any) -> None:
        """Raises `ModelMismatch` naming the first tensor that differs."""
        served = {
            tensor.name: (tensor.datatype, list(tensor.shape))
            for tensor in (*metadata.inputs, *metadata.outputs)
        }
        contract: dict[str, tuple[str, list[list[int | None]]]] = {
            "images": ("UINT8", [[-1, self._height, self._width, 3]]),
            "boxes": ("FP32", [[-1, None, 6]]),
            # TensorRT gives [B]; for ONNX Runtime the configuration adds a dimension of one.
            "count": ("INT32", [[-1, 1], [-1]]),
        }
        for name, (datatype, shapes) in contract.items():
            found = served.get(name)
            if found is None or found[0] != datatype or not any(_fits(found[1], shape) for shape in shapes):
                actual = "no such tensor" if found is None else f"{found[0]} {found[1]}"
                raise ModelMismatch(
                    f"Triton at {self.url} serves another model as {self.name}: {name} must be {datatype} "
                    f"{_readable(shapes[0])}, and is {actual}"
                )


def _queue_timeout(timeout_s: float) -> bytes:
    """Field 4 of ModelInferRequest: Triton gives a request up that has waited so long for its turn."""
    message = service_pb2.ModelInferRequest()
    message.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    return bytes(message.SerializeToString())


def _is_local(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    return host in {"localhost", "::1"} or host.startswith("127.")


def _fits(shape: list[int], wanted: list[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size == want for size, want in zip(shape, wanted, strict=True) if want is not None
    )


def _readable(shape: list[int | None]) -> str:
    return "[" + ", ".join("K" if size is None else "B" if size == -1 else str(size) for size in shape) + "]"


def _varint(number: int) -> bytes:
    """Protobuf's base-128 encoding."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
