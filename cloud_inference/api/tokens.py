"""Resume and page tokens: opaque to callers, checked before they are believed.

base64url of: version (1 byte), kind (1), stream identity (8), stream sequence (8), index inside the message
(4), time stored in ns (8), scope digest (4), CRC-32 (4); big-endian. The identity ties a token to one
incarnation of the results stream, so that it survives every restart but is refused by another hub; the scope
ties a page token to its question.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from grpc import StatusCode

from cloud_inference.api.errors import Refusal

_VERSION = 1
_FORM = struct.Struct(">BB8sQIQI")


class Kind(IntEnum):
    """What a token is for."""

    RESUME = 1
    PAGE = 2


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A result's place: sequence and time (ns) of its message, and its index among the results in it."""

    sequence: int
    index: int
    stored_ns: int = 0


def identity(tenant: str, created: str) -> bytes:
    """Identifies one incarnation of a tenant's results stream, 8 bytes."""
    return hashlib.blake2b(f"{tenant}\0{created}".encode(), digest_size=8).digest()


def encode(kind: Kind, stream: bytes, position: Position, scope: str = "") -> str:
    """The token of a position."""
    body = _FORM.pack(
        _VERSION, kind, stream, position.sequence, position.index, position.stored_ns, _digest(scope)
    )
    return base64.urlsafe_b64encode(body + struct.pack(">I", zlib.crc32(body))).decode().rstrip("=")


def decode(token: str, kind: Kind, stream: bytes, scope: str = "") -> Position:
    """The position of a token; raises `Refusal` with INVALID_ARGUMENT and the reason."""
    what = "resume token" if kind is Kind.RESUME else "page token"
    body = _checked(token, kind)
    if body is None:
        raise Refusal(StatusCode.INVALID_ARGUMENT, f"this is no {what} of ours")
    version, _, found_stream, sequence, index, stored_ns, found_scope = _FORM.unpack(body)
    if version != _VERSION:
        raise Refusal(StatusCode.INVALID_ARGUMENT, f"this {what} is of version {version}, we read {_VERSION}")
    if found_stream != stream:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT,
            f"this {what} is of another results stream; subscribe from a time instead",
        )
    if found_scope != _digest(scope):
        raise Refusal(StatusCode.INVALID_ARGUMENT, f"this {what} is for another request")
    return Position(sequence, index, stored_ns)


def _checked(token: str, kind: Kind) -> bytes | None:
    """The body of a token that is whole and of this kind."""
    if len(token) > 100:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None
    body, check = raw[:-4], raw[-4:]
    whole = len(body) == _FORM.size and struct.pack(">I", zlib.crc32(body)) == check
    return body if whole and body[1] == kind else None


def _digest(scope: str) -> int:
    return zlib.crc32(scope.encode())
