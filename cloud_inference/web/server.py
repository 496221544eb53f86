"""The web page's process: HTTP and WebSocket for browsers, over the API and the hub."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import structlog
from aiohttp import web

from cloud_inference.api.auth import Authenticator
from cloud_inference.audit import AuditLog
from cloud_inference.config import ApiSettings, CloudSettings, TenantSettings, WebSettings, is_loopback
from cloud_inference.connecting import connect
from cloud_inference.web.auth import Door
from cloud_inference.web.history import History
from cloud_inference.web.live import Hub, Lives
from cloud_inference.web.state import Sessions
from cloud_inference.web.stills import Stills
from cloud_inference.web.viewer import Viewer
from eyeline import Client
from eyeline.client import ClientCertificate, Tls
from eyeline.errors import ConfigError, EyelineError
from eyeline.health import HealthServer

_log = structlog.get_logger()

_KINDS: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "webmanifest": "application/manifest+json",
}
_MOST_BODY_BYTES: Final = 1 << 20
_MOST_MESSAGE_BYTES: Final = 64 << 10
_PING_S: Final = 20.0
_GRACE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A running page: its address, and whether it may be seen without a token."""

    url: str
    open: bool


async def run(settings: CloudSettings) -> None:
    """Serve until cancelled; raises `EyelineError` for what only a person can mend."""
    hubs: dict[str, Hub] = {}
    health = HealthServer(
        settings.http.host,
        settings.http.web_port,
        healthy=lambda: (True, "alive"),
        ready=lambda: _ready(hubs, settings),
        setting="http.web_port",
    )
    try:
        async with serve(settings, hubs):
            health.start()
            try:
                await asyncio.Event().wait()
            finally:
                health.stop()
    except* EyelineError as problems:
        raise problems.exceptions[0] from None


def _ready(hubs: dict[str, Hub], settings: CloudSettings) -> tuple[bool, str]:
    up = sum(hub.connection.is_connected for hub in hubs.values())
    return (True, "ready") if up == len(settings.hub.tenants) else (False, "waiting for the hub")


@contextlib.asynccontextmanager
async def serve(settings: CloudSettings, hubs: dict[str, Hub] | None = None) -> AsyncIterator[Serving]:
    """Listen, whether hub and API are there already or not. hubs: filled as tenants are connected.

    Raises `ConfigError` for settings that cannot work, and `BusError` when the hub refuses our credentials.
    """
    hubs = hubs if hubs is not None else {}
    tenants = [tenant.name for tenant in settings.hub.tenants]
    auth = Authenticator(settings.api, tenants)
    context = _tls(settings.web, settings.api)
    # What browsers see, whoever does it.
    secure = context is not None or settings.web.behind_tls_proxy
    _check(settings, auth, secure=secure)
    pool = ThreadPoolExecutor(1, "stills")
    lives = Lives(hubs, lambda: Stills(pool, settings.web.stills_fps))
    address, trust = _api(settings)
    sessions = Sessions(lambda token: Client(address, token or None, tls=trust))
    door = Door(auth, tenants, tls=secure)
    history = History(
        door, sessions, lives, triton=settings.triton.urls[0], shared_triton=len(settings.hub.tenants) > 1
    )
    page = _Page(door, sessions, lives, most=settings.web.max_viewers)
    application = web.Application(middlewares=[_guarded(tls=secure)], client_max_size=_MOST_BODY_BYTES)
    application.add_routes([*page.routes(), *history.routes()])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_GRACE_S)
    await runner.setup()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_connect(settings, tenant, hubs)) for tenant in settings.hub.tenants]
            tasks += [group.create_task(lives.sweep()), group.create_task(sessions.sweep())]
            try:
                port = await _listen(runner, settings.web, context)
                host = settings.web.host if ":" not in settings.web.host else f"[{settings.web.host}]"
                url = f"{'https' if context else 'http'}://{host}:{port}/"
                _log.info("web_listening", url=url, open=door.open)
                yield Serving(url, door.open)
            finally:
                page.stop()
                for task in tasks:
                    task.cancel()
    finally:
        await runner.cleanup()
        await lives.close()
        await sessions.close()
        for hub in hubs.values():
            await hub.connection.close()
        pool.shutdown(wait=False, cancel_futures=True)


def _check(settings: CloudSettings, auth: Authenticator, *, secure: bool) -> None:
    page, local = settings.web, is_loopback(settings.web.host)
    if not auth.open and not auth.takes_tokens:
        raise ConfigError("the web page needs tokens: set api.token_keys; browsers show no certificate to us")
    if auth.open and (not local or page.behind_tls_proxy or len(settings.hub.tenants) > 1):
        where = "a page behind a proxy" if page.behind_tls_proxy else f"web.host {page.host}"
        raise ConfigError(
            f"{where} would show everything to everybody: set api.token_keys, "
            "or listen on 127.0.0.1 for one tenant"
        )
    if not secure and not local:
        raise ConfigError(
            f"web.host {page.host} would be reached in clear text: set web.tls_cert and web.tls_key, "
            "or web.behind_tls_proxy where a proxy in front ends TLS"
        )


def _tls(page: WebSettings, api: ApiSettings) -> ssl.SSLContext | None:
    """As configured; None for plain HTTP. Raises `ConfigError` for files that cannot be used."""
    if page.behind_tls_proxy:
        return None
    certificate, key = page.tls_cert or api.tls_cert, page.tls_key or api.tls_key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except OSError as problem:
        raise ConfigError(f"web.tls_cert or web.tls_key cannot be used: {problem}") from None
    return context


def _api(settings: CloudSettings) -> tuple[str, Tls]:
    """Address of the API, and what to trust and show there; raises `ConfigError`."""
    api, page = settings.api, settings.web
    address = page.api or f"{api.host}:{api.port}"
    if page.api is None and not api.port:
        raise ConfigError("web.api must be HOST:PORT of the API: api.port is 0")
    trust: Tls = page.api_ca or (api.tls_cert is not None)
    if page.api_cert is not None and page.api_key is not None:
        trust = ClientCertificate(page.api_cert, page.api_key, page.api_ca)
    elif api.client_ca is not None:
        raise ConfigError("this API asks for certificates (api.client_ca): set web.api_cert and web.api_key")
    Client(address, tls=trust)  # so that files which cannot be read are noticed now
    return address, trust


async def _listen(runner: web.AppRunner, settings: WebSettings, context: ssl.SSLContext | None) -> int:
    try:
        await web.TCPSite(runner, settings.host, settings.port, ssl_context=context).start()
    except OSError as problem:
        raise ConfigError(
            f"web.port {settings.port} on {settings.host} cannot be used ({problem.strerror}): "
            "choose another, or 0"
        ) from None
    return int(runner.addresses[0][1])


async def _connect(settings: CloudSettings, tenant: TenantSettings, hubs: dict[str, Hub]) -> None:
    """Connect a tenant, waiting for as long as it takes."""
    connection = await connect(settings.hub, tenant, "web")
    js = connection.jetstream(timeout=3)
    hubs[tenant.name] = Hub(connection, js, AuditLog(js))


class _Page:
    """The page itself, logging in, and its WebSocket."""

    def __init__(self, door: Door, sessions: Sessions, lives: Lives, *, most: int) -> None:
        self._door, self._sessions, self._lives, self._most = door, sessions, lives, most
        self._viewers: set[Viewer] = set()
        self._files = _static()

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.get("/", self._file),
            web.get("/static/{name}", self._file),
            web.get("/api/me", self._me),
            web.post("/login", self._log_in),
            web.post("/logout", self._log_out),
            web.get("/live", self._live),
        ]

    def stop(self) -> None:
        """End every WebSocket: they do not end by themselves."""
        for viewer in list(self._viewers):
            viewer.end(1001, "the server stops")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "index.html")
        found = self._files.get(name)
        if found is None:
            raise web.HTTPNotFound(text="no such file")
        body, kind, tag = found
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def _me(self, request: web.Request) -> web.Response:
        visitor = self._door.visitor(request)
        grant = visitor.grant
        return web.json_response(
            {
                "open": self._door.open,
                "tenant": grant.tenant,
                "cameras": ["/".join(pattern) for pattern in grant.cameras],
                "methods": sorted(grant.methods),
                "expires": grant.expires_s * 1e3 if grant.expires_s is not None else None,
            }
        )

    async def _log_in(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send JSON")
        try:
            token = str((await request.json())["token"])
        except (ValueError, KeyError, TypeError):
            raise web.HTTPBadRequest(text="send a token") from None
        response = web.Response(status=204)
        visitor = self._door.log_in(request, token, response)
        _log.info("web_login", tenant=visitor.grant.tenant)
        return response

    async def _log_out(self, request: web.Request) -> web.Response:
        response = web.Response(status=204)
        self._door.log_out(request, response)
        return response

    async def _live(self, request: web.Request) -> web.StreamResponse:
        visitor = self._door.visitor(request)
        if len(self._viewers) >= self._most:
            raise web.HTTPServiceUnavailable(text=f"{self._most} browsers look already")
        socket = web.WebSocketResponse(heartbeat=_PING_S, max_msg_size=_MOST_MESSAGE_BYTES, compress=False)
        await socket.prepare(request)
        session = self._sessions.get(visitor.token)
        viewer = Viewer(socket, visitor.grant, session, self._lives)
        self._viewers.add(viewer)
        try:
            await viewer.serve()
        finally:
            self._viewers.discard(viewer)
        return socket


def _static() -> dict[str, tuple[bytes, str, str]]:
    """Every file of the page by name: its bytes, kind and tag. What is not in here cannot be asked for."""
    found = {}
    for file in (resources.files("cloud_inference.web") / "static").iterdir():
        kind = _KINDS.get(file.name.rpartition(".")[2])
        if kind is not None:
            body = file.read_bytes()
            found[file.name] = body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return found


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _guarded(*, tls: bool) -> Any:
    """Every answer says what browsers may do with it; failures are one line of text."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as problem:
            response = problem
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:  # noqa: BLE001  # a defect, logged; browsers learn nothing of our inside
            _log.exception("web_defect", path=request.path)
            response = web.Response(status=500, text="an internal error, which our log describes")
        if not response.prepared:
            socket = f"{'wss' if tls else 'ws'}://{request.host}"
            response.headers.update(_headers(socket, tls=tls))
        if isinstance(response, web.HTTPException):
            raise response
        return response

    return guarded


def _headers(socket: str, *, tls: bool) -> dict[str, str]:
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        f"connect-src 'self' {socket}; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    }
    if tls:
        headers["Strict-Transport-Security"] = "max-age=31536000"
    return headers
