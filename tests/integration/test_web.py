"""The web page's server: who sees what, what browsers are told to allow, live pixels, stored results."""

from __future__ import annotations

import json
import time
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET

import cv2
import numpy as np
import pytest
from nats.js import JetStreamContext
from prometheus_client import generate_latest

from cloud_inference import audit
from cloud_inference.config import CloudSettings
from cloud_inference.hub import LocalHub
from cloud_inference.web.server import serve
from eyeline import subjects
from eyeline.errors import ConfigError
from eyeline.subjects import status_subject
from eyeline.v1 import device_pb2, frame_pb2
from tests.support.access import Issuer
from tests.support.api import result, store
from tests.support.eventually import eventually
from tests.support.programs import metric
from tests.support.servers import cloud_client
from tests.support.simulated import Device, picture, publish
from tests.support.web import Browser, running_web


def status(*cameras: str) -> bytes:
    return device_pb2.DeviceStatus(
        schema_major=1,
        site="yard",
        device="box1",
        agent_version="1.2.3",
        hub_connected=True,
        cameras=[device_pb2.CameraStatus(camera=name, rung="h264 416px crf30 2fps") for name in cameras],
    ).SerializeToString()


async def test_what_browsers_are_told(hub: LocalHub) -> None:
    """Nothing from elsewhere, nothing inline, no frame around it, and no file but the page's own."""
    async with running_web(hub) as url, Browser(url) as browser:
        for path in ("/", "/static/main.js", "/api/me", "/nothing"):
            _, _, headers = await browser.get(path)
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
        status, page, headers = await browser.get("/")
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert b"<style" not in page
        assert b" style=" not in page
        assert page.count(b"<script") == page.count(b'<script type="module" src="/static/')
        status, _, headers = await browser.get("/static/main.js")
        assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
        again, body, _ = await browser.get("/static/main.js", **{"If-None-Match": headers["ETag"]})
        assert (again, body) == (304, b"")
        for path in (
            "/static/..%2f..%2fserver.py",
            "/static/%2e%2e%2fauth.py",
            "/static/../server.py",
            "/static/",
        ):
            status, body, _ = await browser.get(path)
            assert status == 404, path
            assert b"import" not in body


def test_the_page_asks_nobody_else() -> None:
    """No address outside in any of its files."""
    for file in (Path(__file__).parents[2] / "cloud_inference/web/static").iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text.replace('"}://${location.host}', ""), file.name
        assert "innerHTML" not in text, file.name


async def test_no_look_without_a_token(hub: LocalHub, tmp_path: Path) -> None:
    """Refused without one, with a foreign, expired or write-only one; let in with a good one, by cookie."""
    issuer, stranger = Issuer(tmp_path), Issuer(tmp_path, "stranger")
    async with running_web(hub, token_keys=[str(issuer.public)]) as url, Browser(url) as browser:
        for path in (
            "/api/me",
            "/api/results?camera=yard/gate&from=0&to=1",
            "/live",
            "/api/picture?camera=yard/gate",
        ):
            assert (await browser.get(path))[0] == 401
        bad = (
            stranger.token(),
            issuer.token(methods=["write"]),
            issuer.token(audience="other"),
            "",
            "x" * 9000,
        )
        for token in (*bad, issuer.token("nobody"), issuer.token(expires_s=-60)):
            assert await browser.log_in(token) == 401
        assert (await browser.get("/api/me"))[0] == 401
        assert await browser.log_in(issuer.token(cameras=["yard/gate"], methods=["read"])) == 204
        (cookie,) = browser.session.cookie_jar
        assert cookie["httponly"]
        assert cookie["samesite"] == "Strict"
        assert await browser.json("/api/me") | {"expires": 0} == {
            "open": False, "tenant": "acme", "cameras": ["yard/gate"], "methods": ["read"], "expires": 0,
        }  # fmt: skip


async def test_requests_of_other_sites_are_refused(hub: LocalHub) -> None:
    """A page elsewhere cannot use an open page here: neither by its own name, nor by one that points here."""
    async with running_web(hub, open_to_all=True) as url, Browser(url) as browser:
        assert (await browser.get("/api/me"))[0] == 200
        assert (await browser.get("/api/me", Host="rebound.example:80"))[0] == 403
        assert (await browser.get("/api/me", Origin="https://example.org"))[0] == 403
        assert (await browser.get("/api/me", **{"Sec-Fetch-Site": "cross-site"}))[0] == 403
        assert (await browser.get("/live", Origin="https://example.org"))[0] == 403
        async with browser.session.put(
            f"{url}api/drawing?camera=yard/gate", json={}, headers={"Origin": "http://example.org"}
        ) as answer:
            assert answer.status == 403


async def test_a_viewer_sees_their_cameras_alone(hub: LocalHub, js: object, tmp_path: Path) -> None:
    """Results, devices, pixels and history follow the token's scope, and the tenant."""
    issuer = Issuer(tmp_path)
    async with running_web(hub, token_keys=[str(issuer.public)]) as url, Browser(url) as browser:
        for camera in ("gate", "dock"):
            await store(js, [result(1, camera=camera)])
            await publish(js, Device(device="box1", camera=camera).frames(3))
        await js.publish(status_subject("yard", "box1"), status("gate", "dock"))  # type: ignore[attr-defined]
        assert await browser.log_in(issuer.token(cameras=["yard/gate"], methods=["read"])) == 204
        async with browser.live({"yard/gate": "video", "yard/dock": "video"}):
            await eventually(lambda: browser.results() and browser.pictures and browser.told("devices"))
            await store(js, [result(2, camera="dock"), result(3, camera="dock")])
            await store(js, [result(2, camera="gate")])
            await eventually(lambda: browser.results(lambda one: one["sequence"] == 2))
        assert {one["camera"] for one in browser.results()} == {"yard/gate"}
        assert {header["camera"] for header, _ in browser.pictures} == {"yard/gate"}
        (device,) = browser.told("devices")[-1]["devices"]
        assert [camera["camera"] for camera in device["cameras"]] == ["gate"]
        for path in (
            "results?from=0&to=1000",
            "timeline?from=0&to=1000&pieces=3",
            "picture?epoch=1:00&sequence=1",
        ):
            assert (await browser.get(f"/api/{path}&camera=yard/dock"))[0] == 403
            assert (await browser.get(f"/api/{path}&camera=yard/..%2fdock"))[0] == 400
        async with Browser(url) as other:
            assert await other.log_in(issuer.token("globex")) == 204
            async with other.live({"yard/gate": "video"}):
                await eventually(lambda: len(other.told("tick")) > 1)
            assert (other.results(), other.pictures, other.told("devices")[-1]["devices"]) == ([], [], [])
        # Reading is no leave to draw.
        async with browser.session.put(
            f"{url}api/drawing?camera=yard/gate", json={"device": "box1", "revision": 0, "drawing": {}}
        ) as answer:
            assert answer.status == 403


async def test_a_token_that_expires_ends_the_view(hub: LocalHub, js: object, tmp_path: Path) -> None:
    """The connection is closed with the reason, not left open."""
    issuer = Issuer(tmp_path)
    async with running_web(hub, token_keys=[str(issuer.public)]) as url, Browser(url) as browser:
        # As far back as the clocks' leeway allows, so that it is over in a moment.
        assert await browser.log_in(issuer.token(expires_s=-2)) == 204
        async with browser.live():
            await eventually(lambda: browser.closed == 4401, within_s=15)


async def test_who_joins_gets_the_open_chain_from_its_keyframe(hub: LocalHub, js: object) -> None:
    """In order, without holes, and as stills for those who cannot decode; both with their sequences."""
    device = Device(device="box1")
    await publish(js, device.frames(4))
    await publish(js, device.frames(5, keyframe_first=True))
    late = device.frames(1)
    late[0].lane = frame_pb2.LANE_BACKLOG
    await publish(js, late)
    async with running_web(hub, open_to_all=True) as url, Browser(url) as one, Browser(url) as two:
        async with one.live({"yard/gate": "video"}), two.live({"yard/gate": "stills"}):
            await eventually(lambda: len(one.pictures) >= 5 and two.pictures)
            await publish(js, device.frames(2))  # after a hole: nothing that could be wrong is shown
            await publish(js, device.frames(3, keyframe_first=True))
            await eventually(lambda: one.pictures[-1][0]["sequence"] == device.sequence)
            await eventually(lambda: two.pictures[-1][0]["sequence"] == device.sequence)
        sequences = [header["sequence"] for header, _ in one.pictures]
        assert sequences == [*range(5, 10), 13, 14, 15]
        first, data = one.pictures[0]
        assert first["key"] is True
        assert first["format"]["source"] == [256, 192]
        assert data[:4] == b"\0\0\0\1"
        header, jpeg = two.pictures[-1]
        shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert header["kind"] == "still"
        assert np.abs(shown.astype(int) - picture(15)).mean() < 6
        # Somebody who comes later gets the chain that is open now, and the picture of any of its frames.
        async with Browser(url) as three:
            async with three.live({"yard/gate": "video"}):
                await eventually(lambda: len(three.pictures) == 3)
            epoch = three.pictures[0][0]["epoch"]
            code, jpeg, headers = await three.get(f"/api/picture?camera=yard/gate&epoch={epoch}&sequence=14")
            said = json.loads(headers["Eyeline-Picture"])
            assert (code, said["sequence"], said["format"]) == (200, 14, first["format"])
            shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            assert np.abs(shown.astype(int) - picture(14)).mean() < 6
            assert (await three.get(f"/api/picture?camera=yard/gate&epoch={epoch}&sequence=9"))[0] == 204


async def test_every_look_is_told_and_what_is_erased_is_seen_no_more(
    hub: LocalHub, js: JetStreamContext, tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path)
    token = issuer.signed(sub="guard", methods=["read"])
    device = Device(device="box1")
    async with running_web(hub, token_keys=[str(issuer.public)]) as url, Browser(url) as browser:
        await publish(js, device.frames(4))
        assert await browser.log_in(token) == 204

        async def looks() -> list[tuple[str, ...]]:
            entries = [it async for it in audit.read(js) if it.who.startswith("guard (")]
            return [it.cameras for it in entries if it.cameras == ("yard/gate",)]

        assert (await browser.get("/api/picture?camera=yard/gate&epoch=1:00&sequence=1"))[0] == 204
        assert await looks() == [("yard/gate",)]
        async with browser.live({"yard/gate": "video"}), Browser(url) as late:
            await eventually(lambda: len(browser.pictures) == 4)
            epoch = browser.pictures[0][0]["epoch"]
            path = f"/api/picture?camera=yard/gate&epoch={epoch}&sequence=3"
            assert (await browser.get(path))[0] == 200
            # As `erase` does it, while somebody looks.
            await js.purge_stream(subjects.FRAMES)
            client = await cloud_client(hub)
            await client.publish(subjects.erased_subject("yard", "gate"), b"")
            await client.flush()
            await eventually(lambda: gone(browser, path))
            await publish(js, device.frames(2))  # what depends on what was erased is of no use
            assert await late.log_in(token) == 204
            async with late.live({"yard/gate": "video"}):
                await publish(js, device.frames(2, keyframe_first=True))
                await eventually(lambda: len(late.pictures) == 2)
            assert [header["sequence"] for header, _ in late.pictures] == [7, 8]
            await client.close()


async def gone(browser: Browser, path: str) -> bool:
    return (await browser.get(path))[0] == 204


async def test_stored_results_are_listed_and_counted(hub: LocalHub, js: object) -> None:
    """For the timeline: single answers, and frames by provenance in each piece of the time."""
    begin_ms = int(time.time()) * 1000 - 60_000
    for sequence in range(1, 11):
        captured = (begin_ms + sequence * 100 - 50) * 1_000_000
        await store(js, [result(sequence, captured_ns=captured, objects=sequence % 3)])
    async with running_web(hub, open_to_all=True) as url, Browser(url) as browser:
        span = f"camera=yard/gate&from={begin_ms}&to={begin_ms + 2000}"
        listed = await browser.json(f"/api/results?{span}")
        assert [one["sequence"] for one in listed["results"]] == list(range(1, 11))
        assert listed["results"][0]["boxes"] == [[1, 2, 3, 4, 0.9, 0, "square"]]
        counted = await browser.json(f"/api/timeline?{span}&pieces=4")
        assert [piece["cloud"] for piece in counted["pieces"]] == [5, 5, 0, 0]
        assert counted["pieces"][0]["objects"] == 2
        for bad in ("from=2&to=1", "from=0&to=1e12", "from=x&to=1", "to=1", "from=nan&to=1", "from=-5&to=1"):
            assert (await browser.get(f"/api/results?camera=yard/gate&{bad}"))[0] == 400, bad
        assert (await browser.get("/api/results?camera=gate&from=0&to=1"))[0] == 400


@pytest.mark.long
async def test_a_slow_browser_loses_pictures_and_holds_nobody_up(hub: LocalHub, js: object) -> None:
    """What waits for it is bounded; another viewer of the same camera gets everything."""
    device = Device(device="box1")
    async with (
        running_web(hub, open_to_all=True) as url,
        Browser(url) as quick,
        Browser(url) as slow,
        quick.live({"yard/gate": "video"}),
    ):
        # Reads nothing, and its socket takes little.
        socket = await slow.session.ws_connect(f"{url}live", headers={"Origin": slow.url})
        socket.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        await socket.send_json({"cameras": {"yard/gate": "video"}})
        await publish(js, device.frames(1))
        await eventually(lambda: quick.pictures)
        dropped = metric(generate_latest().decode(), "eyeline_cloud_web_dropped_pictures_total")
        for _ in range(20):
            made = device.frames(10, keyframe_first=True)
            for envelope in made:  # large ones
                envelope.items[0].access_unit.data += b"\0" * 80_000
            await publish(js, made)
        await eventually(lambda: len(quick.pictures) == 201, within_s=20)
        assert metric(generate_latest().decode(), "eyeline_cloud_web_dropped_pictures_total") > dropped
        await socket.close()


@pytest.mark.parametrize(
    ("web", "api", "says"),
    [
        ({"host": "0.0.0.0"}, {}, "would show everything to everybody"),  # noqa: S104
        ({"host": "0.0.0.0"}, {"tokens": {"t": "acme"}}, "clear text"),  # noqa: S104
        ({}, {"port": 0}, "web.api must be HOST:PORT"),
        # Whoever reaches the proxy would see it.
        ({"behind_tls_proxy": True}, {}, "behind a proxy would show everything"),
        (
            {"api_ca": "nothing.pem", "api": "127.0.0.1:9"},
            {"tokens": {"t": "acme"}},
            "nothing.pem cannot be read",
        ),
    ],
)
async def test_settings_that_would_show_too_much(
    web: dict[str, object], api: dict[str, object], says: str
) -> None:
    settings = CloudSettings.model_validate(
        {"web": web, "api": api, "hub": {"tenants": [{"name": "acme"}], "url": "nats://127.0.0.1:9"}}
    )
    with pytest.raises(ConfigError, match=says):
        async with serve(settings):
            pass
