"""A tenant's account, for a command: with the settings of the worker and the API."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from nats.aio.client import Client
from nats.js import JetStreamContext

from cloud_inference import config, streams
from cloud_inference.audit import AuditLog
from cloud_inference.config import CloudSettings, TenantSettings
from cloud_inference.connecting import connect
from cloud_inference.local import CONFIG_FILE
from eyeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Account:
    """One tenant's account."""

    tenant: str
    connection: Client
    js: JetStreamContext
    audit: AuditLog


def settings(path: Path | None, state_dir: Path) -> CloudSettings:
    """The given file, or what `cloud-inference local` wrote into its state folder; raises `ConfigError`."""
    made = state_dir / CONFIG_FILE
    if path is None and not made.exists():
        raise ConfigError(
            f"no system was started with --state {state_dir} yet: give --config FILE, or --state"
        )
    return config.load(path or made)


def tenant_of(settings: CloudSettings, name: str | None) -> TenantSettings:
    """The tenant of that name, or the only one; raises `ConfigError`."""
    known = {tenant.name: tenant for tenant in settings.hub.tenants}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        raise ConfigError(f"--tenant must be one of: {', '.join(known)}")
    return known[name]


@contextlib.asynccontextmanager
async def account(settings: CloudSettings, name: str | None) -> AsyncIterator[Account]:
    """Connect, with every stream there; raises `BusError`, `ConfigError`."""
    tenant = tenant_of(settings, name)
    connection = await connect(settings.hub, tenant, "operator", wait=False)
    try:
        js = connection.jetstream(timeout=5)
        # How much is kept, workers and API say: whoever gives a command may have other settings at hand.
        await streams.ensure(js, settings.hub.streams_of(tenant), change=False)
        yield Account(tenant.name, connection, js, AuditLog(js))
    finally:
        await connection.close()


def operator() -> str:
    """Who gives the command, for the audit log: the user of this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"operator {user}@{socket.gethostname()}"
