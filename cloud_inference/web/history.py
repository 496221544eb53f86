"""What the page asks for once: stored results for the timeline, kept pictures, drawing, Triton's batches."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

import grpc
from aiohttp import web
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cloud_inference.web import forms
from cloud_inference.web.auth import Door, Visitor
from cloud_inference.web.live import Lives, picture_form
from cloud_inference.web.state import Sessions
from eyeline.errors import ApiError, BusError, EyelineError
from eyeline.v1 import device_pb2, result_pb2

# Of one answer to a browser.
_MOST_RESULTS: Final = 3_000
_MOST_COUNTED: Final = 40_000
_MOST_BUCKETS: Final = 600
_LONGEST_MS: Final = 24 * 3_600_000
_TRITON_S: Final = 2.0

_STATUS: Final = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
}


class History:
    """Handlers of `/api/…`. triton: its gRPC address; shared_triton: whether other tenants use it too."""

    def __init__(
        self, door: Door, sessions: Sessions, lives: Lives, *, triton: str, shared_triton: bool
    ) -> None:
        self._door, self._sessions, self._lives = door, sessions, lives
        self._triton, self._shared_triton = triton, shared_triton

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.get("/api/results", self.results),
            web.get("/api/timeline", self.timeline),
            web.get("/api/picture", self.picture),
            web.put("/api/drawing", self.draw),
            web.get("/api/triton", self.triton),
        ]

    async def results(self, request: web.Request) -> web.Response:
        """Stored results of one camera in a short time."""
        visitor, site, camera = self._camera(request)
        from_ms, to_ms = _span(request)
        client = self._sessions.get(visitor.token).client
        found: list[dict[str, Any]] = []
        with _mapped():
            async for result in client.history(site, camera, int(from_ms * 1e6), int(to_ms * 1e6)):
                found.append(forms.result_form(result.proto))
                if len(found) >= _MOST_RESULTS:
                    break
        return _answer({"results": found, "complete": len(found) < _MOST_RESULTS})

    async def timeline(self, request: web.Request) -> web.Response:
        """Stored results of one camera, counted: frames by provenance, objects, for each piece."""
        visitor, site, camera = self._camera(request)
        from_ms, to_ms = _span(request)
        pieces = min(int(_number(request, "pieces")), _MOST_BUCKETS)
        if pieces < 1:
            raise web.HTTPBadRequest(text="pieces must be 1 or more")
        counted = _Counted(from_ms, to_ms, pieces)
        client = self._sessions.get(visitor.token).client
        with _mapped():
            history = client.history(site, camera, int(from_ms * 1e6), int(to_ms * 1e6), page_size=1000)
            async for result in history:
                counted.add(result.proto)
                if counted.results >= _MOST_COUNTED:
                    break
        return _answer(counted.form())

    async def picture(self, request: web.Request) -> web.Response:
        """The newest picture up to a frame, its header says of which, and where it lies; 204: not kept."""
        visitor, site, camera = self._camera(request)
        try:
            await self._lives.looks(visitor.grant, f"{site}/{camera}")
        except BusError as problem:
            raise web.HTTPServiceUnavailable(text=str(problem)) from None
        live = self._lives.get(visitor.grant.tenant, f"{site}/{camera}")
        found = None
        if live is not None:
            try:
                found = await live.picture(request.query.get("epoch", ""), int(_number(request, "sequence")))
            except TimeoutError:
                raise web.HTTPServiceUnavailable(text="the hub does not answer; try again") from None
        if found is None:
            return web.Response(status=204)
        unit, data = found
        kind = "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"
        shown = {"sequence": unit.access_unit.sequence, "format": picture_form(unit.format)}
        headers = {"Eyeline-Picture": json.dumps(shown, separators=(",", ":"))}
        return web.Response(body=data, content_type=kind, headers=headers)

    async def draw(self, request: web.Request) -> web.Response:
        """Replace what is drawn on a camera's picture."""
        visitor, site, camera = self._camera(request)
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send JSON")
        try:
            body = json.loads(await request.text())
            device, revision = str(body["device"]), int(body["revision"])
            wanted = device_pb2.DesiredCamera(camera=camera)
            forms.drawing(body["drawing"], wanted)
        except (ValueError, KeyError, TypeError) as problem:
            raise web.HTTPBadRequest(text=f"this is no drawing: {problem}") from None
        session = self._sessions.get(visitor.token)
        with _mapped():
            known = await session.client.device(site, device)
            if known.desired.revision != revision:
                raise web.HTTPConflict(text="somebody else has changed it meanwhile: look again, then save")
            cameras = []
            for one in known.desired.cameras:
                if one.camera == camera:  # its other settings stay
                    forms.drawing(body["drawing"], one)
                    wanted = one
                else:
                    cameras.append(one)
            stored = await session.client.set_desired(
                site, device, [*cameras, wanted], expected_revision=revision
            )
        session.refresh()
        return _answer({"revision": stored.revision})

    async def triton(self, request: web.Request) -> web.Response:
        """How large Triton's batches are: nobody else's business where tenants share it."""
        visitor = self._door.visitor(request)
        if self._shared_triton or not visitor.grant.everywhere:
            return _answer({"models": None})
        try:
            async with grpc.aio.insecure_channel(self._triton) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                said = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=_TRITON_S)
        except (grpc.RpcError, DecodeError, TimeoutError):
            return _answer({"models": []})
        return _answer({"models": [_model_form(model) for model in said.model_stats]})

    def _camera(self, request: web.Request) -> tuple[Visitor, str, str]:
        """Who asks about which camera; raises 403 for one that is not theirs, whether there is one or not."""
        visitor = self._door.visitor(request)
        try:
            site, camera = forms.camera_name(request.query.get("camera", ""))
        except ValueError as problem:
            raise web.HTTPBadRequest(text=str(problem)) from None
        if not visitor.grant.covers(site, camera):
            raise web.HTTPForbidden(text="your token does not cover this camera")
        return visitor, site, camera


class _Counted:
    """Results by pieces of time."""

    def __init__(self, from_ms: float, to_ms: float, pieces: int) -> None:
        self._from_ms, self._step_ms = from_ms, (to_ms - from_ms) / pieces
        self._frames = [dict.fromkeys(("cloud", "edge", "propagated", "degraded"), 0) for _ in range(pieces)]
        self._objects = [0] * pieces
        self._events = [0] * pieces
        self.results = 0

    def add(self, result: result_pb2.Result) -> None:
        """Frames of a range count where they were captured, evenly spaced."""
        self.results += 1
        name = result_pb2.Provenance.Name(result.provenance).removeprefix("PROVENANCE_").lower()
        first = result.times.captured_ns / 1e6
        last = max(first, result.last_captured_ns / 1e6)
        low, high = self._piece(first), self._piece(last)
        frames = max(1, result.last_sequence - result.key.sequence + 1)
        for piece in range(low, high + 1):
            self._frames[piece][name if name in self._frames[piece] else "degraded"] += max(
                1, frames // (high - low + 1)
            )
            self._objects[piece] = max(self._objects[piece], len(result.detections))
        self._events[high] += sum(it.entered for it in result.zones)
        self._events[high] += sum(it.forward + it.backward for it in result.lines)

    def _piece(self, when_ms: float) -> int:
        return min(max(int((when_ms - self._from_ms) / self._step_ms), 0), len(self._frames) - 1)

    def form(self) -> dict[str, Any]:
        """For the page."""
        return {
            "pieces": [
                {**frames, "objects": objects, "events": events}
                for frames, objects, events in zip(self._frames, self._objects, self._events, strict=True)
            ],
            "complete": self.results < _MOST_COUNTED,
            "now": time.time() * 1e3,
        }


def _model_form(model: Any) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "inferences": model.inference_count,
        "executions": model.execution_count,
        "batches": {str(one.batch_size): one.compute_infer.count for one in model.batch_stats},
        "compute": [model.inference_stats.compute_infer.count, model.inference_stats.compute_infer.ns / 1e6],
        "queue": [model.inference_stats.queue.count, model.inference_stats.queue.ns / 1e6],
    }


class _mapped:  # noqa: N801  # a context manager, named as it is read
    """What the API refuses, as HTTP."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, asyncio.CancelledError) or not isinstance(problem, EyelineError):
            return
        status = _STATUS.get(problem.status, 503) if isinstance(problem, ApiError) else 400
        line = (problem.server_message if isinstance(problem, ApiError) else "") or str(problem)
        answers: dict[int, type[web.HTTPException]] = {
            400: web.HTTPBadRequest,
            401: web.HTTPUnauthorized,
            403: web.HTTPForbidden,
            404: web.HTTPNotFound,
            409: web.HTTPConflict,
            429: web.HTTPTooManyRequests,
            503: web.HTTPServiceUnavailable,
        }
        raise answers[status](text=line) from None


def _span(request: web.Request) -> tuple[float, float]:
    from_ms, to_ms = _number(request, "from"), _number(request, "to")
    if not 0 <= from_ms < to_ms <= from_ms + _LONGEST_MS:
        raise web.HTTPBadRequest(text="to must be later than from, by 24 hours at most")
    return from_ms, to_ms


def _number(request: web.Request, name: str) -> float:
    try:
        value = float(request.query[name])
    except (KeyError, ValueError):
        raise web.HTTPBadRequest(text=f"{name} must be a number") from None
    if not 0 <= value < 2**53:
        raise web.HTTPBadRequest(text=f"{name} must be 0 or more, and below 2^53")
    return value


def _answer(content: dict[str, Any]) -> web.Response:
    return web.json_response(content, dumps=lambda it: json.dumps(it, separators=(",", ":")))
