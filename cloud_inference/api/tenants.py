"""A connection to the hub for each tenant, and what the services need of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from grpc import StatusCode
from nats.aio.client import Client
from nats.js import JetStreamContext

from cloud_inference.api import tokens
from cloud_inference.api.errors import Refusal
from cloud_inference.audit import AuditLog
from eyeline import subjects


@dataclass(slots=True)
class TenantHub:
    """One tenant's account."""

    name: str
    connection: Client
    js: JetStreamContext
    ready: bool = False
    audit: AuditLog = field(init=False, repr=False)
    _stream: bytes = field(default=b"", repr=False)
    # The connection that the identity was asked over: the hub behind the next one may be another.
    _asked_over: int = field(default=-1, repr=False)

    def __post_init__(self) -> None:
        self.audit = AuditLog(self.js)

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and made again."""
        return self.connection.stats["reconnects"]

    async def stream_identity(self) -> bytes:
        """Identifies the results stream in tokens."""
        connection = self.reconnects
        if self._asked_over != connection:
            info = await self.js.stream_info(subjects.RESULTS)
            self._stream = tokens.identity(self.name, str(info.created))
            self._asked_over = connection
        return self._stream


class Tenants:
    """The tenants' hubs by name."""

    def __init__(self) -> None:
        self.hubs: dict[str, TenantHub] = {}

    def hub(self, tenant: str) -> TenantHub:
        """The hub of a tenant; raises `Refusal` with UNAVAILABLE while it is away."""
        found = self.hubs.get(tenant)
        if found is None or not found.ready or not found.connection.is_connected:
            raise Refusal(StatusCode.UNAVAILABLE, "the hub is away; try again")
        return found
