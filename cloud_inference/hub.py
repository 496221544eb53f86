"""The hub: a nats-server with JetStream and an account for each tenant, known by JWTs.

`config_text` writes its configuration, which holds no secret; `LocalHub` runs one on this machine and hands
out credentials. In a cluster the same text, with a `cluster` section beside it, goes into a ConfigMap.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from cloud_inference import pki
from cloud_inference.trust import Trust
from eyeline import creds, subjects
from eyeline.creds import Creds
from eyeline.errors import ConfigError
from eyeline.nats_server import NatsServer, StoreKey

_log = structlog.get_logger()

# There while `cloud-inference local` runs.
ENDPOINTS_FILE = "endpoints.json"
TRUST_FOLDER = "trust"
# Of a hub that runs here; one in a cluster has its own.
ACCOUNTS_FOLDER = "accounts"
DEVICES_FOLDER = "devices"
CLOUD_FOLDER = "cloud"
TLS_FOLDER = "tls"
MAX_PAYLOAD_BYTES = 1 << 20
_WILDCARDS = {"0.0.0.0", "::", "[::]"}  # noqa: S104  # to tell them, not to listen there


@dataclass(frozen=True, slots=True)
class HubConfig:
    """What a hub's configuration is made from.

    operator_jwt, system_account, system_jwt: see `Trust`. accounts_dir: where the server keeps the tenants'
    account JWTs, `{public key}.jwt` each. sync_interval_s: what a power cut can lose; 0 syncs every write
    before it is acknowledged. monitor_port: HTTP port for monitoring; None serves none, -1 takes a free one.
    tls: the server's certificate, for every port. websocket_port: NATS over WebSocket, beside the usual port.
    """

    operator_jwt: str
    system_account: str
    system_jwt: str
    store_dir: Path
    accounts_dir: Path
    sync_interval_s: int = 2
    monitor_port: int | None = None
    max_store_bytes: int | None = None
    tls: pki.Files | None = None
    websocket_host: str = "127.0.0.1"
    websocket_port: int | None = None
    store_key: StoreKey | None = None


def config_text(config: HubConfig) -> str:
    """The nats-server configuration, without host and port.

    The format takes JSON for its values, which spares us its own quoting rules.
    """
    jetstream: dict[str, Any] = {
        "store_dir": str(config.store_dir),
        "domain": subjects.HUB_DOMAIN,
        "sync_interval": f"{config.sync_interval_s}s" if config.sync_interval_s else "always",
    }
    if config.max_store_bytes is not None:
        jetstream["max_file_store"] = config.max_store_bytes
    if config.store_key is not None:
        jetstream |= config.store_key.config
    top: dict[str, Any] = {
        "server_name": "eyeline-hub",
        "max_payload": MAX_PAYLOAD_BYTES,
        # A device behind a dead link is noticed, and its session freed, within half a minute.
        "ping_interval": "10s",
        "ping_max": 2,
        "write_deadline": "10s",
        "jetstream": jetstream,
        "operator": config.operator_jwt,
        "system_account": config.system_account,
        "resolver": {
            "type": "full",
            "dir": str(config.accounts_dir),
            "allow_delete": False,
            "interval": "2m",
        },
        # Only the one that is needed to tell of the others: a preloaded account would undo revocations.
        "resolver_preload": {config.system_account: config.system_jwt},
    }
    tls: dict[str, Any] = {}
    if config.tls is not None:
        tls = {"cert_file": str(config.tls.certificate), "key_file": str(config.tls.key), "timeout": 5}
        # Our clients speak TLS from the first byte: nobody in between can talk them out of it.
        top["tls"] = tls | {"handshake_first": "auto"}
    if config.websocket_port is not None:
        top["websocket"] = {"host": config.websocket_host, "port": config.websocket_port} | (
            {"tls": tls} if tls else {"no_tls": True}
        )
    if config.monitor_port is not None:
        top["http"] = f"127.0.0.1:{config.monitor_port}"
    text = "\n".join(f"{key}: {json.dumps(value, indent=2)}" for key, value in top.items()) + "\n"
    # Names of the environment stand without quotes.
    return re.sub(r'"(\$EYELINE_[A-Z_]+)"', r"\1", text)


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and the file with its credentials."""

    site: str
    name: str
    creds: Path


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant: credentials of worker and API, who may do everything in its account, and of its devices."""

    name: str
    cloud: Path
    devices: tuple[Device, ...] = ()

    def device(self, site: str, name: str) -> Device:
        """The device of that name; raises `KeyError`."""
        for device in self.devices:
            if (device.site, device.name) == (site, name):
                return device
        raise KeyError(f"{site}/{name}")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How a hub on this machine is reached.

    public: host name or address by which devices reach it, which its certificate is for; None takes `host`.
    Ports of 0 are chosen. websocket_port: also NATS over WebSocket; None for not. store_key: encrypt what is
    kept on the disk.
    """

    host: str = "127.0.0.1"
    port: int = 0
    public: str | None = None
    tls: bool = False
    websocket_port: int | None = None
    sync_interval_s: int = 2
    monitor_port: int | None = None
    store_key: StoreKey | None = None

    @property
    def name(self) -> str:
        """How others reach it."""
        if self.public:
            return self.public
        return socket.gethostname() if self.host in _WILDCARDS else self.host

    @property
    def local_name(self) -> str:
        """How this machine reaches it, whatever its public name leads to."""
        return "127.0.0.1" if self.host in _WILDCARDS else self.host

    @property
    def names(self) -> list[str]:
        """All that a certificate should be for."""
        return list(dict.fromkeys([self.name, self.local_name, "localhost", "127.0.0.1", "::1"]))


class LocalHub:
    """A hub on this machine, as a child process, with everybody's credentials in `state_dir`.

    tenants: the (site, device) pairs of each that get credentials at the start; more can be enrolled at any
    time. Raises `InvalidName` and `ConfigError`.
    """

    def __init__(
        self,
        tenants: Mapping[str, Iterable[tuple[str, str]]],
        state_dir: Path,
        options: HubOptions | None = None,
    ) -> None:
        options = options or HubOptions()
        state_dir = state_dir.absolute()
        for site, device in (pair for pairs in tenants.values() for pair in pairs):
            subjects.check_token(site, "site")
            subjects.check_token(device, "device")
        self.name = "hub"
        self.trust = Trust(state_dir / TRUST_FOLDER)
        for tenant in tenants:
            self.trust.add_tenant(tenant)
        self.tls = pki.ensure(state_dir / TLS_FOLDER, options.names) if options.tls else None
        if options.websocket_port == 0:
            options = replace(options, websocket_port=_free_port(options.host))
        self.options = options
        system = self.trust.system_account
        self.config = HubConfig(
            operator_jwt=self.trust.operator_jwt,
            system_account=system,
            system_jwt=self.trust.account_jwts()[system],
            store_dir=state_dir / "jetstream",
            accounts_dir=state_dir / ACCOUNTS_FOLDER,
            sync_interval_s=options.sync_interval_s,
            monitor_port=options.monitor_port,
            tls=self.tls,
            websocket_host=options.host,
            websocket_port=options.websocket_port,
            store_key=options.store_key,
        )
        self.server = NatsServer(
            config_text(self.config),
            work_dir=state_dir,
            name=self.name,
            host=options.host,
            port=options.port,
            env=options.store_key.env if options.store_key is not None else None,
        )
        self._wanted = {name: list(pairs) for name, pairs in tenants.items()}
        self._state_dir = state_dir
        self._tenants: dict[str, Tenant] = {}

    @property
    def url(self) -> str:
        """Where devices connect, known once it was started."""
        return self._url(self.options.name)

    @property
    def local_url(self) -> str:
        """The same for programs on this machine."""
        return self._url(self.options.local_name)

    def _url(self, name: str) -> str:
        return f"{'tls' if self.tls else 'nats'}://{_bracketed(name)}:{self.server.port}"

    @property
    def websocket_url(self) -> str | None:
        """The same over WebSocket, if it is served."""
        if self.options.websocket_port is None:
            return None
        scheme = "wss" if self.tls else "ws"
        return f"{scheme}://{_bracketed(self.options.name)}:{self.options.websocket_port}"

    @property
    def tenants(self) -> list[Tenant]:
        """Everybody with credentials, known once it was started."""
        return list(self._tenants.values())

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name; raises `KeyError`."""
        return self._tenants[name]

    async def start(self) -> str:
        """Start it, see to everybody's credentials and return its URL; raises `ServerFailed`, `ConfigError`.

        What was enrolled or revoked since the last start counts from now on.
        """
        self.prepare()
        await self.server.start()
        self._write_credentials()
        return self.url

    def prepare(self) -> None:
        """Write everybody's credentials, and the accounts; `start` does it too.

        Where the port is not fixed, `start` writes the credentials again once it is known.
        """
        self._write_credentials()
        for key, jwt in self.trust.account_jwts().items():
            creds.write_private(self.config.accounts_dir / f"{key}.jwt", jwt)

    def _write_credentials(self) -> None:
        for name, pairs in self._wanted.items():
            devices = [self._device(name, site, device) for site, device in pairs]
            self._tenants[name] = Tenant(name, self._cloud(name), tuple(one for one in devices if one))

    async def wait(self) -> int:
        """Wait until it ends; returns the exit status."""
        return await self.server.wait()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Stop it."""
        await self.server.stop(grace_s)

    @property
    def _ca(self) -> str:
        return self.tls.ca.read_text(encoding="utf-8") if self.tls is not None else ""

    def _cloud(self, tenant: str) -> Path:
        path = cloud_file(self._state_dir, tenant)
        found = _read(path)
        if found is None or found.claims.get("iss") not in self.trust.account_jwts(devices=False):
            found = self.trust.cloud_creds(tenant)
        self._keep(path, found, hub=self.local_url, public=self.url)
        return path

    def _device(self, tenant: str, site: str, device: str) -> Device | None:
        """None when it was revoked: only `enroll` lets it in again."""
        path = device_file(self._state_dir, tenant, site, device)
        found = _read(path)
        valid = self.trust.valid(tenant, site, device)
        if found is None or found.key.public not in valid:
            if not valid and self.trust.enrolled(tenant, site, device):
                _log.warning("device_revoked", tenant=tenant, site=site, device=device)
                return None
            found = self.trust.enroll(tenant, site, device)
        self._keep(path, found, hub=self.url, **{"release-key": self.trust.release_key().public})
        return Device(site, device, path)

    def _keep(self, path: Path, found: Creds, **addresses: str) -> None:
        """Write the file as it should be now: addresses and authority may have changed."""
        text = replace(found, names={**found.names, **addresses}, ca=self._ca).text()
        creds.write_private(path, text)


def device_file(state_dir: Path, tenant: str, site: str, device: str) -> Path:
    """Where a device's credentials are kept on the hub's machine."""
    return state_dir / DEVICES_FOLDER / tenant / site / f"{device}.creds"


def cloud_file(state_dir: Path, tenant: str) -> Path:
    """Where the credentials of a tenant's worker and API are kept."""
    return state_dir / CLOUD_FOLDER / f"{tenant}.creds"


def summary(tenants: Iterable[Tenant]) -> dict[str, Any]:
    """Files with credentials by tenant, for `endpoints.json`."""
    return {
        tenant.name: {
            "creds": str(tenant.cloud),
            "devices": [
                {"site": device.site, "device": device.name, "creds": str(device.creds)}
                for device in tenant.devices
            ],
        }
        for tenant in tenants
    }


def _read(path: Path) -> Creds | None:
    """What is there; None when there is nothing, or nothing of use: it is made again."""
    if not path.exists():
        return None
    try:
        return creds.read(path)
    except ConfigError:
        return None


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as taken:
        return int(taken.getsockname()[1])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
