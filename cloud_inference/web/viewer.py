"""One browser: what is on its way there. A slow one loses pictures, never the pipeline a moment."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Final

from aiohttp import WSMsgType, web

from cloud_inference.access import Grant
from cloud_inference.web import forms
from cloud_inference.web.live import Lives, Unit
from cloud_inference.web.metrics import DROPPED
from cloud_inference.web.state import Session
from eyeline.errors import BusError, InvalidName

# What may wait for one browser; beyond it, pictures are dropped, and beyond that, the connection.
_MOST_PICTURE_BYTES: Final = 4 << 20
_MOST_TEXT_BYTES: Final = 8 << 20
_MOST_WATCHED: Final = 256
# A browser that falls behind twice within so long gets stills instead of video.
_SLOW_AGAIN_S: Final = 30.0
_TICK_S: Final = 1.0

SESSION_OVER: Final = 4401
TOO_SLOW: Final = 4408


class Viewer:
    """Serves one WebSocket until it closes."""

    def __init__(self, socket: web.WebSocketResponse, grant: Grant, session: Session, lives: Lives) -> None:
        self._socket, self._grant = socket, grant
        self._session, self._lives = session, lives
        self._outbox: deque[tuple[str, bytes | str]] = deque()
        self._wake = asyncio.Event()
        self._picture_bytes = self._text_bytes = 0
        self._watched: dict[str, bool] = {}
        self._joined: set[str] = set()
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._behind: set[str] = set()
        self._slow_s: dict[str, float] = {}
        self._close: tuple[int, str] | None = None

    async def serve(self) -> None:
        """Until the browser goes away, or its token ends."""
        writing = asyncio.create_task(self._write())
        ticking = asyncio.create_task(self._tick())
        try:
            self._session.join(self)
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    self._asked(message.data)
        finally:
            self._session.leave(self)
            self._watch({})
            tasks = [writing, ticking, *self._joining.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # What comes from others; none of it waits.

    def say(self, text: str) -> None:
        """A message of the page's protocol."""
        self._text_bytes += len(text)
        if self._text_bytes > _MOST_TEXT_BYTES:
            self.end(TOO_SLOW, "too slow")
            return
        self._outbox.append(("", text))
        self._wake.set()

    def end(self, code: int, reason: str) -> None:
        """Close the connection, saying why."""
        self._close = self._close or (code, reason)
        self._wake.set()

    def unit(self, camera: str, unit: Unit) -> None:
        """The next picture of a chain."""
        if camera in self._behind:
            return
        self._put(camera, unit.packet)

    def still(self, camera: str, packet: bytes) -> None:
        """A picture that stands alone: one that waits is replaced."""
        for item in [item for item in self._outbox if item[0] == camera]:
            self._outbox.remove(item)
            self._picture_bytes -= len(item[1])
        self._put(camera, packet)

    def _put(self, camera: str, packet: bytes) -> None:
        self._outbox.append((camera, packet))
        self._picture_bytes += len(packet)
        if self._picture_bytes > _MOST_PICTURE_BYTES:
            pictures = [item for item in self._outbox if item[0]]
            DROPPED.inc(len(pictures))
            self._behind |= {name for name, _ in pictures}
            self._outbox = deque(item for item in self._outbox if not item[0])
            self._picture_bytes = 0
        self._wake.set()

    # Writing

    async def _write(self) -> None:
        while not self._socket.closed:
            if self._close is not None:
                code, reason = self._close
                await self._socket.close(code=code, message=reason.encode()[:120])
                return
            if not self._outbox:
                self._catch_up()
            if not self._outbox:
                self._wake.clear()
                await self._wake.wait()
                continue
            _, data = self._outbox.popleft()
            try:
                if isinstance(data, str):
                    self._text_bytes -= len(data)
                    await self._socket.send_str(data)
                else:
                    self._picture_bytes -= len(data)
                    await self._socket.send_bytes(data)
            except ConnectionError:
                return

    def _catch_up(self) -> None:
        """Everything has gone out: those that were dropped start over at their keyframe, or with stills."""
        behind, self._behind = self._behind, set()
        for camera in behind & set(self._watched):
            now = time.monotonic()
            video = self._watched[camera] and now - self._slow_s.get(camera, -1e9) > _SLOW_AGAIN_S
            self._slow_s[camera] = now
            self._join(camera, video=video)

    async def _tick(self) -> None:
        """The server's clock, so that the page knows how old things are and that we are there."""
        while True:
            if self._grant.expired:
                self.end(SESSION_OVER, "this token has expired")
            for camera in set(self._watched) - self._joined - set(self._joining):  # the hub was away
                self._join(camera, video=self._watched[camera])
            self.say(json.dumps({"type": "tick", "now": time.time() * 1e3, "problem": self._session.problem}))
            await asyncio.sleep(_TICK_S)

    # What the browser asks for

    def _asked(self, text: str) -> None:
        try:
            asked = json.loads(text)
            wanted = {
                "/".join(forms.camera_name(name)): str(how)
                for name, how in dict(asked["cameras"]).items()
                if how in {"video", "stills"}
            }
        except (ValueError, KeyError, TypeError, AttributeError, InvalidName):
            return
        allowed = {
            name: how == "video" for name, how in wanted.items() if self._grant.covers(*name.split("/"))
        }
        self._watch(dict(list(allowed.items())[:_MOST_WATCHED]))

    def _watch(self, wanted: dict[str, bool]) -> None:
        """Look at these cameras and no others; True for video."""
        before, self._watched = self._watched, wanted
        for camera in before:
            if camera not in wanted:
                self._joined.discard(camera)
                live = self._lives.get(self._grant.tenant, camera)
                if live is not None:
                    live.leave(self)
        for camera, video in wanted.items():
            if before.get(camera) != video:
                self._join(camera, video=video)

    def _join(self, camera: str, *, video: bool) -> None:
        if camera in self._joining:
            self._joining[camera].cancel()
        self._joining[camera] = task = asyncio.create_task(self._look(camera, video=video))
        task.add_done_callback(lambda done: self._looked(camera, done))

    def _looked(self, camera: str, done: asyncio.Task[None]) -> None:
        if self._joining.get(camera) is done:
            del self._joining[camera]

    async def _look(self, camera: str, *, video: bool) -> None:
        """Join those who look at the camera, once the audit log says so."""
        try:
            await self._lives.looks(self._grant, camera)
        except BusError:
            live = None  # tried again with the next tick
        else:
            if camera not in self._watched:
                return
            live = self._lives.get(self._grant.tenant, camera)
        if live is not None:
            self._joined.add(camera)
            live.join(self, video=video)
        self.say(
            json.dumps({"type": "watching", "camera": camera, "video": video, "there": live is not None})
        )
