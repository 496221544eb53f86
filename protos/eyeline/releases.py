"""Releases as bytes: signed by the operator, checked by a device before anything of them is used.

Needs cryptography, which the extras bring.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError

from eyeline import nkey
from eyeline.errors import BadRelease, ConfigError
from eyeline.nkey import NKey
from eyeline.subjects import check_token
from eyeline.v1 import release_pb2 as pb

SCHEMA_MAJOR: Final = 1
KINDS: Final[Mapping[str, pb.ReleaseKind.ValueType]] = {
    "config": pb.RELEASE_KIND_CONFIG,
    "model": pb.RELEASE_KIND_MODEL,
    "agent": pb.RELEASE_KIND_AGENT,
}
MAX_SIGNED_BYTES: Final = 700_000
MAX_INLINE_BYTES: Final = 512_000
MAX_ARTEFACT_BYTES: Final = 1 << 30

_CONTEXT: Final = b"eyeline release v1\0"
_NUMBERS: Final = re.compile(r"\d{1,18}(\.\d{1,18})*")
_PARTS: Final = re.compile(r"\d{1,18}|[a-z]+")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# Who a device is, and what only it may hold: no release changes these.
_OWN_KEYS: Final = frozenset({"tenant", "site", "device", "state_dir", "updates"})
_SECRET_KEYS: Final = frozenset({"password", "password_file", "creds_file"})


def check_target(target: str) -> tuple[str, str]:
    """Site and device of `SITE/DEVICE`, `SITE/*` or `*/*`; raises `ConfigError`, `InvalidName`."""
    site, _, device = target.partition("/")
    if site == "*" and device != "*":
        raise ConfigError(f"{target!r} must be SITE/DEVICE, SITE/* or */*")
    for part, what in ((site, "site"), (device, "device")):
        if part != "*":
            check_token(part, what)
    return site, device


def key_of(kind: str, target: str) -> str:
    """Key in the bucket; raises `ConfigError`, `InvalidName`."""
    site, device = check_target(target)
    if device != "*":
        return f"{kind}.device.{site}.{device}"
    return f"{kind}.site.{site}" if site != "*" else f"{kind}.all"


def keys_for(kind: str, site: str, device: str) -> list[str]:
    """Keys that a device looks at."""
    return [key_of(kind, target) for target in (f"{site}/{device}", f"{site}/*", "*/*")]


def sign(manifest: pb.ReleaseManifest, key: NKey, inline: bytes = b"") -> bytes:
    """An entry for the bucket; raises `ConfigError` when it is too large."""
    body = manifest.SerializeToString()
    signature = key.sign(_CONTEXT + body)
    data = pb.SignedRelease(manifest=body, signature=signature, inline=inline).SerializeToString()
    if len(data) > MAX_SIGNED_BYTES:
        raise ConfigError(f"the release has {len(data)} bytes, at most {MAX_SIGNED_BYTES} are allowed")
    return data


def verify(
    data: bytes, public_key: str, *, tenant: str, site: str, device: str, kind: str
) -> tuple[pb.ReleaseManifest, bytes]:
    """What an entry says, and what it carries, if it is the operator's and for this device.

    Nothing of it is looked at before the signature is good. Raises `BadRelease`.
    """
    if len(data) > MAX_SIGNED_BYTES:
        raise BadRelease(f"the release has {len(data)} bytes, at most {MAX_SIGNED_BYTES} are allowed")
    signed, manifest = pb.SignedRelease(), pb.ReleaseManifest()
    try:
        signed.ParseFromString(data)
        if not nkey.verify(public_key, _CONTEXT + signed.manifest, signed.signature):
            raise BadRelease("its signature is not by the operator's key")
        manifest.ParseFromString(signed.manifest)
    except DecodeError:
        raise BadRelease(f"{len(data)} bytes are no release") from None
    for problem in _problems(manifest, tenant, (site, device), kind):
        raise BadRelease(problem)
    return manifest, signed.inline


def _problems(manifest: pb.ReleaseManifest, tenant: str, device: tuple[str, str], kind: str) -> Iterator[str]:
    if manifest.schema_major != SCHEMA_MAJOR:
        yield f"it has schema {manifest.schema_major}, this agent reads {SCHEMA_MAJOR}"
    if manifest.tenant != tenant:
        yield "it is for another tenant"
    site, _, name = manifest.target.partition("/")
    if not (site in {"*", device[0]} and name in {"*", device[1]}):
        yield f"it is for {manifest.target[:140]}"
    if manifest.kind != KINDS[kind]:
        yield f"it is no release of a {kind}"
    if not manifest.serial:
        yield "it has no serial number"
    if manifest.sha256 and not _SHA256.fullmatch(manifest.sha256):
        yield "it names no digest"
    if manifest.size_bytes > MAX_ARTEFACT_BYTES:
        yield f"it has {manifest.size_bytes} bytes, at most {MAX_ARTEFACT_BYTES} are taken"


def check_config(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that no release may change: who a device is, and its secrets."""
    own = sorted(_OWN_KEYS & set(values))
    if own:
        raise ConfigError(f"a release cannot set {', '.join(own)}: that is the device's own")
    for place in _secrets(values):
        raise ConfigError(f"a release cannot set {place}: secrets stay in the device's own files")


def _secrets(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            here = f"{place}.{key}" if place else str(key)
            if key in _SECRET_KEYS:
                yield here
            yield from _secrets(inner, here)
    elif isinstance(value, list):
        for inner in value:
            yield from _secrets(inner, place)


def version_key(version: str) -> list[tuple[float, str]]:
    """For comparing versions: numbers by value, and letters (`rc1`) before the release that they precede."""
    numbers = _NUMBERS.match(version)
    start = numbers.end() if numbers is not None else 0
    parts = [*re.sub(r"(\.0+)+$", "", version[:start]).split("."), *_PARTS.findall(version[start:].lower())]
    return [*((1.0 + int(part), "") if part.isdigit() else (0.0, part) for part in parts if part), (0.5, "")]
