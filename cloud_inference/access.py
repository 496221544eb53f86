"""Access tokens of the API: JWTs that name a tenant, cameras and methods, checked without asking anybody.

Claims: `aud`, `exp`, `tenant`, `cameras` (a list such as ["yard/*"]) and `methods` (of read, write, detect);
all of them must be there. `sub`, if it is, names the holder in the audit log. Each key takes the one
algorithm that belongs to it, so that neither "none" nor a public key used as a shared secret gets anywhere.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from eyeline.creds import write_private
from eyeline.errors import ConfigError, EyelineError
from eyeline.subjects import check_pattern, check_token

Method = Literal["read", "write", "detect"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

_LEAST_RSA_BITS: Final = 2048
_MOST_TOKEN_CHARS: Final = 16_384
_LEEWAY_S: Final = 5


class BadToken(EyelineError):
    """A token that gives no access; the message tells its owner why, and nothing of anybody else."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do.

    cameras: (site, camera), either may be '*'; expires_s: Unix time, None for never. who: for the audit log;
    a token's `sub`, or what tells it from others without giving it away.
    """

    tenant: str
    cameras: tuple[tuple[str, str], ...] = (("*", "*"),)
    methods: frozenset[Method] = frozenset(METHODS)
    expires_s: float | None = None
    who: str = field(default="anyone", compare=False)

    @property
    def everywhere(self) -> bool:
        """Whether it covers all cameras of the tenant."""
        return ("*", "*") in self.cameras

    def covers(self, site: str, camera: str) -> bool:
        """Whether it covers this camera; '*' asks for all of them."""
        return any(s in {"*", site} and c in {"*", camera} for s, c in self.cameras)

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_s is not None and time.time() > self.expires_s + _LEEWAY_S


@dataclass(frozen=True, slots=True)
class _Key:
    key_id: str | None
    algorithm: str
    key: Any


class TokenKeys:
    """The public keys whose tokens are taken."""

    def __init__(self, files: Iterable[Path], audience: str) -> None:
        """Raises `ConfigError` for a file without a usable key."""
        self._audience = audience
        self._keys = [key for file in files for key in _load(file)]

    def grant(self, token: str) -> Grant:
        """What the token grants; raises `BadToken`."""
        claims = self._claims(token)
        tenant, cameras, methods = claims["tenant"], claims["cameras"], claims["methods"]
        if not isinstance(tenant, str) or not _texts(cameras) or not _texts(methods):
            raise BadToken("this token's tenant, cameras or methods are not of the right form")
        try:
            check_token(tenant, "tenant")
            patterns = tuple(check_pattern(pattern) for pattern in cameras)
        except EyelineError as problem:
            raise BadToken(f"this token cannot be used: {problem}") from None
        # A method that we do not know yet grants nothing.
        known = frozenset(method for method in METHODS if method in methods)
        return Grant(tenant, patterns, known, float(claims["exp"]), holder(token, claims.get("sub")))

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _MOST_TOKEN_CHARS:
            raise BadToken(f"this token has {len(token)} characters, at most {_MOST_TOKEN_CHARS} are taken")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise BadToken("this is not a token of ours") from None
        named = [key for key in self._keys if key.key_id is not None and key.key_id == header.get("kid")]
        candidates = [key for key in named or self._keys if key.algorithm == header.get("alg")]
        why = "its signature is not by a key that is trusted here"
        for key in candidates:
            try:
                return jwt.decode(
                    token,
                    key.key,
                    algorithms=[key.algorithm],
                    audience=self._audience,
                    leeway=_LEEWAY_S,
                    options={"require": ["exp", "aud", "tenant", "cameras", "methods"]},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError:
                why = "it has expired"
            except jwt.ImmatureSignatureError:
                why = "it is not valid yet"
            except jwt.InvalidAudienceError:
                why = f"it is not for {self._audience!r}"
            except jwt.MissingRequiredClaimError as problem:
                why = f"it has no {problem.claim!r}"
            except jwt.PyJWTError:
                why = "it is damaged"
        raise BadToken(f"this token is refused: {why}")


def mint(
    key_file: Path,
    *,
    tenant: str,
    cameras: Sequence[str],
    methods: Sequence[str],
    expires_s: float,
    audience: str = "eyeline",
    name: str | None = None,
) -> str:
    """A token signed with a private key; raises `ConfigError`, `InvalidName`.

    name: whose it is (`sub`), as the audit log will say.
    """
    check_token(tenant, "tenant")
    for pattern in cameras:
        check_pattern(pattern)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods or not cameras:
        raise ConfigError(f"methods are {', '.join(METHODS)}; at least one, and one camera pattern")
    try:
        private = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except OSError as problem:
        raise ConfigError(f"key {key_file} cannot be read: {problem.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{key_file} holds no private key in PEM") from None
    now = int(time.time())
    claims = {
        "aud": audience,
        "iat": now,
        "exp": now + int(expires_s),
        "tenant": tenant,
        "cameras": list(cameras),
        "methods": list(methods),
    } | ({"sub": name} if name else {})
    algorithm = _algorithm(private, str(key_file))
    return jwt.encode(claims, private, algorithm=algorithm)  # type: ignore[arg-type]  # one of those it lists


def ensure_key(private: Path, public: Path) -> None:
    """An Ed25519 pair in two PEM files, made when it is missing; raises `ConfigError`."""
    if private.exists() and public.exists():
        return
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(private, pem.decode())
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_private(public, shown.decode(), 0o644)


def _load(path: Path) -> list[_Key]:
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise ConfigError(f"api.token_keys: {path} cannot be read: {problem.strerror}") from None
    if raw.lstrip().startswith(b"{"):
        return _load_jwks(path, raw)
    try:
        key: Any = serialization.load_pem_public_key(raw)
    except ValueError:
        raise ConfigError(f"api.token_keys: {path} holds neither a public key in PEM nor a JWKS") from None
    return [_Key(None, _algorithm(key, str(path)), key)]


def _load_jwks(path: Path, raw: bytes) -> list[_Key]:
    where = f"api.token_keys: {path}"
    try:
        listed = json.loads(raw)["keys"]
        found = []
        for one in listed:
            if one.get("use", "sig") != "sig":
                continue
            if one.get("kty") == "oct" or "d" in one:
                raise ConfigError(f"{where} holds a secret key; public keys belong there")
            key = jwt.PyJWK(one)
            found.append(_Key(one.get("kid"), _algorithm(key.key, where), key.key))
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as problem:
        raise ConfigError(f"{where} is not a JWKS: {problem}") from None
    if not found:
        raise ConfigError(f"{where} holds no key for signatures")
    return found


def _algorithm(key: Any, where: str) -> str:
    """The one algorithm of a key; raises `ConfigError`."""
    match key:
        case ed25519.Ed25519PublicKey() | ed25519.Ed25519PrivateKey():
            return "EdDSA"
        case ec.EllipticCurvePublicKey() | ec.EllipticCurvePrivateKey() if key.curve.name == "secp256r1":
            return "ES256"
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey() if key.key_size >= _LEAST_RSA_BITS:
            return "RS256"
    raise ConfigError(f"{where}: keys are Ed25519, P-256, or RSA of at least {_LEAST_RSA_BITS} bits")


def holder(token: str, subject: Any = None) -> str:
    """Who holds a token, for the audit log."""
    mark = hashlib.sha256(token.encode()).hexdigest()[:12]
    return f"{subject[:80]} (token {mark})" if isinstance(subject, str) and subject else f"token {mark}"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
