"""The whole cloud side on one machine, as separate processes, kept running: hub, Triton, worker, API, web."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
import yaml

from cloud_inference import access, triton_repository
from cloud_inference import hub as hubs
from cloud_inference.config import CloudSettings
from cloud_inference.hub import ENDPOINTS_FILE, HubOptions, LocalHub
from cloud_inference.triton_repository import Serving
from cloud_inference.triton_server import Ports, TritonServer
from eyeline import lock
from eyeline.creds import write_private
from eyeline.errors import ServerFailed
from eyeline.nats_server import StoreKey
from eyeline.process import Child
from eyeline.supervise import Supervisor
from eyeline_models import catalogue

_log = structlog.get_logger()

CONFIG_FILE = "cloud.yaml"
# Of access tokens.
PRIVATE_KEY = "token-key.pem"
PUBLIC_KEY = "token-key.public.pem"
_READY_TIMEOUT_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What runs on this machine.

    state_dir: gets the hub's files, keys, logs, `cloud.yaml`, `endpoints.json`, and for each device a file
    that lets it join; readable only by us.
    devices: (site, device) pairs that get credentials. Ports of 0 are chosen. tls: on the hub and the API,
    which then asks for tokens; public: the name that others reach this machine by, None for `host`.
    websocket_port: the hub also over WebSocket; None for not. web_port: the web page; None for none. cpus:
    cores for Triton, None for all. store_key: encrypts the hub's files. quiet: worker, API and page log to
    files in the state folder rather than to our stderr.
    """

    state_dir: Path
    tenant: str = "default"
    devices: tuple[tuple[str, str], ...] = (("local", "edge"),)
    host: str = "127.0.0.1"
    hub_port: int = 0
    api_port: int = 0
    tls: bool = False
    public: str | None = None
    websocket_port: int | None = None
    web_port: int | None = None
    triton: Ports = field(default_factory=Ports)
    serving: Serving = field(default_factory=Serving)
    cpus: tuple[int, ...] | None = None
    store_key: StoreKey | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """A running set: what `endpoints.json` says, and the supervisor, for its counts."""

    endpoints: dict[str, Any]
    supervisor: Supervisor
    pids: dict[str, int]


@contextlib.asynccontextmanager
async def running(settings: CloudSettings, options: LocalOptions) -> AsyncIterator[Running]:
    """Start everything, wait until it is ready, write `endpoints.json`; on leaving, stop everything.

    Raises `EyelineError` with one line when something does not come up.
    """
    state = options.state_dir.absolute()
    options = replace(options, state_dir=state)
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as problem:
        raise ServerFailed(f"{state} cannot be used for state: {problem.strerror}") from None
    with lock.held(state, "local system", "stop it, or give this one a --state of its own"):
        async with _running(settings, options) as started:
            yield started


@contextlib.asynccontextmanager
async def _running(settings: CloudSettings, options: LocalOptions) -> AsyncIterator[Running]:
    """The same, with the state folder to ourselves."""
    state = options.state_dir
    card = catalogue.load(settings.triton.model)
    served = triton_repository.of_card(card)
    hub = LocalHub(
        {options.tenant: options.devices},
        state,
        HubOptions(
            host=options.host,
            port=options.hub_port,
            public=options.public,
            tls=options.tls,
            websocket_port=options.websocket_port,
            store_key=options.store_key,
        ),
    )
    if options.tls:
        access.ensure_key(state / PRIVATE_KEY, state / PUBLIC_KEY)
    triton = TritonServer(
        [served],
        work_dir=state,
        serving=options.serving,
        host=options.host,
        ports=options.triton,
        cpus=options.cpus,
    )
    endpoints_file = state / ENDPOINTS_FILE
    endpoints_file.unlink(missing_ok=True)
    try:
        async with Supervisor() as supervisor:
            await supervisor.start(hub, triton)
            ports = _ports(options)
            config = state / CONFIG_FILE
            write_private(
                config,
                yaml.safe_dump(_child_settings(settings, hub, triton, options, ports)),
            )
            health = {"worker": ports.worker_http, "api": ports.api_http}
            if ports.web:
                health["web"] = ports.web_http
            programs = [_program(name, config, options) for name in health]
            await supervisor.start(*programs)
            await asyncio.gather(
                *(_until_ready(program, options.host, health[program.name]) for program in programs)
            )
            endpoints = {
                "hub": hub.url,
                "websocket": hub.websocket_url,
                "tenants": hubs.summary(hub.tenants),
                "api": f"{hub.options.name}:{ports.api}",
                "web": _web_url(hub, ports.web),
                # With TLS: the authority to trust, and the key to make access tokens with.
                "ca": str(hub.tls.ca) if hub.tls else None,
                "token_key": str(state / PRIVATE_KEY) if hub.tls else None,
                "triton": {"grpc": triton.url, "http": triton.http_url, "metrics": triton.metrics_url},
                "metrics": {name: f"http://{options.host}:{port}/metrics" for name, port in health.items()},
                "model": card.name,
            }
            write_private(endpoints_file, json.dumps(endpoints, indent=2))
            for device in hub.tenant(options.tenant).devices:
                _log.info("device_may_join", device=f"{device.site}/{device.name}", file=str(device.creds))
            if hub.tls is not None:
                command = f"cloud-inference token --tenant {options.tenant} --state {state}"
                _log.info("api_asks_for_tokens", make_one=command, ca=str(hub.tls.ca))
            started = {"hub": hub.server.pid, "triton": triton.pid}
            started |= {program.name: program.pid for program in programs}
            pids = {name: pid for name, pid in started.items() if pid is not None}
            _log.info(
                "local_ready",
                api=endpoints["api"],
                web=endpoints["web"],
                hub=hub.url,
                triton=triton.url,
                state=str(state),
            )
            yield Running(endpoints, supervisor, pids)
    finally:
        endpoints_file.unlink(missing_ok=True)


async def run(settings: CloudSettings, options: LocalOptions) -> None:
    """Run everything until cancelled; raises `EyelineError`."""
    async with running(settings, options):
        await asyncio.Event().wait()


def _program(name: str, config: Path, options: LocalOptions) -> Child:
    """Worker or API, as a process of its own."""
    log = options.state_dir / f"{name}.log" if options.quiet else None
    return Child(
        [sys.executable, "-m", "cloud_inference", name, "--config", str(config)],
        name=name,
        log=log,
        env={name: value for name, value in os.environ.items() if not name.startswith("EYELINE_CLOUD__")},
    )


def _child_settings(
    settings: CloudSettings,
    hub: LocalHub,
    triton: TritonServer,
    options: LocalOptions,
    ports: _Ports,
) -> dict[str, Any]:
    """The settings given to us, with the addresses and credentials of what we started."""
    creds_file = str(hub.tenant(options.tenant).cloud.absolute())
    values = settings.model_dump(mode="json", exclude_unset=True, exclude={"hub": {"tenants"}})
    hub_values = values.setdefault("hub", {})
    hub_values["url"] = hub.local_url
    hub_values["tenants"] = [{"name": options.tenant, "creds_file": creds_file}]
    values.setdefault("triton", {})["url"] = triton.url
    api = values.setdefault("api", {})
    api.update(host=options.host, port=ports.api)
    web = values.setdefault("web", {})
    web.update(host=options.host, port=ports.web or 0, api=f"{hub.options.name}:{ports.api}")
    if hub.tls is not None:
        api.setdefault("tls_cert", str(hub.tls.certificate))
        api.setdefault("tls_key", str(hub.tls.key))
        api.setdefault("token_keys", [str(options.state_dir / PUBLIC_KEY)])
        web.setdefault("api_ca", str(hub.tls.ca))
    values.setdefault("http", {}).update(
        host=options.host,
        worker_port=ports.worker_http,
        api_port=ports.api_http,
        web_port=ports.web_http,
    )
    return values


@dataclass(frozen=True, slots=True)
class _Ports:
    """Of the API and the page (None for no page), and for everybody's health and metrics."""

    api: int
    web: int | None
    worker_http: int
    api_http: int
    web_http: int


def _web_url(hub: LocalHub, port: int | None) -> str | None:
    scheme = "https" if hub.tls is not None else "http"
    return f"{scheme}://{hub.options.name}:{port}/" if port else None


def port_or_free(host: str, port: int) -> int:
    """The port if nobody has it, else 0."""
    try:
        with socket.create_server((host, port)):
            return port
    except OSError:
        return 0


def _ports(options: LocalOptions) -> _Ports:
    """Ports, chosen where not given."""
    with contextlib.ExitStack() as held:

        def free() -> int:
            taken = held.enter_context(socket.create_server((options.host, 0)))
            return int(taken.getsockname()[1])

        web = None if options.web_port is None else options.web_port or free()
        return _Ports(options.api_port or free(), web, free(), free(), free())


async def _until_ready(program: Child, host: str, port: int) -> None:
    """Wait for `/readyz` of a program; raises `ServerFailed` when it ends or takes too long."""
    answer = "no answer"
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while True:
                if program.returncode == 2:  # said why in one line; trying again would say the same
                    raise ServerFailed(
                        f"the {program.name} did not start: {program.last_words(1) or 'see above'}"
                    )
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    answer = await _get_readyz(host, port)
                    if " 200 " in answer.partition("\r\n")[0]:
                        return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        last = answer.rpartition("\r\n")[2].strip()
        raise ServerFailed(
            f"the {program.name} was not ready in {_READY_TIMEOUT_S:g} s: {last or 'no answer'}"
        ) from None


async def _get_readyz(host: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.read(65536)).decode(errors="replace")
    finally:
        writer.close()
