"""What the cloud wants of this device: its entry in the hub's DESIRED bucket, followed and remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from edge_agent.durable import write_durable
from edge_agent.link import Link, Refused, Session
from eyeline.errors import BusError
from eyeline.subjects import DESIRED, desired_key
from eyeline.v1 import device_pb2

_log = structlog.get_logger()

_EVERY_S: Final = 2.0
_MOST_BYTES: Final = 1 << 20


class Desired:
    """The desired configuration in force.

    apply: called with it when it changes, None for the local one. unknown: called when what an earlier run
    was told cannot be read: it may have named masks, so no pixels may leave until the hub says it again.
    """

    def __init__(
        self,
        hub: Link,
        *,
        site: str,
        device: str,
        state_dir: Path,
        apply: Callable[[device_pb2.DesiredConfig | None], None],
        unknown: Callable[[], None] = lambda: None,
        every_s: float = _EVERY_S,
    ) -> None:
        self._hub, self._apply, self._unknown, self._every_s = hub, apply, unknown, every_s
        self._subject = f"$JS.API.DIRECT.GET.KV_{DESIRED}.$KV.{DESIRED}.{desired_key(site, device)}"
        self._file = state_dir / "desired.bin"
        self.revision = 0
        # As they are kept: a hub made anew counts from one, so that a revision alone says too little.
        self._known = b""
        self._is_unknown = self._is_lost = False

    def recall(self) -> None:
        """Apply what an earlier run was told, so that a device without a link keeps to it."""
        try:
            config = device_pb2.DesiredConfig.FromString(self._file.read_bytes()[:_MOST_BYTES])
        except FileNotFoundError:
            return
        except (OSError, DecodeError) as problem:
            _log.error("desired_unreadable", reason=str(problem))
            self._is_unknown = True
            self._unknown()
            return
        self._use(config)

    async def run(self) -> None:
        """Follow the hub, for ever."""
        while True:
            session = await self._hub.ready()
            try:
                await self._ask(session)
            except (BusError, DecodeError) as problem:
                _log.debug("desired_unanswered", reason=str(problem))
            await asyncio.sleep(self._every_s)

    async def _ask(self, session: Session) -> None:
        try:
            answer = await session.request(self._subject, timeout_s=5)
        except Refused:
            return  # no such bucket yet
        headers = answer.headers or {}
        if "Nats-Sequence" not in headers:
            if headers.get("Status") == "404":
                self._nothing()
            return
        if headers.get("KV-Operation") in {"DEL", "PURGE"}:
            self._forget()
            return
        config = device_pb2.DesiredConfig.FromString(answer.data[:_MOST_BYTES])
        config.revision = int(headers["Nats-Sequence"])
        if _bytes(config) == self._known:
            self._is_lost = False
            return
        self._use(config)
        try:
            write_durable(self._file, self._known)
        except OSError as problem:
            _log.warning("desired_not_written", reason=problem.strerror)

    def _use(self, config: device_pb2.DesiredConfig) -> None:
        self.revision, self._known = config.revision, _bytes(config)
        self._is_unknown = self._is_lost = False
        _log.info("desired_config", revision=config.revision, cameras=[it.camera for it in config.cameras])
        self._apply(config)

    def _nothing(self) -> None:
        """The hub has none, or lost them: masks and erasures are not to be forgotten that way."""
        if self.revision and not self._is_lost:
            self._is_lost = True
            _log.warning("desired_config_lost", revision=self.revision, effect="kept as it was")
        elif not self.revision:
            self._forget()

    def _forget(self) -> None:
        if self.revision or self._is_unknown:
            self.revision, self._known, self._is_unknown = 0, b"", False
            _log.info("desired_config", revision=0)
            self._file.unlink(missing_ok=True)
            self._apply(None)


def _bytes(config: device_pb2.DesiredConfig) -> bytes:
    return config.SerializeToString(deterministic=True)
