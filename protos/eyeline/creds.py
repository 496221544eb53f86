"""A credentials file: everything that a program needs to reach the hub, in one private file.

It is a NATS creds file (a user JWT and its seed, which any NATS tool reads), with the hub's addresses and
the names as `# key: value` lines above, and the certificate authority, if it is a private one, as a PEM block
below. Needs cryptography, which the extras bring.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eyeline.errors import ConfigError
from eyeline.nkey import NKey

_MAX_BYTES = 1 << 20
_HEADER = re.compile(r"^# ([a-z-]+): (\S+)$", re.MULTILINE)
_JWT = re.compile(r"-{3,}BEGIN NATS USER JWT-{3,}\s+(\S+)\s+-{3,}END NATS USER JWT-{3,}")
_SEED = re.compile(r"-{3,}BEGIN USER NKEY SEED-{3,}\s+(\S+)\s+-{3,}END USER NKEY SEED-{3,}")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Creds:
    """A user of the hub. names: what stands above, such as `hub`, `tenant`, `site`, `device`. ca: PEM."""

    jwt: str = field(repr=False)
    key: NKey
    names: Mapping[str, str] = field(default_factory=dict)
    ca: str = field(default="", repr=False)

    @property
    def claims(self) -> dict[str, Any]:
        """What the JWT says, unchecked; raises `ConfigError`."""
        try:
            body = self.jwt.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (ValueError, IndexError):
            raise ConfigError("the NATS user JWT is damaged: ask for new credentials") from None
        return claims if isinstance(claims, dict) else {}

    def text(self) -> str:
        """The file."""
        lines = ["# Eyeline credentials: keep them secret, and apart from every other device's."]
        lines += [f"# {name}: {value}" for name, value in self.names.items()]
        lines += ["-----BEGIN NATS USER JWT-----", self.jwt, "------END NATS USER JWT------", ""]
        lines += ["-----BEGIN USER NKEY SEED-----", self.key.seed, "------END USER NKEY SEED------", ""]
        return "\n".join(lines) + self.ca


def parse(text: str, where: str) -> Creds:
    """The credentials in a file's text; raises `ConfigError`."""
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise ConfigError(f"{where} holds no NATS credentials: `cloud-inference enroll` makes them")
    try:
        key = NKey.from_seed(seed[1])
    except ConfigError as problem:
        raise ConfigError(f"{where}: {problem}") from None
    return Creds(jwt[1], key, dict(_HEADER.findall(text)), "".join(_PEM.findall(text)))


def read(path: Path) -> Creds:
    """The credentials in a file; raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode()
    except OSError as problem:
        raise ConfigError(f"credentials {path} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} holds no NATS credentials: `cloud-inference enroll` makes them") from None
    return parse(text, str(path))


def write_private(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that only we can read, in one step, and the folders above it; raises `ConfigError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(path)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written: {problem.strerror}") from None
