"""Reading the audit log from several servers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from nats.js.errors import NotFoundError

from cloud_inference import audit

ENTRIES = 3


@dataclass
class OneIsBehind:
    """The leader has all entries; the server that answers direct questions misses some."""

    missing: set[int]

    def __post_init__(self) -> None:
        self.stored: list[bytes] = []
        for number in range(ENTRIES):
            body = {"when_ns": number, "who": "x", "what": "view", "cameras": ["yard/gate"], "detail": {}}
            previous = hashlib.sha256(self.stored[-1]).hexdigest() if self.stored else audit._FIRST
            self.stored.append(json.dumps({**body, "previous": previous}).encode())

    async def stream_info(self, _: str) -> Any:
        return SimpleNamespace(state=SimpleNamespace(first_seq=1, last_seq=ENTRIES))

    async def get_msg(self, _: str, sequence: int, *, direct: bool) -> Any:
        if direct and sequence in self.missing:
            raise NotFoundError
        return SimpleNamespace(data=self.stored[sequence - 1], time=None)


async def test_a_server_that_is_behind_makes_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    js: Any = OneIsBehind(missing={2})
    monkeypatch.setattr(audit, "context", lambda it: it)
    chain = audit.Chain()
    async for entry in audit.read(js):
        chain.follow(entry)
    assert (chain.entries, chain.broken) == (ENTRIES, [])
