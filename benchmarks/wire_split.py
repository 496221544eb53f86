"""What the bytes of a connection to NATS are: read from the protocol itself, both ways."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

_WITH_PAYLOAD: Final = {b"PUB", b"HPUB", b"MSG", b"HMSG"}
_KINDS: Final = (
    (re.compile(r"^eyeline\.v1\.frame\."), "pictures"),
    (re.compile(r"^eyeline\.v1\.sample\."), "calibration"),
    (re.compile(r"^eyeline\.v1\.status\."), "status"),
    (re.compile(r"^eyeline\.v1\.control\."), "said by the cloud"),
    (re.compile(r"STREAM\.INFO"), "clock"),
    (re.compile(r"CLAIMS"), "claims"),
    (re.compile(r"DESIRED"), "what the cloud wants"),
    (re.compile(r"RELEASES"), "releases"),
    (re.compile(r"PROFILES"), "profile"),
)


class Reader:
    """One connection; feed it what goes either way, as it goes."""

    def __init__(self) -> None:
        # Bytes by kind, both ways.
        self.bytes: Counter[str] = Counter()
        self._rest = {True: b"", False: b""}
        self._wanted: dict[bool, tuple[str, int] | None] = {True: None, False: None}
        self._asked: dict[str, str] = {}

    def feed(self, data: bytes, *, up: bool) -> None:
        """up: from the client to the server."""
        data = self._rest[up] + data
        while data:
            wanted = self._wanted[up]
            if wanted is not None:
                kind, size = wanted
                if len(data) < size:
                    break
                self.bytes[kind] += size
                data, self._wanted[up] = data[size:], None
                continue
            line, ended, rest = data.partition(b"\r\n")
            if not ended:
                break
            data = rest
            words = line.split()
            command = words[0] if words else b""
            if command in _WITH_PAYLOAD:
                kind = self._kind(command, words)
                self._wanted[up] = kind, int(words[-1]) + 2
            else:
                kind = "connection"
            self.bytes[kind] += len(line) + 2
        self._rest[up] = data

    def _kind(self, command: bytes, words: list[bytes]) -> str:
        subject = words[1].decode()
        if command in {b"MSG", b"HMSG"}:
            return self._asked.pop(subject, "") or _kind_of(subject)
        kind = _kind_of(subject)
        if len(words) == (4 if command == b"PUB" else 5):
            self._asked[words[2].decode()] = kind
        return kind


def _kind_of(subject: str) -> str:
    return next((kind for pattern, kind in _KINDS if pattern.search(subject)), "other")


def added(readers: Iterable[Reader]) -> Counter[str]:
    """Of several connections."""
    total: Counter[str] = Counter()
    for one in readers:
        total.update(one.bytes)
    return total
