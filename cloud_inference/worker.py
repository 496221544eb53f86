"""The worker process: connects, waits for what it needs, and answers the cameras it owns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import threading
from concurrent.futures import Executor, ThreadPoolExecutor

import structlog

from cloud_inference import streams, traces
from cloud_inference.calibrator import Calibrator
from cloud_inference.camera import Camera
from cloud_inference.config import CloudSettings, TenantSettings
from cloud_inference.connecting import connect
from cloud_inference.drawings import Drawings
from cloud_inference.infer import Inference
from cloud_inference.metrics import HUB_ANSWERS, INFERENCE_READY
from cloud_inference.ownership import Ownership
from cloud_inference.rollout.router import Arm, Router
from cloud_inference.shares import Bus, Shared
from cloud_inference.track import Tracks
from cloud_inference.triton_pool import TritonPool
from eyeline.errors import BusError
from eyeline.health import HealthServer
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard

_log = structlog.get_logger()

_RETRY_S = 0.5


async def run(settings: CloudSettings) -> None:
    """Answer cameras until cancelled; raises `EyelineError` for what only a person can mend."""
    card = catalogue.load(settings.triton.model)
    spans = traces.load(settings.traces)
    worker = f"{socket.gethostname().replace('.', '-')}-{os.getpid()}-{secrets.token_hex(3)}"
    ready = _Ready(len(settings.hub.tenants))
    health = HealthServer(
        settings.http.host,
        settings.http.worker_port,
        healthy=lambda: (True, "alive"),
        ready=ready.state,
        setting="http.worker_port",
    )
    health.start()
    try:
        async with TritonPool(settings.triton.url, card, timeout_s=settings.triton.timeout_s) as model:
            await model.wait_ready()
            ready.model = True
            INFERENCE_READY.set(1)
            with (
                ThreadPoolExecutor(settings.worker.decode_threads, "decode") as executor,
                ThreadPoolExecutor(1, "calibrate", initializer=_step_back) as calibration,
            ):
                shared = Shared(
                    worker=worker,
                    inference=Inference(model, most=settings.worker.max_in_flight_total),
                    card=card,
                    tracks=Tracks(),
                    executor=executor,
                    max_in_flight=settings.worker.max_in_flight,
                    propagate=settings.worker.propagate,
                    traces=spans,
                )
                scoring = (asyncio.Lock(), calibration) if settings.worker.calibrate else None
                async with asyncio.TaskGroup() as group:
                    for tenant in settings.hub.tenants:
                        group.create_task(_serve(settings, tenant, shared, ready, scoring))
    finally:
        health.stop()
        if spans is not None:
            spans.close()


class _Ready:
    def __init__(self, tenants: int) -> None:
        self.model = False
        self.waiting_tenants = tenants

    def state(self) -> tuple[bool, str]:
        if not self.model:
            return False, "waiting for the inference server"
        if self.waiting_tenants:
            return False, "waiting for the hub"
        return True, "ready"


def _step_back() -> None:
    """Give the calling thread a low priority: on Linux each has its own."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


async def _serve(
    settings: CloudSettings,
    tenant: TenantSettings,
    shared: Shared,
    ready: _Ready,
    scoring: tuple[asyncio.Lock, Executor] | None,
) -> None:
    """One tenant's cameras, and their calibration with what `scoring` gives it; None for none."""
    HUB_ANSWERS.labels(tenant.name).set(0)
    connection = await connect(settings.hub, tenant, f"worker {shared.worker}")
    background: set[asyncio.Task[None]] = set()
    try:
        js = connection.jetstream(timeout=2)
        tenant_bus = Bus(tenant.name, connection, js, settings.hub.streams_of(tenant).pixels_keep_s)
        drawings = Drawings(connection, js)
        ownership = Ownership(
            tenant_bus,
            shared.worker,
            lease_s=settings.worker.lease_s,
            work=lambda site, camera: Camera(shared, tenant_bus, site, camera, drawings).run(),
        )

        def another(card: ModelCard) -> TritonPool:
            return TritonPool(settings.triton.url, card, timeout_s=settings.triton.timeout_s)

        default = Arm.of(shared.card, shared.inference)
        router = shared.routers[tenant.name] = Router(tenant_bus, shared.worker, default, another)
        said = waiting = True
        while True:
            try:
                await streams.ensure(js, settings.hub.streams_of(tenant))
                if waiting:
                    waiting = False
                    ready.waiting_tenants -= 1
                    _log.info("worker_ready", tenant=tenant.name, worker=shared.worker)
                    background.add(asyncio.create_task(drawings.run()))
                    if scoring is not None:
                        calibrator = Calibrator(
                            tenant_bus,
                            lambda: (router.stable.card, router.stable.inference),
                            *scoring,
                            propagate=shared.propagate,
                            owns=ownership.owns,
                        )
                        background.add(asyncio.create_task(calibrator.run()))
                async with asyncio.TaskGroup() as group:
                    group.create_task(router.run())
                    await router.loaded.wait()
                    group.create_task(ownership.run())
            except* BusError as problems:
                HUB_ANSWERS.labels(tenant.name).set(0)
                problem: Exception = problems
                while isinstance(problem, ExceptionGroup):
                    problem = problem.exceptions[0]
                if isinstance(problem, BusError) and not problem.retryable:
                    raise problem from None
                if said:
                    said = False
                    _log.warning("hub_not_ready", tenant=tenant.name, reason=str(problem))
            await asyncio.sleep(_RETRY_S)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await connection.close()
