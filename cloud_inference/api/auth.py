"""Who is calling, and for which tenant. The one place that looks at credentials."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpc import StatusCode

from cloud_inference.api.errors import Refusal


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    tenant: str

    def may_see(self, site: str, camera: str) -> bool:  # noqa: ARG002  # tokens have no camera scopes yet
        """Whether results of this camera are for this caller."""
        return True


class Authenticator:
    """Bearer tokens, as configured; without any, the only tenant is open to everyone who can connect."""

    def __init__(self, tokens: Mapping[str, str], tenants: list[str]) -> None:
        self._tokens, self._tenants = dict(tokens), tenants

    def caller(self, context: Any) -> Caller:
        """The caller of a request; raises `Refusal` with UNAUTHENTICATED."""
        if not self._tokens and len(self._tenants) == 1:
            return Caller(self._tenants[0])
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        scheme, _, token = str(given).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal(StatusCode.UNAUTHENTICATED, "send metadata 'authorization: Bearer TOKEN'")
        found = None
        for known, tenant in self._tokens.items():  # all of them, in constant time each
            if hmac.compare_digest(known.encode(), token.encode()):
                found = tenant
        if found is None:
            raise Refusal(StatusCode.UNAUTHENTICATED, "this token is not known")
        return Caller(found)
