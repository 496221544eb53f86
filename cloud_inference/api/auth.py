"""Who is calling, and what for. The one place that looks at credentials.

A token, if one is sent, says who it is: a JWT (see `cloud_inference.access`), or one of the fixed tokens.
Else the client's certificate does, whose subject `api.clients` maps to a tenant and scopes. Without any of
these being configured, the only tenant is open to everyone who can connect.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Any

from cryptography import x509
from grpc import StatusCode

from cloud_inference.access import BadToken, Grant, Method, TokenKeys, holder
from cloud_inference.api.errors import Refusal
from cloud_inference.api.limits import Limits
from cloud_inference.config import ApiSettings
from eyeline.subjects import check_pattern


class Authenticator:
    """Finds out what a caller may do."""

    def __init__(self, settings: ApiSettings, tenants: Iterable[str], limits: Limits | None = None) -> None:
        """limits: every call is counted there. Raises `ConfigError` for key files that cannot be used."""
        self._tenants = list(tenants)
        self._limits = limits
        self._tokens = dict(settings.tokens)
        self._keys = TokenKeys(settings.token_keys, settings.audience) if settings.token_keys else None
        self._by_certificate = settings.client_ca is not None
        self._clients = {
            client.subject: Grant(
                client.tenant,
                tuple(check_pattern(pattern) for pattern in client.cameras),
                frozenset(client.methods),
                who=client.subject,
            )
            for client in settings.clients
        }

    @property
    def open(self) -> bool:
        """Whether no credentials are asked for."""
        return not self.takes_tokens and not self._by_certificate

    @property
    def takes_tokens(self) -> bool:
        """Whether there are tokens that would be taken."""
        return bool(self._tokens) or self._keys is not None

    def caller(self, context: Any, method: Method) -> Grant:
        """What the caller of a request may do, `method` included.

        Raises `Refusal` with UNAUTHENTICATED, PERMISSION_DENIED for the method, or RESOURCE_EXHAUSTED when
        too many calls of its tenant are under way.
        """
        grant = self._grant(context)
        if grant.tenant not in self._tenants:
            raise Refusal(StatusCode.UNAUTHENTICATED, "these credentials are for a tenant not served here")
        if method not in grant.methods:
            allowed = ", ".join(sorted(grant.methods)) or "nothing"
            raise Refusal(
                StatusCode.PERMISSION_DENIED, f"this needs the method {method!r}; yours are: {allowed}"
            )
        if self._limits is not None:
            self._limits.admit(grant.tenant)
        return grant

    def _grant(self, context: Any) -> Grant:
        if self.open and len(self._tenants) == 1:
            return Grant(self._tenants[0])
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not given and self._by_certificate:
            return self._of_certificate(context)
        scheme, _, token = str(given).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal(StatusCode.UNAUTHENTICATED, "send metadata 'authorization: Bearer TOKEN'")
        return self.of_token(token)

    def of_token(self, token: str) -> Grant:
        """What the holder of a token may do; raises `Refusal` with UNAUTHENTICATED."""
        found = None
        for known, tenant in self._tokens.items():  # all of them, in constant time each
            if hmac.compare_digest(known.encode(), token.encode()):
                found = Grant(tenant, who=holder(known))
        if found is not None:
            return found
        if self._keys is None:
            raise Refusal(StatusCode.UNAUTHENTICATED, "this token is not known")
        try:
            return self._keys.grant(token)
        except BadToken as problem:
            raise Refusal(StatusCode.UNAUTHENTICATED, str(problem)) from None

    def _of_certificate(self, context: Any) -> Grant:
        (pem,) = context.auth_context().get("x509_pem_cert", [b""])
        if not pem:
            raise Refusal(StatusCode.UNAUTHENTICATED, "show a client certificate, or send a token")
        subject = x509.load_pem_x509_certificate(pem).subject.rfc4514_string()
        grant = self._clients.get(subject)
        if grant is None:
            raise Refusal(
                StatusCode.UNAUTHENTICATED, f"api.clients has no entry for the certificate of {subject!r}"
            )
        return grant


def require(grant: Grant, site: str, camera: str) -> None:
    """Raise `Refusal` for a camera outside the caller's scope, whether there is one or not."""
    if not grant.covers(site, camera):
        raise Refusal(StatusCode.PERMISSION_DENIED, f"your credentials do not cover camera {site}/{camera}")


def patterns(grant: Grant) -> list[tuple[str, str]]:
    """The caller's (site, camera) patterns such that none overlaps another, as the hub wants them.

    They may cover more than the caller's, never less: what is read is checked once more.
    """
    kept = [
        one
        for one in dict.fromkeys(grant.cameras)
        if not any(_within(one, other) for other in grant.cameras if other != one)
    ]
    crossing = any(one != other and _overlap(one, other) for one in kept for other in kept)
    return [("*", "*")] if crossing else kept


def _within(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return all(o in {"*", part} for part, o in zip(one, other, strict=True))


def _overlap(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return all(part == o or "*" in {part, o} for part, o in zip(one, other, strict=True))
