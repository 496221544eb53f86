"""NATS keys: Ed25519 pairs in the form that NATS gives them, with their kind and a checksum.

The form (nats-io/nkeys): base32 without padding of a prefix, the 32 bytes of the key, and a little-endian
CRC-16/XMODEM. A public key's prefix is one byte; a seed's is two, which hold "seed" (5 bits) and the kind.
Needs cryptography, which the extras bring.
"""

from __future__ import annotations

import base64
import binascii
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from eyeline.errors import ConfigError

_SEED = 18 << 3
_DAMAGED = "the NATS seed is damaged: it starts with S and has 58 letters and digits"


class Kind(IntEnum):
    """Whose key it is; the value is the prefix of a public key, which makes its first letter."""

    ACCOUNT = 0  # A
    OPERATOR = 14 << 3  # O
    USER = 20 << 3  # U


class NKey:
    """A key pair. The seed is its secret: never logged, and not part of `repr`."""

    def __init__(self, kind: Kind, raw: bytes) -> None:
        self.kind = kind
        self._raw = raw
        self._private = Ed25519PrivateKey.from_private_bytes(raw)
        public = self._private.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        self.public = _encode(bytes([kind]), public)

    def __repr__(self) -> str:
        return f"NKey({self.public})"

    @classmethod
    def generate(cls, kind: Kind) -> NKey:
        """A new pair."""
        raw = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        return cls(kind, raw)

    @classmethod
    def from_seed(cls, seed: str) -> NKey:
        """The pair of a seed; raises `ConfigError`."""
        try:
            data = base64.b32decode(seed.strip() + "=" * (-len(seed.strip()) % 8))
            kind = Kind((data[0] & 7) << 5 | data[1] >> 3)
        except (ValueError, IndexError):
            raise ConfigError(_DAMAGED) from None
        if len(data) != 36 or _crc(data[:-2]) != data[-2:] or data[0] & 0xF8 != _SEED:
            raise ConfigError(_DAMAGED)
        return cls(kind, data[2:34])

    @property
    def seed(self) -> str:
        """The secret."""
        return _encode(bytes([_SEED | self.kind >> 5, (self.kind & 31) << 3]), self._raw)

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._private.sign(data)


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether the signature of the data is by the holder of that public key."""
    try:
        raw = base64.b32decode(public + "=" * (-len(public) % 8))
        if len(raw) != 35 or _crc(raw[:-2]) != raw[-2:]:
            return False
        Ed25519PublicKey.from_public_bytes(raw[1:33]).verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True


def _encode(prefix: bytes, key: bytes) -> str:
    body = prefix + key
    return base64.b32encode(body + _crc(body)).decode().rstrip("=")


def _crc(data: bytes) -> bytes:
    """CRC-16/XMODEM, little-endian."""
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")
