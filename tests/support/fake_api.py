"""The gRPC services with nothing behind them: a real server on a free port, answers and faults scripted.

Results are kept in a list; the token of the result at index i is "t{i}". `oldest` cuts it as retention does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from eyeline.v1 import (
    detection_pb2,
    device_pb2,
    device_pb2_grpc,
    frame_pb2,
    inference_pb2,
    inference_pb2_grpc,
    result_pb2,
    result_pb2_grpc,
)

START_NS = 1_760_000_000_000_000_000
SECOND_NS = 1_000_000_000


def made_result(
    sequence: int, camera: str = "gate", *, site: str = "yard", **fields: Any
) -> result_pb2.Result:
    """A stored result with one person in it, one second after the result of the sequence before."""
    captured_ns = START_NS + sequence * SECOND_NS
    defaults: dict[str, Any] = {
        "last_sequence": sequence,
        "final": True,
        "provenance": result_pb2.PROVENANCE_CLOUD,
        "model": detection_pb2.ModelRef(name="centernet-mobilenetv3", version="1"),
        "detections": [
            detection_pb2.Detection(
                class_id=0,
                class_name="person",
                score=0.75,
                box=detection_pb2.Box(x1_px=10, y1_px=20, x2_px=30, y2_px=60),
                track_id=7,
            )
        ],
        "times": result_pb2.StageTimes(captured_ns=captured_ns, answered_ns=captured_ns + 80_000_000),
        "source_width_px": 768,
        "source_height_px": 576,
        "device": "box1",
    }
    key = result_pb2.FrameKey(
        tenant="acme",
        site=site,
        camera=camera,
        epoch=frame_pb2.Epoch(counter=3, random_id=b"\x01" * 8),
        sequence=sequence,
    )
    return result_pb2.Result(key=key, **{**defaults, **fields})


@dataclass(frozen=True, slots=True)
class Fault:
    """How the next call of a method ends; a subscription gets `after` results first."""

    code: StatusCode
    message: str = "scripted"
    detail: Message | None = None
    after: int = 0


@dataclass(slots=True)
class FakeApi:
    """The three services. `calls` lists every request with its method; `token` makes callers need one."""

    token: str | None = None
    stands_with_token: bool = True
    results: list[result_pb2.Result] = field(default_factory=list)
    oldest: int = 0
    devices: dict[tuple[str, str], device_pb2.Device] = field(default_factory=dict)
    answer: inference_pb2.DetectResponse = field(default_factory=inference_pb2.DetectResponse)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    deadlines_s: list[float | None] = field(default_factory=list)
    hanging: set[str] = field(default_factory=set)
    # Results of one response of a subscription.
    batch: int = 2
    page: int = 2
    subscribers: int = 0
    port: int = 0
    credentials: grpc.ServerCredentials | None = None
    _faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        result_pb2_grpc.add_ResultsServicer_to_server(_Results(self), self._server)
        inference_pb2_grpc.add_InferenceServicer_to_server(_Inference(self), self._server)
        device_pb2_grpc.add_DevicesServicer_to_server(_Devices(self), self._server)
        if self.credentials is None:
            self.port = self._server.add_insecure_port(self.address)
        else:
            self.port = self._server.add_secure_port(self.address, self.credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Cut every connection and stop listening."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    def store(self, *results: result_pb2.Result) -> None:
        """Append results, which every subscription hears of."""
        for result in results:
            result.resume_token = f"t{len(self.results)}"
            self.results.append(result)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def fail(self, method: str, *faults: Fault) -> None:
        """End the next calls of a method, such as "Subscribe", so."""
        self._faults[method].extend(faults)

    def asked(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [request for name, request in self.calls if name == method]

    async def enter(self, method: str, request: Message, context: Any) -> Fault | None:
        """What every call does first; returns a fault that is to come later."""
        kept = type(request)()
        kept.CopyFrom(request)
        self.calls.append((method, kept))
        self.deadlines_s.append(context.time_remaining())
        given = dict(context.invocation_metadata() or ()).get("authorization")
        if self.token is not None and given != f"Bearer {self.token}":
            await end(context, Fault(StatusCode.UNAUTHENTICATED, "this token is not known"))
        if method in self.hanging:
            await asyncio.Event().wait()
        fault = self._faults[method].popleft() if self._faults[method] else None
        if fault is not None and fault.after == 0:
            await end(context, fault)
        return fault


async def end(context: Any, fault: Fault) -> None:
    """End a call with a status and its detail."""
    status = status_pb2.Status(code=fault.code.value[0], message=fault.message)
    if fault.detail is not None:
        packed = any_pb2.Any()
        packed.Pack(fault.detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))


@contextlib.asynccontextmanager
async def running_fake_api(**fields: Any) -> AsyncIterator[FakeApi]:
    """A fake API that listens."""
    api = FakeApi(**fields)
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


class _Results(result_pb2_grpc.ResultsServicer):
    def __init__(self, api: FakeApi) -> None:
        self._api = api

    async def Subscribe(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        api = self._api
        fault = await api.enter("Subscribe", request, context)
        position = await self._start(request, context)
        stood = result_pb2.SubscribeResponse()
        if api.stands_with_token:
            stood.resume_token = f"t{position - 1}"
        api.subscribers += 1
        try:
            yield stood
            sent = 0
            while True:
                changed = api._changed
                chosen: list[result_pb2.Result] = []
                while position < len(api.results) and len(chosen) < api.batch:
                    if _wanted(api.results[position], request):
                        chosen.append(api.results[position])
                    position += 1
                    if fault is not None and sent + len(chosen) == fault.after:
                        break
                if chosen:
                    yield result_pb2.SubscribeResponse(results=chosen)
                    sent += len(chosen)
                if fault is not None and sent >= fault.after:
                    if fault.code is StatusCode.OK:
                        return
                    await end(context, fault)
                if position >= len(api.results):
                    await changed.wait()
        finally:
            api.subscribers -= 1

    async def _start(self, request: Any, context: Any) -> int:
        api = self._api
        match request.WhichOneof("from"):
            case "resume_token":
                if not request.resume_token.removeprefix("t").removeprefix("-").isdecimal():
                    await end(context, Fault(StatusCode.INVALID_ARGUMENT, "this is no resume token of ours"))
                position = int(request.resume_token.removeprefix("t")) + 1
                if position < api.oldest:
                    gap = result_pb2.ResumeGap(
                        token_time_ns=_stored_ns(api.results[max(position - 1, 0)]),
                        oldest_time_ns=_stored_ns(api.results[api.oldest]),
                        missing_messages=api.oldest - position,
                    )
                    await end(context, Fault(StatusCode.OUT_OF_RANGE, "no longer kept", gap))
                return position
            case "from_time_ns":
                kept = range(api.oldest, len(api.results))
                later = (i for i in kept if _stored_ns(api.results[i]) >= request.from_time_ns)
                return next(later, len(api.results))
            case _:
                return len(api.results)

    async def GetLatest(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._api.enter("GetLatest", request, context)
        newest: dict[tuple[str, str], result_pb2.Result] = {}
        for result in self._api.results:
            if _wanted(result, request):
                newest[result.key.site, result.key.camera] = result
        return result_pb2.GetLatestResponse(results=newest.values())

    async def ListResults(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._api.enter("ListResults", request, context)
        until = request.to_time_ns or 2**63
        found = [
            result
            for result in self._api.results
            if (result.key.site, result.key.camera) == (request.camera.site, request.camera.camera)
            and request.from_time_ns <= result.times.captured_ns < until
        ]
        start = int(request.page_token or 0)
        end_ = start + min(self._api.page, request.page_size or 100)
        return result_pb2.ListResultsResponse(
            results=found[start:end_], next_page_token=str(end_) if end_ < len(found) else ""
        )


class _Inference(inference_pb2_grpc.InferenceServicer):
    def __init__(self, api: FakeApi) -> None:
        self._api = api

    async def Detect(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._api.enter("Detect", request, context)
        return self._api.answer


class _Devices(device_pb2_grpc.DevicesServicer):
    def __init__(self, api: FakeApi) -> None:
        self._api = api

    async def ListDevices(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._api.enter("ListDevices", request, context)
        found = list(self._api.devices.values())
        start = int(request.page_token or 0)
        end_ = start + self._api.page
        return device_pb2.ListDevicesResponse(
            devices=found[start:end_], next_page_token=str(end_) if end_ < len(found) else ""
        )

    async def GetDevice(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._api.enter("GetDevice", request, context)
        return device_pb2.GetDeviceResponse(device=await self._device(request, context))

    async def SetDesiredConfig(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._api.enter("SetDesiredConfig", request, context)
        device = await self._device(request, context)
        if request.expected_revision not in {0, device.desired.revision}:
            await end(context, Fault(StatusCode.ABORTED, f"revision {device.desired.revision} is in force"))
        revision = device.desired.revision + 1
        device.desired.CopyFrom(request.desired)
        device.desired.revision = revision
        return device_pb2.SetDesiredConfigResponse(desired=device.desired)

    async def _device(self, request: Any, context: Any) -> Any:
        device = self._api.devices.get((request.site, request.device))
        if device is None:
            await end(context, Fault(StatusCode.NOT_FOUND, f"no device {request.site}/{request.device}"))
        return device


def _stored_ns(result: result_pb2.Result) -> int:
    return result.times.answered_ns


def _wanted(result: result_pb2.Result, request: Any) -> bool:
    cameras = {(camera.site, camera.camera) for camera in request.cameras}
    final_only = getattr(request, "final_only", False)
    return (not cameras or (result.key.site, result.key.camera) in cameras) and (
        result.final or not final_only
    )
