"""The cloud's configuration: one file for worker, API and Triton, each reading its own section."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from eyeline import settings
from eyeline.settings import Settings
from eyeline.subjects import check_pattern, check_token

ENV_PREFIX = "EYELINE_CLOUD__"

Name = Annotated[str, AfterValidator(check_token)]


class StreamSettings(Settings):
    """How much the hub keeps, per tenant."""

    # Pixels go as soon as they are answered and no open chain needs them, or so much later.
    pixels_keep_s: float = Field(default=0.0, ge=0, le=365 * 86_400.0)
    # These bound what nobody answered yet.
    frames_max_bytes: int = Field(default=4 << 30, ge=1 << 20)
    frames_max_age_s: float = Field(default=7 * 86_400.0, ge=60)
    results_max_bytes: int = Field(default=8 << 30, ge=1 << 20)
    results_max_age_s: float = Field(default=7 * 86_400.0, ge=60)
    # Of the audit log, counted when it is first made.
    audit_max_age_s: float = Field(default=400 * 86_400.0, ge=86_400)
    replicas: int = Field(default=1, ge=1, le=5)
    storage: Literal["file", "memory"] = "file"


class TenantSettings(Settings):
    """A tenant: its own NATS account, its own streams."""

    name: Name
    # The cloud's user in the tenant's account.
    user: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    # Instead of user and password.
    creds_file: Path | None = None
    # How much is kept of this tenant's; None for `hub.streams`.
    streams: StreamSettings | None = None

    @model_validator(mode="after")
    def _one_login(self) -> TenantSettings:
        if self.creds_file is not None and (self.user, self.password, self.password_file) != (None,) * 3:
            raise ValueError("takes creds_file, or user and password, not both")
        return self

    def secret_password(self) -> str | None:
        """The password, wherever it comes from; raises `ConfigError`."""
        return settings.secret(self.password, self.password_file, f"tenant {self.name}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class HubSettings(Settings):
    """NATS."""

    url: str | tuple[str, ...] = "nats://127.0.0.1:4222"
    tenants: tuple[TenantSettings, ...] = (TenantSettings(name="default"),)
    # Talk TLS and trust this authority; one inside a credentials file serves as well.
    ca_file: Path | None = None
    streams: StreamSettings = StreamSettings()

    def streams_of(self, tenant: TenantSettings) -> StreamSettings:
        """What holds for a tenant."""
        return tenant.streams or self.streams

    @field_validator("tenants")
    @classmethod
    def _unique(cls, value: tuple[TenantSettings, ...]) -> tuple[TenantSettings, ...]:
        names = [tenant.name for tenant in value]
        if not names or len(set(names)) != len(names):
            raise ValueError("needs at least one tenant, and names that differ")
        return value


class TritonSettings(Settings):
    """The inference server, and the model that answers for cameras."""

    # One address or several; a name may stand for many, as that of a headless service.
    url: str | tuple[str, ...] = "127.0.0.1:8001"
    # A name in the catalogue, which is also the name of the served model.
    model: str = "centernet-mobilenetv3"
    timeout_s: float = Field(default=5.0, gt=0, le=300)

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses, however many."""
        return (self.url,) if isinstance(self.url, str) else self.url


class WorkerSettings(Settings):
    """The worker."""

    # Frames of one camera that may be in flight at Triton.
    max_in_flight: int = Field(default=16, ge=1, le=512)
    # Decoded frames of all cameras together that may wait for Triton.
    max_in_flight_total: int = Field(default=128, ge=1, le=4096)
    # A worker that was silent for so long has lost its cameras.
    lease_s: float = Field(default=3.0, ge=0.5, le=60)
    # Skipped frames are answered at once by prediction, or by interpolation when the next picture is.
    propagate: Literal["causal", "smooth"] = "smooth"
    decode_threads: int = Field(default=2, ge=1, le=64)
    # Score the calibration samples of its cameras, on one thread of low priority.
    calibrate: bool = True


class ClientSettings(Settings):
    """What the owner of a client certificate may do."""

    # As RFC 4514 writes it, such as "CN=dashboard,O=Acme".
    subject: str = Field(min_length=1)
    tenant: Name
    cameras: tuple[str, ...] = ("*/*",)
    methods: tuple[Literal["read", "write", "detect"], ...] = ("read",)

    @field_validator("cameras")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            check_pattern(pattern)
        return value


class ApiSettings(Settings):
    """The gRPC API."""

    host: str = "127.0.0.1"
    # 0 takes a free port, which the log tells.
    port: int = Field(default=50051, ge=0, le=65535)
    # Files with public keys (PEM or JWKS) whose JWTs are taken; their `aud` must be `audience`. Without any,
    # and without `tokens` and `client_ca`, the only tenant is open to all who can connect: on loopback only.
    token_keys: tuple[Path, ...] = ()
    audience: str = Field(default="eyeline", min_length=1)
    # Fixed bearer token to tenant, for tests: no scopes, no expiry.
    tokens: dict[str, Name] = Field(default={}, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # With it, every client must show a certificate of this authority; `clients` says what it may do when it
    # sends no token.
    client_ca: Path | None = None
    clients: tuple[ClientSettings, ...] = ()
    # Subscriptions of all tenants together, and of one; None divides them evenly.
    max_streams: int = Field(default=200, ge=1, le=10_000)
    max_streams_per_tenant: int | None = Field(default=None, ge=1, le=10_000)
    # Other calls of one tenant at a time.
    max_calls_per_tenant: int = Field(default=32, ge=1, le=1000)
    max_image_bytes: int = Field(default=8 << 20, ge=1024)

    @model_validator(mode="after")
    def _complete(self) -> ApiSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        if self.client_ca is not None and self.tls_cert is None:
            raise ValueError("client_ca needs tls_cert and tls_key")
        if self.clients and self.client_ca is None:
            raise ValueError("clients needs client_ca")
        return self


class TracesSettings(Settings):
    """Traces of the frames for which agents ask (`trace_share`)."""

    # Where an OTLP collector takes spans over HTTP, such as "http://collector:4318/v1/traces".
    endpoint: str | None = Field(default=None, pattern=r"^https?://")


class WebSettings(Settings):
    """The web page: a client of the API and of the hub, for browsers. Who may see what, `api` says."""

    host: str = "127.0.0.1"
    # 0 takes a free port, which the log tells.
    port: int = Field(default=8080, ge=0, le=65535)
    # Without these, the API's own.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # TLS ends at a proxy in front, and nobody else can reach this port: browsers talk HTTPS with the proxy,
    # which talks plain HTTP with us and keeps the header Host.
    behind_tls_proxy: bool = False
    # Where the API listens [default: api.host and api.port], and the authority of its certificate.
    api: str | None = None
    api_ca: Path | None = None
    # What the page shows an API that asks for certificates. What visitors see, their tokens say all the same.
    api_cert: Path | None = None
    api_key: Path | None = None
    # Of browsers that cannot decode video: pictures a second that are decoded for them, for each camera.
    stills_fps: float = Field(default=2.0, gt=0, le=10)
    max_viewers: int = Field(default=100, ge=1, le=10_000)

    @model_validator(mode="after")
    def _complete(self) -> WebSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        if (self.api_cert is None) != (self.api_key is None):
            raise ValueError("api_cert and api_key belong together")
        if self.behind_tls_proxy and self.tls_cert is not None:
            raise ValueError("behind_tls_proxy is for plain HTTP: leave it out, or tls_cert and tls_key")
        return self


class HttpSettings(Settings):
    """`/healthz`, `/readyz` and `/metrics`."""

    host: str = "127.0.0.1"
    # 0 takes a free port, which the log tells.
    worker_port: int = Field(default=9610, ge=0, le=65535)
    api_port: int = Field(default=9611, ge=0, le=65535)
    web_port: int = Field(default=9612, ge=0, le=65535)


class CloudSettings(Settings):
    """The whole file."""

    hub: HubSettings = HubSettings()
    triton: TritonSettings = TritonSettings()
    worker: WorkerSettings = WorkerSettings()
    api: ApiSettings = ApiSettings()
    web: WebSettings = WebSettings()
    http: HttpSettings = HttpSettings()
    traces: TracesSettings = TracesSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> CloudSettings:
    """Read the cloud's settings; raises `ConfigError` with one line."""
    return settings.load(CloudSettings, path, env_prefix=ENV_PREFIX, overrides=overrides)
