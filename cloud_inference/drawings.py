"""What is drawn on a tenant's cameras: the zones and lines of the hub's DESIRED bucket, followed."""

from __future__ import annotations

import structlog
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.js import JetStreamContext

from cloud_inference.feed import Feed
from eyeline import subjects
from eyeline.v1 import device_pb2

_log = structlog.get_logger()


class Drawings:
    """Known as far as `run` has read."""

    def __init__(self, connection: Client, js: JetStreamContext) -> None:
        self._connection, self._js = connection, js
        self._known: dict[str, dict[str, device_pb2.DesiredCamera]] = {}

    async def run(self) -> None:
        """Follow, for ever."""
        prefix = f"$KV.{subjects.DESIRED}."
        stream = f"KV_{subjects.DESIRED}"
        feed = Feed(self._connection, self._js, stream, [f"{prefix}>"], last_per_subject=True)
        try:
            while True:
                for message in await feed.take():
                    key = message.subject.removeprefix(prefix)
                    if message.headers.get("KV-Operation") in {"DEL", "PURGE"}:
                        self._known.pop(key, None)
                    else:
                        self._take(key, message.data)
        finally:
            await feed.close()

    def _take(self, key: str, data: bytes) -> None:
        try:
            config = device_pb2.DesiredConfig.FromString(data)
        except DecodeError:
            _log.error("desired_unreadable", key=key)
            return
        before = self._known.get(key, {})
        # A camera whose part did not change keeps its object.
        self._known[key] = {
            it.camera: before[it.camera] if before.get(it.camera) == it else it for it in config.cameras
        }

    def of(self, site: str, device: str, camera: str) -> device_pb2.DesiredCamera | None:
        """What is wanted of a camera, None when nothing is: the same object until it changes."""
        return self._known.get(subjects.desired_key(site, device), {}).get(camera)
