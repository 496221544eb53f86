"""The API process: a gRPC server over the hub and the inference server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from cloud_inference import streams, traces
from cloud_inference.api.auth import Authenticator
from cloud_inference.api.devices import DevicesService
from cloud_inference.api.inference import InferenceService
from cloud_inference.api.limits import Limits
from cloud_inference.api.results import ResultsService
from cloud_inference.api.stills import StillsService
from cloud_inference.api.system import SystemService
from cloud_inference.api.tenants import TenantHub, Tenants
from cloud_inference.config import ApiSettings, CloudSettings, TenantSettings, is_loopback
from cloud_inference.connecting import connect
from cloud_inference.infer import Model
from cloud_inference.stills import Stills
from cloud_inference.triton_pool import TritonPool
from eyeline.errors import BusError, ConfigError, EyelineError
from eyeline.health import HealthServer
from eyeline.v1 import (
    device_pb2,
    device_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    result_pb2,
    result_pb2_grpc,
    still_pb2,
    still_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard

_log = structlog.get_logger()

SERVICES = (
    result_pb2.DESCRIPTOR.services_by_name["Results"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
    device_pb2.DESCRIPTOR.services_by_name["Devices"].full_name,
    still_pb2.DESCRIPTOR.services_by_name["Stills"].full_name,
    system_pb2.DESCRIPTOR.services_by_name["System"].full_name,
)
_GRACE_S = 5.0
_RETRY_S = 0.5
# Of one connection, beside its subscriptions.
_OTHER_CALLS = 100
# The largest image, and what the message around it needs.
_MESSAGE_SLACK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Serving:
    """A running API: where it listens, and the tenants' connections."""

    address: str
    tenants: Tenants


async def run(settings: CloudSettings) -> None:
    """Serve until cancelled; raises `EyelineError` for what only a person can mend."""
    card = catalogue.load(settings.triton.model)
    try:
        async with (
            TritonPool(settings.triton.url, card, timeout_s=settings.triton.timeout_s) as model,
            serve(settings, model, card) as serving,
        ):
            health = HealthServer(
                settings.http.host,
                settings.http.api_port,
                healthy=lambda: (True, "alive"),
                ready=lambda: _ready(serving.tenants, settings),
                setting="http.api_port",
            )
            health.start()
            try:
                await asyncio.Event().wait()
            finally:
                health.stop()
    except* EyelineError as problems:
        raise problems.exceptions[0] from None


def _ready(tenants: Tenants, settings: CloudSettings) -> tuple[bool, str]:
    up = sum(hub.ready and hub.connection.is_connected for hub in tenants.hubs.values())
    return (True, "ready") if up == len(settings.hub.tenants) else (False, "waiting for the hub")


@contextlib.asynccontextmanager
async def serve(settings: CloudSettings, model: Model, card: ModelCard) -> AsyncIterator[Serving]:
    """Listen at once, answer UNAVAILABLE until the hub is there, and stop gracefully on leaving.

    Raises `ConfigError` when the port is taken, and `BusError` when the hub refuses our credentials.
    """
    tenants = Tenants()
    spans = traces.load(settings.traces)
    limits = Limits(settings.api, len(settings.hub.tenants))
    auth = Authenticator(settings.api, [tenant.name for tenant in settings.hub.tenants], limits)
    credentials = _credentials(settings.api)
    if auth.open and not is_loopback(settings.api.host):
        raise ConfigError(
            f"api.host {settings.api.host} would serve everybody: set api.token_keys or api.client_ca, "
            "or listen on 127.0.0.1"
        )
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.api.max_image_bytes + _MESSAGE_SLACK_BYTES),
            ("grpc.max_concurrent_streams", settings.api.max_streams + _OTHER_CALLS),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.so_reuseport", 0),
        ]
    )
    results = ResultsService(tenants, auth, limits, spans)
    result_pb2_grpc.add_ResultsServicer_to_server(results, server)
    inference_pb2_grpc.add_InferenceServicer_to_server(
        InferenceService(model, card, auth, max_image_bytes=settings.api.max_image_bytes), server
    )
    device_pb2_grpc.add_DevicesServicer_to_server(DevicesService(tenants, auth), server)
    stills = Stills()
    still_pb2_grpc.add_StillsServicer_to_server(StillsService(tenants, auth, stills), server)
    check = model.check if isinstance(model, TritonPool) else None
    system_pb2_grpc.add_SystemServicer_to_server(SystemService(tenants, auth, card, check), server)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection(
        [*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME],
        server,
    )
    try:
        # gRPC would write a line of its own about a port that is taken.
        _try_port(settings.api.host.strip("[]"), settings.api.port)
        address = f"{settings.api.host}:{settings.api.port}"
        if credentials is not None:
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except (OSError, RuntimeError):
        raise ConfigError(
            f"api.port {settings.api.port} on {settings.api.host} cannot be used: choose another, or 0"
        ) from None
    await server.start()
    address = f"{settings.api.host}:{port}"
    _log.info("api_listening", address=address, tls=credentials is not None, open=auth.open)
    for service in ("", *SERVICES):
        await health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
    try:
        async with stills, asyncio.TaskGroup() as group:
            connecting = [
                group.create_task(_connect(settings, tenant, tenants)) for tenant in settings.hub.tenants
            ]
            group_health = group.create_task(_report_health(health, tenants, settings))
            try:
                yield Serving(address, tenants)
            finally:
                group_health.cancel()
                for task in connecting:
                    task.cancel()
    finally:
        await health.enter_graceful_shutdown()
        results.stop()
        await server.stop(_GRACE_S)
        for hub in tenants.hubs.values():
            await hub.connection.close()
        if spans is not None:
            spans.close()


def _credentials(settings: ApiSettings) -> grpc.ServerCredentials | None:
    """TLS as configured; raises `ConfigError` for files that cannot be used."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    key, certificate, client_ca = _tls_files(settings)
    return grpc.dynamic_ssl_server_credentials(
        grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca or None),
        _Renewed(settings),  # type: ignore[arg-type]  # None for "as it was", which the stubs do not know
        require_client_authentication=bool(client_ca),
    )


def _tls_files(settings: ApiSettings) -> tuple[bytes, bytes, bytes]:
    """Key, certificate and the clients' authority (or nothing); raises `ConfigError`."""
    assert settings.tls_cert is not None  # noqa: S101  # the caller looked
    assert settings.tls_key is not None  # noqa: S101
    paths = (settings.tls_key, settings.tls_cert, settings.client_ca)
    try:
        key, certificate, client_ca = (path.read_bytes() if path is not None else b"" for path in paths)
    except OSError as problem:
        raise ConfigError(f"api: {problem.filename} cannot be read: {problem.strerror}") from None
    try:
        # Only looks at them: gRPC would write lines of its own about what is wrong.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.client_ca is not None:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(settings.client_ca)
    except ssl.SSLError as problem:
        raise ConfigError(
            f"api.tls_cert, api.tls_key or api.client_ca cannot be used: {problem.reason or problem}"
        ) from None
    return key, certificate, client_ca


class _Renewed:
    """Reads the files again for a new connection once they changed: renewing needs no restart.

    gRPC asks before each handshake, from threads of its own. Files that cannot be used leave the old ones in
    use; half of a pair that was written a moment ago is tried again with the next connection.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._seen = self._marks()

    def _marks(self) -> tuple[tuple[int, int] | None, ...]:
        found: list[tuple[int, int] | None] = []
        for path in (self._settings.tls_cert, self._settings.tls_key, self._settings.client_ca):
            try:
                stat = path.stat() if path is not None else None
            except OSError:
                stat = None
            found.append((stat.st_mtime_ns, stat.st_ino) if stat is not None else None)
        return tuple(found)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration; None while nothing changed."""
        now = self._marks()
        if now == self._seen:
            return None
        try:
            key, certificate, client_ca = _tls_files(self._settings)
        except ConfigError as problem:
            _log.error("certificates_unusable", reason=str(problem))
            return None
        self._seen = now
        _log.info("certificates_renewed")
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=client_ca or None
        )


def _try_port(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


async def _connect(settings: CloudSettings, tenant: TenantSettings, tenants: Tenants) -> None:
    """Connect a tenant and see to its streams, waiting for as long as it takes."""
    connection = await connect(settings.hub, tenant, "api")
    hub = TenantHub(tenant.name, connection, connection.jetstream(timeout=3))
    tenants.hubs[tenant.name] = hub
    said = False
    while True:
        try:
            await streams.ensure(hub.js, settings.hub.streams_of(tenant))
        except BusError as problem:
            if not problem.retryable:
                raise
            if not said:
                said = True
                _log.warning("hub_not_ready", tenant=tenant.name, reason=str(problem))
            await asyncio.sleep(_RETRY_S)
        else:
            hub.ready = True
            _log.info("api_ready", tenant=tenant.name)
            return


async def _report_health(
    health: health_aio.HealthServicer, tenants: Tenants, settings: CloudSettings
) -> None:
    """Serving while the hub is there."""
    was: bool | None = None
    while True:
        now, _ = _ready(tenants, settings)
        if now != was:
            was = now
            state = (
                health_pb2.HealthCheckResponse.SERVING if now else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            for service in ("", *SERVICES):
                await health.set(service, state)
        await asyncio.sleep(_RETRY_S)
