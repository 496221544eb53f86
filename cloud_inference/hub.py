"""The hub: a nats-server with JetStream and an account for each tenant.

`config_text` writes its configuration; `LocalHub` runs one on this machine. In a cluster the same text, with
a `cluster` section beside it, goes into a ConfigMap.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eyeline import subjects
from eyeline.errors import ConfigError
from eyeline.nats_server import NatsServer

SECRETS_FILE = "hub-secrets.json"
MAX_PAYLOAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class User:
    """A name and a password of the hub."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Device:
    """A device's user; it may use its own subjects and nothing else."""

    site: str
    name: str
    user: User


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's account: the cloud's user, who may do everything in it, and its devices'."""

    name: str
    cloud: User
    devices: tuple[Device, ...] = ()

    def device(self, site: str, name: str) -> Device:
        """The device of that name; raises `KeyError`."""
        for device in self.devices:
            if (device.site, device.name) == (site, name):
                return device
        raise KeyError(f"{site}/{name}")


@dataclass(frozen=True, slots=True)
class HubConfig:
    """What a hub's configuration is made from.

    sync_interval_s: what a power cut can lose; 0 syncs every write before it is acknowledged.
    monitor_port: HTTP port for monitoring; None serves none, -1 takes a free one.
    """

    tenants: tuple[Tenant, ...]
    system: User
    store_dir: Path
    sync_interval_s: int = 2
    monitor_port: int | None = None
    max_store_bytes: int | None = None


def device_permissions(site: str, device: str) -> dict[str, dict[str, list[str]]]:
    """What a device may publish and subscribe to, as nats-server's `permissions`.

    Its own frames, status and control requests; claims of its own site; its own desired configuration. The
    streams' own inbox is private, so that no device reads what another one asked for.
    """
    api = "$JS.API"
    claims, desired = f"KV_{subjects.CLAIMS}", f"KV_{subjects.DESIRED}"
    own_claims = f"$KV.{subjects.CLAIMS}.{subjects.camera_key(site, '*')}"
    own_desired = f"$KV.{subjects.DESIRED}.{subjects.desired_key(site, device)}"
    publish = [
        subjects.frame_subject(site, device, "*"),
        subjects.status_subject(site, device),
        own_claims,
        f"{api}.INFO",
        # Waiting for the cloud to make them, and opening the buckets.
        *(f"{api}.STREAM.INFO.{stream}" for stream in (subjects.FRAMES, subjects.STATUS, claims, desired)),
        f"{api}.DIRECT.GET.{claims}.{own_claims}",
        f"{api}.DIRECT.GET.{desired}.{own_desired}",
    ]
    subscribe = [subjects.control_subject(site, device), f"{subjects.device_inbox(site, device)}.>"]
    return {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}


def config_text(config: HubConfig) -> str:
    """The nats-server configuration, without host and port; it holds passwords.

    The format takes JSON for its values, which spares us its own quoting rules.
    """
    jetstream: dict[str, Any] = {
        "store_dir": str(config.store_dir),
        "domain": subjects.HUB_DOMAIN,
        "sync_interval": f"{config.sync_interval_s}s" if config.sync_interval_s else "always",
    }
    if config.max_store_bytes is not None:
        jetstream["max_file_store"] = config.max_store_bytes
    accounts: dict[str, Any] = {"SYS": {"users": [_user(config.system)]}}
    for tenant in config.tenants:
        users = [_user(tenant.cloud)]
        for device in tenant.devices:
            permissions = device_permissions(device.site, device.name)
            users.append(_user(device.user) | {"permissions": permissions})
        accounts[_account(tenant.name)] = {"jetstream": "enabled", "users": users}
    top: dict[str, Any] = {
        "server_name": "eyeline-hub",
        "max_payload": MAX_PAYLOAD_BYTES,
        # A device behind a dead link is noticed, and its session freed, within half a minute.
        "ping_interval": "10s",
        "ping_max": 2,
        "write_deadline": "10s",
        "jetstream": jetstream,
        "system_account": "SYS",
        "accounts": accounts,
    }
    if config.monitor_port is not None:
        top["http"] = f"127.0.0.1:{config.monitor_port}"
    return "\n".join(f"{key}: {json.dumps(value, indent=2)}" for key, value in top.items()) + "\n"


def generate(
    tenants: Mapping[str, Iterable[tuple[str, str]]],
    state_dir: Path,
    *,
    sync_interval_s: int = 2,
    monitor_port: int | None = None,
) -> HubConfig:
    """A hub's configuration with random passwords that stay the same between runs.

    tenants: the (site, device) pairs of each. Passwords are kept in `hub-secrets.json` in `state_dir`,
    readable only by us. Raises `InvalidName` and `ConfigError`.
    """
    path = state_dir / SECRETS_FILE
    known = _read_secrets(path)

    def user(name: str) -> User:
        return User(name, known.setdefault(name, secrets.token_urlsafe(24)))

    made = []
    for name, pairs in tenants.items():
        subjects.check_token(name, "tenant")
        devices = tuple(_device(name, site, device, user) for site, device in pairs)
        made.append(Tenant(name, user(f"{name}.cloud"), devices))
    config = HubConfig(
        tenants=tuple(made),
        system=user("system"),
        store_dir=state_dir / "jetstream",
        sync_interval_s=sync_interval_s,
        monitor_port=monitor_port,
    )
    _write_secrets(path, known)
    return config


class LocalHub:
    """A hub on this machine, as a child process."""

    def __init__(self, config: HubConfig, *, work_dir: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self.name = "hub"
        self.config = config
        self.server = NatsServer(config_text(config), work_dir=work_dir, name=self.name, host=host, port=port)

    @property
    def url(self) -> str:
        """Where clients connect, known once it was started."""
        return self.server.url

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name; raises `KeyError`."""
        for tenant in self.config.tenants:
            if tenant.name == name:
                return tenant
        raise KeyError(name)

    async def start(self) -> str:
        """Start it and return its URL; raises `ServerFailed`."""
        return await self.server.start()

    async def wait(self) -> int:
        """Wait until it ends; returns the exit status."""
        return await self.server.wait()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Stop it."""
        await self.server.stop(grace_s)


def _device(tenant: str, site: str, device: str, user: Any) -> Device:
    subjects.check_token(site, "site")
    subjects.check_token(device, "device")
    # Dots cannot be part of a name, so this one is nobody else's.
    return Device(site, device, user(f"{tenant}.{site}.{device}"))


def _user(user: User) -> dict[str, Any]:
    return {"user": user.name, "password": user.password}


def _account(tenant: str) -> str:
    """Account names share a table with the system's, so a tenant's carries a prefix."""
    return f"tenant-{tenant}"


def _read_secrets(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read ({problem}); remove it to make new passwords") from None
    if not isinstance(known, dict) or not all(isinstance(value, str) for value in known.values()):
        raise ConfigError(f"{path} does not hold passwords; remove it to make new ones")
    return known


def _write_secrets(path: Path, known: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(dict(known), file, indent=2)
        new.replace(path)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written: {problem.strerror}") from None


def credentials(tenants: Sequence[Tenant]) -> dict[str, Any]:
    """Users and passwords by tenant, for `endpoints.json` and other private files."""
    return {
        tenant.name: {
            "user": tenant.cloud.name,
            "password": tenant.cloud.password,
            "devices": [
                {
                    "site": device.site,
                    "device": device.name,
                    "user": device.user.name,
                    "password": device.user.password,
                }
                for device in tenant.devices
            ],
        }
        for tenant in tenants
    }
