"""The audit log of a tenant: who saw, took, changed or erased what, and when.

A stream of its own that only grows: the server refuses to delete or purge, and the stream is in an account of
its own, of which worker and API can only add to it and read it. Each entry carries the SHA-256 of the one
before it and is stored only right behind it (`Nats-Expected-Last-Sequence`), so that one taken out or
changed shows. What an entry tells of happens only once the entry is stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import nats.errors
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from eyeline import subjects
from eyeline.errors import BusError

What = Literal["view", "export", "desired", "masks", "erase", "erased", "release"]

_WRONG_LAST_SEQUENCE: Final = 10071
_TIMEOUT_S: Final = 3.0
# Against others who write at the same time.
_ATTEMPTS: Final = 50
# Entries that are read at a time.
_AT_ONCE: Final = 128
# The same caller's same view is written once in this time.
_VIEW_S: Final = 60.0
_VIEWS_REMEMBERED: Final = 10_000
_MOST_NAMED: Final = 500
_FIRST: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. when_ns: the writer's clock, stored_ns the hub's, since the Unix epoch; cameras SITE/CAMERA.

    previous: digest of the entry before, as it was stored; digest: of this one.
    """

    sequence: int
    stored_ns: int
    when_ns: int
    who: str
    what: str
    cameras: tuple[str, ...]
    detail: dict[str, Any] = field(default_factory=dict)
    previous: str = ""
    digest: str = ""

    def concerns(self, site: str, camera: str) -> bool:
        """Whether it tells of this camera."""
        pairs = (text.split("/", 1) for text in self.cameras if "/" in text)
        return any(s in {"*", site} and c in {"*", camera} for s, c in pairs)


def context(js: JetStreamContext) -> JetStreamContext:
    """JetStream of the account with the audit log, over the same connection."""
    return JetStreamContext(js._nc, prefix=subjects.AUDIT_API, timeout=js._timeout)


class AuditLog:
    """Writes a tenant's log; any number of programs may at the same time."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = context(js)
        self._lock = asyncio.Lock()
        # Sequence and digest of the newest entry, None while not known.
        self._newest: tuple[int, str] | None = None
        self._views: OrderedDict[tuple[str, str, tuple[str, ...]], float] = OrderedDict()

    async def viewed(self, who: str, what: Literal["view", "export"], cameras: Iterable[str]) -> None:
        """Tell that somebody is about to read results; raises `BusError`, and then nothing may be read."""
        named = _named(cameras)
        key, now = (who, what, named), time.monotonic()
        if now - self._views.get(key, -1e9) < _VIEW_S:
            return
        await self.record(who, what, named)
        self._views[key] = now
        self._views.move_to_end(key)
        while len(self._views) > _VIEWS_REMEMBERED:
            self._views.popitem(last=False)

    async def record(self, who: str, what: What, cameras: Iterable[str], **detail: Any) -> None:
        """Store an entry; raises `BusError`, and then what it tells of must not happen."""
        body = {
            "when_ns": time.time_ns(),
            "who": who[:200],
            "what": what,
            "cameras": list(_named(cameras)),
            "detail": detail,
        }
        async with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    if await self._append(body):
                        return
                except (TimeoutError, APIError, nats.errors.Error) as problem:
                    self._newest = None
                    reason = str(problem) or "no answer"
                    raise BusError(f"the audit log cannot be written ({reason}): nothing was done") from None
        raise BusError("the audit log is written by too many at a time: nothing was done; try again")

    async def _append(self, body: dict[str, Any]) -> bool:
        """False when somebody else was quicker."""
        if self._newest is None:
            self._newest = await self._read_newest()
        sequence, digest = self._newest
        data = json.dumps({**body, "previous": digest}, sort_keys=True).encode()
        try:
            ack = await self._js.publish(
                subjects.AUDIT_SUBJECT,
                data,
                timeout=_TIMEOUT_S,
                headers={"Nats-Expected-Last-Sequence": str(sequence)},
            )
        except APIError as problem:
            if problem.err_code != _WRONG_LAST_SEQUENCE:
                raise
            self._newest = None
            return False
        self._newest = (ack.seq, hashlib.sha256(data).hexdigest())
        return True

    async def _read_newest(self) -> tuple[int, str]:
        info = await self._js.stream_info(subjects.AUDIT)
        try:
            stored = await self._js.get_last_msg(subjects.AUDIT, subjects.AUDIT_SUBJECT)
        except NotFoundError:
            return info.state.last_seq, _FIRST
        return stored.seq or 0, hashlib.sha256(stored.data or b"").hexdigest()


async def read(js: JetStreamContext) -> AsyncIterator[Entry]:
    """Every entry that is kept, oldest first; raises `BusError`."""
    log = context(js)

    async def entry(sequence: int) -> Entry | None:
        # Any server may answer the first; one that has it not may be behind, and the stream's leader knows.
        for direct in (True, False):
            try:
                stored = await log.get_msg(subjects.AUDIT, sequence, direct=direct)
            except NotFoundError:
                continue
            stored_ns = int(stored.time.timestamp() * 1e9) if stored.time is not None else 0
            return _entry(stored.data or b"", sequence, stored_ns)
        return None

    try:
        state = (await log.stream_info(subjects.AUDIT)).state
        for start in range(max(1, state.first_seq), state.last_seq + 1, _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, state.last_seq + 1))
            for found in await asyncio.gather(*(entry(sequence) for sequence in some)):
                if found is not None:
                    yield found
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(f"the audit log cannot be read: {str(problem) or 'no answer'}") from None


@dataclass(slots=True)
class Chain:
    """Follows the entries and finds where the chain is broken."""

    entries: int = 0
    broken: list[str] = field(default_factory=list)
    _sequence: int = 0
    _digest: str = ""

    def follow(self, entry: Entry) -> None:
        """Take the next one."""
        if self.entries:
            if entry.sequence != self._sequence + 1:
                self.broken.append(f"entries {self._sequence + 1} to {entry.sequence - 1} are missing")
            elif entry.previous != self._digest:
                self.broken.append(f"entry {entry.sequence} does not follow entry {self._sequence}")
        elif entry.sequence == 1 and entry.previous != _FIRST:
            self.broken.append("entry 1 is not the first")
        self.entries += 1
        self._sequence, self._digest = entry.sequence, entry.digest


def _named(cameras: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(cameras))[:_MOST_NAMED])


def _entry(data: bytes, sequence: int, stored_ns: int) -> Entry:
    digest = hashlib.sha256(data).hexdigest()
    try:
        body = json.loads(data)
        return Entry(
            sequence,
            stored_ns,
            int(body["when_ns"]),
            str(body["who"]),
            str(body["what"]),
            tuple(str(camera) for camera in body["cameras"]),
            dict(body["detail"]),
            str(body["previous"]),
            digest,
        )
    except (ValueError, KeyError, TypeError):
        return Entry(sequence, stored_ns, 0, "", "unreadable", (), {}, "", digest)
