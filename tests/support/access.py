"""Access tokens for tests, good ones and others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cloud_inference import access

Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Issuer:
    """A key pair in a folder, and tokens by it."""

    def __init__(self, folder: Path, name: str = "issuer") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pem"
        access.ensure_key(self.private, self.public)

    def token(
        self,
        tenant: str = "acme",
        cameras: Sequence[str] = ("*/*",),
        methods: Sequence[str] = access.METHODS,
        *,
        expires_s: float = 3600,
        audience: str = "eyeline",
    ) -> str:
        return access.mint(
            self.private,
            tenant=tenant,
            cameras=cameras,
            methods=methods,
            expires_s=expires_s,
            audience=audience,
        )

    def signed(self, **claims: Any) -> str:
        """A token with these claims over good ones; None takes one out."""
        return sign(self.private, "EdDSA", **claims)


def claims_of(**changed: Any) -> dict[str, Any]:
    """Good claims, with these over them; None takes one out."""
    good = {
        "aud": "eyeline",
        "exp": int(time.time()) + 3600,
        "tenant": "acme",
        "cameras": ["*/*"],
        "methods": ["read", "write", "detect"],
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def sign(key: Any, algorithm: str | None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token by any key (a file in PEM too) and algorithm."""
    if isinstance(key, Path):
        key = serialization.load_pem_private_key(key.read_bytes(), None)
    return jwt.encode(claims_of(**claims), key, algorithm=algorithm, headers=headers)


def public_pem(key: Private) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
