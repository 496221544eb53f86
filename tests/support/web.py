"""The real web page's server over the real hub and API, and a browser's requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp

from cloud_inference.config import CloudSettings
from cloud_inference.hub import LocalHub
from cloud_inference.web.server import serve
from tests.support.api import running_api, settings
from tests.support.eventually import eventually


@contextlib.asynccontextmanager
async def running_web(
    hub: LocalHub, *, open_to_all: bool = False, port: int = 0, web: dict[str, Any] | None = None, **api: Any
) -> AsyncIterator[str]:
    """Hub, API and page, the page's address; tokens as the API's. open_to_all: for `acme`, without tokens.
    web: more settings of the page.
    """
    page = {"port": port, "stills_fps": 10, **(web or {})}
    if open_to_all:
        async with open_api(hub) as (chosen, address), _page(chosen, address, page) as url:
            yield url
        return
    async with running_api(hub, **api) as serving:
        chosen = settings(hub, **api).model_dump(exclude_unset=True)
        async with _page(chosen, serving.address, page) as url:
            yield url


@contextlib.asynccontextmanager
async def open_api(hub: LocalHub) -> AsyncIterator[tuple[dict[str, Any], str]]:
    """An API that asks for nothing, for the tenant `acme`: its settings and address."""
    from cloud_inference.api.server import serve as serve_api  # noqa: PLC0415
    from tests.support.api import BrightModel  # noqa: PLC0415
    from tests.support.cards import square_card  # noqa: PLC0415

    tenant = {"name": "acme", "creds_file": str(hub.tenant("acme").cloud)}
    chosen: dict[str, Any] = {"hub": {"url": hub.url, "tenants": [tenant]}, "api": {"port": 0}}
    async with serve_api(CloudSettings.model_validate(chosen), BrightModel(), square_card()) as serving:
        await eventually(lambda: serving.tenants.hubs and serving.tenants.hubs["acme"].ready)
        yield chosen, serving.address


@contextlib.asynccontextmanager
async def _page(chosen: dict[str, Any], address: str, web: dict[str, Any]) -> AsyncIterator[str]:
    chosen = {**chosen, "web": {"api": address, **web}}
    async with serve(CloudSettings.model_validate(chosen)) as page:
        yield page.url


class Browser:
    """Requests as a page of that address makes them, with its cookies. ca: whom it trusts."""

    def __init__(self, url: str, ca: Path | None = None) -> None:
        self.url = url.rstrip("/")
        trust = ssl.create_default_context(cafile=ca) if ca is not None else True
        self.session = aiohttp.ClientSession(
            # Browsers keep cookies of 127.0.0.1 too.
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            connector=aiohttp.TCPConnector(ssl=trust),
        )
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[tuple[dict[str, Any], bytes]] = []
        self.closed: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def log_in(self, token: str) -> int:
        headers = {"Origin": self.url}
        async with self.session.post(f"{self.url}/login", json={"token": token}, headers=headers) as answer:
            return answer.status

    async def get(self, path: str, **headers: str) -> tuple[int, bytes, Any]:
        async with self.session.get(f"{self.url}{path}", headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.read(), answer.headers

    async def json(self, path: str) -> Any:
        status, body, _ = await self.get(path)
        assert status == 200, body
        return json.loads(body)

    @contextlib.asynccontextmanager
    async def live(
        self, cameras: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The page's connection, with everything that comes kept in `messages` and `pictures`."""
        headers = {"Origin": self.url}
        async with self.session.ws_connect(f"{self.url}/live", headers=headers) as socket:
            if cameras:
                await socket.send_json({"cameras": cameras})
            reading = asyncio.create_task(self._read(socket))
            try:
                yield socket
            finally:
                reading.cancel()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                self.messages.append(json.loads(message.data))
            else:
                self.pictures.append(unpack(message.data))
        self.closed = socket.close_code

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    def results(self, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[dict[str, Any]]:
        return [one for message in self.told("results") for one in message["results"] if wanted(one)]


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and picture of a message."""
    (length,) = struct.unpack_from(">I", data)
    return json.loads(data[4 : 4 + length]), data[4 + length :]
