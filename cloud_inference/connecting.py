"""Connections to the hub, as one of its tenants."""

from __future__ import annotations

from nats.aio.client import Client

from cloud_inference.config import HubSettings, TenantSettings
from eyeline import bus


async def connect(hub: HubSettings, tenant: TenantSettings, name: str, *, wait: bool = True) -> Client:
    """Connect under a name that the hub shows; see `eyeline.bus.connect` for `wait` and what it raises."""
    return await bus.connect(
        hub.url,
        name=name,
        user=tenant.user,
        password=tenant.secret_password(),
        creds_file=tenant.creds_file,
        ca_file=hub.ca_file,
        wait=wait,
    )
