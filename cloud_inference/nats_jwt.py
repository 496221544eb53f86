"""The JWTs by which a nats-server knows operator, accounts and users (nats-io/jwt, version 2).

An operator signs accounts, an account (or its device key) signs users; a server holds the operator's JWT and
needs nothing else to check the rest. Pure functions of keys and values.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eyeline.nkey import NKey

_UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class Share:
    """Subjects that one account lets others use: to ask and be answered (service), or to hear (stream).

    account: public key of the account that has them; empty in its own exports. local: what the importing one
    calls a service, if not the same.
    """

    subject: str
    kind: Literal["service", "stream"] = "service"
    account: str = ""
    local: str = ""

    @property
    def claim(self) -> dict[str, str]:
        """As it stands in the JWT."""
        claim = {"subject": self.subject, "type": self.kind}
        more = {"account": self.account, "local_subject": self.local}
        return claim | {name: value for name, value in more.items() if value}


def operator(key: NKey, system_account: str) -> str:
    """The operator, which signs itself."""
    return _encode(key, key.public, "eyeline", {"type": "operator", "system_account": system_account})


def account(
    key: NKey,
    name: str,
    *,
    signed_by: NKey,
    jetstream: bool = True,
    exports: Iterable[Share] = (),
    imports: Iterable[Share] = (),
    device_key: str | None = None,
    device_permissions: Mapping[str, Any] | None = None,
    revoked: Mapping[str, int] | None = None,
) -> str:
    """An account.

    exports, imports: what other accounts may use of this one, and this one of others. device_key: public key
    that may sign users with `device_permissions` and no others. revoked: public keys of users to the time,
    seconds since the Unix epoch, up to which their JWTs are void.
    """
    limit = _UNLIMITED
    limits: dict[str, Any] = {
        "subs": limit, "data": limit, "payload": limit, "imports": limit, "exports": limit,
        "wildcards": True, "conn": limit, "leaf": 0,
    }  # fmt: skip
    if jetstream:
        limits |= {"mem_storage": limit, "disk_storage": limit, "streams": limit, "consumer": limit}
    claims: dict[str, Any] = {"type": "account", "limits": limits}
    for part, shares in (("exports", exports), ("imports", imports)):
        listed = [share.claim for share in shares]
        if listed:
            claims[part] = listed
    if device_key is not None:
        template = _user_limits() | _permissions(device_permissions)
        claims["signing_keys"] = [
            {"kind": "user_scope", "key": device_key, "role": "device", "template": template}
        ]
    if revoked:
        claims["revocations"] = dict(revoked)
    return _encode(signed_by, key.public, name, claims)


def user(
    public: str,
    name: str,
    *,
    signed_by: NKey,
    account_key: str,
    permissions: Mapping[str, Any] | None = None,
    expires_s: float | None = None,
) -> str:
    """A user, signed by the account's own key; without permissions it may do everything in its account."""
    assert signed_by.public == account_key  # noqa: S101  # a device key signs devices only
    claims = {"type": "user"} | _user_limits() | _permissions(permissions)
    return _encode(signed_by, public, name, claims, expires_s)


def device(
    public: str, name: str, *, signed_by: NKey, account_key: str, expires_s: float | None = None
) -> str:
    """A device's user, whose account says what it may do. signed_by: the account's device key."""
    claims = {"type": "user", "issuer_account": account_key, "pub": {}, "sub": {}}
    return _encode(signed_by, public, name, claims, expires_s)


def _user_limits() -> dict[str, Any]:
    return {"subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED}


def _permissions(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """From nats-server's names to the JWT's."""
    if given is None:
        return {"pub": {}, "sub": {}}
    return {"pub": given["publish"], "sub": given["subscribe"]}


def _encode(
    signer: NKey, subject: str, name: str, claims: Mapping[str, Any], expires_s: float | None = None
) -> str:
    now = time.time()
    body: dict[str, Any] = {"iat": int(now), "iss": signer.public, "name": name, "sub": subject}
    if expires_s is not None:
        body["exp"] = int(now + expires_s)
    body["nats"] = {**claims, "version": 2}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
    return f"{signed}.{_url64(signer.sign(signed.encode()))}"


def _part(value: Mapping[str, Any]) -> str:
    return _url64(json.dumps(value, separators=(",", ":")).encode())


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
