"""The `System` service: how the cloud side is, as far as the caller may know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.js.errors import APIError, NotFoundError

from cloud_inference.access import Grant
from cloud_inference.api.auth import Authenticator
from cloud_inference.api.errors import unary
from cloud_inference.api.tenants import TenantHub, Tenants
from eyeline import subjects
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.errors import EyelineError
from eyeline.release import version
from eyeline.v1 import detection_pb2, result_pb2, system_pb2, system_pb2_grpc
from eyeline_models.catalogue import ModelCard

# The inference server is asked so often at most, and waited for so long.
_ASK_EVERY_S = 1.0
_ASK_S = 2.0

Check = Callable[[], Awaitable[None]]


class SystemService(system_pb2_grpc.SystemServicer):
    """Tells who the caller is, which workers there are, and whether the model is."""

    def __init__(self, tenants: Tenants, auth: Authenticator, card: ModelCard, check: Check | None) -> None:
        """check: raises `EyelineError` when the inference server is not ready; None: there is none to ask."""
        self._tenants, self._auth, self._card, self._check = tenants, auth, card, check
        self._asked_s = float("-inf")
        self._problem = ""
        self._asking = asyncio.Lock()

    @unary
    async def GetSystem(  # noqa: N802
        self, request: system_pb2.GetSystemRequest, context: Any
    ) -> system_pb2.GetSystemResponse:
        """The state now."""
        del request
        caller = self._auth.caller(context, "read")
        hub = self._tenants.hub(caller.tenant)
        response = system_pb2.GetSystemResponse(
            version=version(),
            schema_major=SCHEMA_MAJOR,
            now_ns=time.time_ns(),
            caller=system_pb2.Caller(
                tenant=caller.tenant,
                cameras=["/".join(pattern) for pattern in caller.cameras],
                methods=sorted(caller.methods),
                expires_ns=int((caller.expires_s or 0) * 1e9),
            ),
            workers=await _workers(hub, caller),
            inference=await self._inference(),
        )
        if caller.everywhere:
            response.hub.CopyFrom(
                system_pb2.HubHealth(
                    frames=await _stream(hub, subjects.FRAMES),
                    results=await _stream(hub, subjects.RESULTS),
                    dead=await _stream(hub, subjects.DEAD),
                )
            )
        return response

    async def _inference(self) -> system_pb2.InferenceHealth:
        async with self._asking:
            if self._check is not None and time.monotonic() - self._asked_s > _ASK_EVERY_S:
                try:
                    async with asyncio.timeout(_ASK_S):
                        await self._check()
                except TimeoutError:
                    self._problem = "it does not answer in time"
                except EyelineError as problem:
                    self._problem = str(problem)
                else:
                    self._problem = ""
                self._asked_s = time.monotonic()
        model = detection_pb2.ModelRef(
            name=self._card.name, version=str(self._card.version), sha256=self._card.sha256
        )
        return system_pb2.InferenceHealth(model=model, ready=not self._problem, problem=self._problem)


async def _workers(hub: TenantHub, caller: Grant) -> list[system_pb2.WorkerHealth]:
    """The workers that serve this tenant, with those of the caller's cameras that each holds."""
    found: dict[str, system_pb2.WorkerHealth] = {}
    for name, _, heard_ns in await _bucket(hub, subjects.WORKERS):
        found[name] = system_pb2.WorkerHealth(worker=name, heard_ns=heard_ns)
    for key, holder, _ in await _bucket(hub, subjects.LEASES):
        site, _, camera = key.partition(".")
        if holder in found and caller.covers(site, camera):
            found[holder].cameras.append(result_pb2.CameraRef(site=site, camera=camera))
    return [found[name] for name in sorted(found)]


async def _bucket(hub: TenantHub, bucket: str) -> list[tuple[str, str, int]]:
    """Key, value and time written (nanoseconds) of each entry; read in one pass."""
    prefix = f"$KV.{bucket}."
    info = await hub.js.stream_info(f"KV_{bucket}", subjects_filter=f"{prefix}>")
    entries = []
    for subject in sorted(info.state.subjects or {}):
        try:
            stored = await hub.js.get_last_msg(f"KV_{bucket}", subject, direct=True)
        except NotFoundError:
            continue
        if (stored.headers or {}).get("KV-Operation"):
            continue
        written_ns = int(stored.time.timestamp() * 1e9) if stored.time is not None else 0
        value = (stored.data or b"").decode(errors="replace")
        entries.append((subject.removeprefix(prefix), value, written_ns))
    return entries


async def _stream(hub: TenantHub, name: str) -> system_pb2.StreamHealth:
    info = await hub.js.stream_info(name)
    health = system_pb2.StreamHealth(
        messages=info.state.messages,
        bytes=info.state.bytes,
        limit_bytes=max(0, info.config.max_bytes or 0),
    )
    if info.state.messages:
        try:
            oldest = await hub.js.get_msg(name, info.state.first_seq)
        except (NotFoundError, APIError, nats.errors.Error):
            return health  # purged meanwhile
        health.oldest_ns = int(oldest.time.timestamp() * 1e9) if oldest.time is not None else 0
    return health
