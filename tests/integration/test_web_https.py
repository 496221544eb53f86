"""The page beyond this machine: HTTPS of its own or of a proxy, and an API that asks for certificates."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import expect

from cloud_inference import pki
from cloud_inference.config import CloudSettings
from cloud_inference.hub import LocalHub
from cloud_inference.web.server import serve
from eyeline.errors import ConfigError
from tests.support.access import Issuer
from tests.support.api import result, store
from tests.support.chromium import chromium, watched
from tests.support.eventually import eventually
from tests.support.web import Browser, running_web
from tests.support.web_scene import Scene

# A name beyond this machine: nothing is let off on it that browsers let localhost off.
NAME = "page.example"


@pytest.fixture
def files(tmp_path: Path) -> pki.Files:
    return pki.ensure(tmp_path / "tls", ["127.0.0.1", NAME])


def own(files: pki.Files) -> dict[str, str]:
    """The page's settings for HTTPS of its own."""
    return {"tls_cert": str(files.certificate), "tls_key": str(files.key)}


@contextlib.asynccontextmanager
async def proxy(url: str, files: pki.Files) -> AsyncIterator[str]:
    """Ends TLS in front of that address; its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    port = int(url.rstrip("/").rpartition(":")[2])

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


async def check_secure(browser: Browser, token: str, js: object) -> None:
    """Logging in, the cookie, what the page may do, and answers over WebSocket."""
    assert browser.url.startswith("https://")
    assert (await browser.get("/api/me"))[0] == 401
    assert await browser.log_in(token) == 204
    (cookie,) = browser.session.cookie_jar
    assert (cookie.key, cookie["path"], cookie["domain"]) == ("__Host-eyeline", "/", "127.0.0.1")
    assert cookie["secure"]
    assert cookie["httponly"]
    status, _, headers = await browser.get("/")
    assert status == 200
    assert headers["Strict-Transport-Security"] == "max-age=31536000"
    assert (
        f"connect-src 'self' wss://{browser.url.partition('://')[2]};" in headers["Content-Security-Policy"]
    )
    assert (await browser.json("/api/me"))["cameras"] == ["yard/gate"]
    await store(js, [result(1), result(1, camera="dock")])
    async with browser.live():
        await eventually(browser.results)
    assert {one["camera"] for one in browser.results()} == {"yard/gate"}


async def test_https_of_its_own_and_plain_http_gets_nothing(
    hub: LocalHub, js: object, files: pki.Files, tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path)
    token = issuer.token(cameras=["yard/gate"], methods=["read"])
    async with (
        running_web(hub, token_keys=[str(issuer.public)], web=own(files)) as url,
        Browser(url, files.ca) as browser,
    ):
        plain = url.replace("https://", "http://")
        async with Browser(plain) as clear:
            with pytest.raises(aiohttp.ClientConnectionError):
                await clear.get("/")
            with pytest.raises(aiohttp.ClientConnectionError):
                await clear.log_in(token)
        # ... and nothing else than the end of the connection comes of it.
        await check_secure(browser, token, js)


async def test_tls_that_ends_at_a_proxy(hub: LocalHub, js: object, files: pki.Files, tmp_path: Path) -> None:
    """For browsers all is as with HTTPS of the page's own."""
    issuer = Issuer(tmp_path)
    token = issuer.token(cameras=["yard/gate"], methods=["read"])
    page = {"behind_tls_proxy": True}
    async with running_web(hub, token_keys=[str(issuer.public)], web=page) as url:
        assert url.startswith("http://")
        async with proxy(url, files) as public, Browser(public, files.ca) as browser:
            await check_secure(browser, token, js)
            # Somebody who talks to it in clear text all the same: the cookie does not come along.
            status, _, _ = await browser.get("/api/me")
            assert status == 200
            async with browser.session.get(f"{url}api/me") as answer:
                assert answer.status == 401


async def test_an_api_that_asks_for_certificates(
    hub: LocalHub, js: object, files: pki.Files, tmp_path: Path
) -> None:
    """The page shows its own there, which may see everything; visitors see what their tokens cover."""
    issuer = Issuer(tmp_path)
    page = pki.issue_client(tmp_path / "tls", tmp_path / "clients", "page", "Acme")
    api = {
        "token_keys": [str(issuer.public)],
        "tls_cert": str(files.certificate),
        "tls_key": str(files.key),
        "client_ca": str(files.ca),
        "clients": [{"subject": "CN=page,O=Acme", "tenant": "acme"}],
    }
    shown = {"api_ca": str(files.ca), "api_cert": str(page.certificate), "api_key": str(page.key)}
    async with running_web(hub, web=shown, **api) as url, Browser(url, files.ca) as browser:
        await check_secure(browser, issuer.token(cameras=["yard/gate"], methods=["read"]), js)


@pytest.mark.parametrize(
    ("tokens", "says"), [({"t": "acme"}, "set web.api_cert and web.api_key"), ({}, "needs tokens")]
)
async def test_a_page_that_its_api_would_refuse(tokens: dict[str, str], says: str, files: pki.Files) -> None:
    api = {"tls_cert": str(files.certificate), "tls_key": str(files.key), "client_ca": str(files.ca)}
    settings = CloudSettings.model_validate(
        {
            "api": {**api, "tokens": tokens},
            "hub": {"tenants": [{"name": "acme"}], "url": "nats://127.0.0.1:9"},
        }
    )
    with pytest.raises(ConfigError, match=says):
        async with serve(settings):
            pass


@pytest.mark.long
async def test_a_browser_beyond_this_machine(
    hub: LocalHub, js: object, files: pki.Files, tmp_path: Path
) -> None:
    """HTTPS under a name makes a secure context: logged in with a token, pictures come by WebCodecs."""
    issuer = Issuer(tmp_path)
    scene = Scene(js, ["gate"])
    async with (
        chromium(f"--host-resolver-rules=MAP {NAME} 127.0.0.1") as browser,
        running_web(hub, token_keys=[str(issuer.public)], web=own(files)) as url,
        scene.playing(),
        # The authority is of this test alone.
        watched(browser, ignore_https_errors=True) as seen,
    ):
        await seen.page.goto(url.replace("127.0.0.1", NAME))
        assert await seen.page.evaluate("window.isSecureContext")
        await seen.page.get_by_label("Access token").fill(issuer.token(methods=["read"]))
        await seen.page.get_by_role("button", name="Log in").click()
        await expect(seen.page.locator(".tile")).to_have_attribute("data-state", "live")
        await eventually(
            lambda: seen.page.evaluate("Number(document.querySelector('.picture').dataset.sequence)")
        )
        assert await seen.page.evaluate("window.eyeline.page.views[0].how") == "video"
        (cookie,) = await seen.page.context.cookies()
        assert (cookie["name"], cookie["secure"], cookie["domain"]) == ("__Host-eyeline", True, NAME)
