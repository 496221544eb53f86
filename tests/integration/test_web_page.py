"""The page in a real browser: pictures with boxes on them, what stale looks like, keys, and who sees what."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from benchmarks import reference
from benchmarks.demo import CLIP
from benchmarks.web_replay import Replay, record
from cloud_inference.hub import LocalHub
from eyeline.v1 import device_pb2
from eyeline_models import catalogue
from tests.support.access import Issuer
from tests.support.chromium import watched
from tests.support.eventually import eventually
from tests.support.on_stage import NO_DECODER, measured, on_stage
from tests.support.servers import cloud_client
from tests.support.web import running_web
from tests.support.web_scene import Scene, box

pytestmark = pytest.mark.long


def tile(page: Page, camera: str) -> Any:
    return page.locator(f'.tile[data-camera="{camera}"]')


@pytest.mark.parametrize(("how", "script"), [("video", ""), ("stills", NO_DECODER)])
async def test_boxes_move_with_the_picture(
    hub: LocalHub, js: Any, browser: Browser, how: str, script: str
) -> None:
    """By both ways to a picture: what is drawn is the stored answer of the very frame shown, within 2 px."""
    scene = Scene(js, ["gate"])
    async with on_stage(hub, scene, browser, script=script) as (url, seen):
        await seen.page.goto(url)
        sequences = set()
        for _ in range(6):
            shown = await measured(seen.page, "yard/gate")
            sequence = shown["sequence"]
            sequences.add(sequence)
            stored = box(sequence)
            for drawn, wanted in zip(shown["box"], stored, strict=True):
                assert abs(drawn - wanted) * shown["perSource"] <= 2, (shown, stored)
            # The square itself, which was scaled and coded, is where the box says.
            for pixel, wanted in zip(shown["bright"], stored, strict=True):
                assert abs(pixel - wanted) <= 4, (shown, stored)
            await eventually(
                lambda last=sequence: seen.page.evaluate(  # type: ignore[misc]
                    "last => Number(document.querySelector('.picture').dataset.sequence) > last", last
                )
            )
        assert len(sequences) == 6
        decoding = await seen.page.evaluate("window.eyeline.page.views[0].how")
        assert decoding == how
        assert seen.problems == []


async def test_stale_and_unchanged_look_different(hub: LocalHub, js: Any, browser: Browser) -> None:
    """Each within 3 s, by a word and by looks; and back again."""
    scene = Scene(js, ["busy", "calm", "dead"])
    scene.dropped = {"spool_full": 12}
    async with on_stage(hub, scene, browser) as (url, seen):
        page = seen.page
        await page.goto(url)
        for name in scene.devices:
            await expect(tile(page, f"yard/{name}")).to_have_attribute("data-state", "live")
            await measured(page, f"yard/{name}")
        await expect(tile(page, "yard/busy")).to_contain_text("12 dropped: spool full")
        await expect(tile(page, "yard/busy")).to_contain_text("h264 128px crf20 5fps")
        await expect(tile(page, "yard/busy")).to_contain_text("of 8.0 KB/s")
        scene.idle.add("calm")
        scene.quiet.add("dead")
        await expect(tile(page, "yard/dead")).to_have_attribute("data-state", "stale", timeout=3000)
        await expect(tile(page, "yard/dead").locator(".chip")).to_have_text(re.compile("Stale [23] s"))
        await expect(tile(page, "yard/calm")).to_have_attribute("data-state", "idle")
        await expect(tile(page, "yard/calm").locator(".chip")).to_have_text(re.compile(r"Unchanged \d+ s"))
        looks = "it => getComputedStyle(it.querySelector('.picture')).filter"
        assert "grayscale" in await tile(page, "yard/dead").evaluate(looks)
        assert await tile(page, "yard/calm").evaluate(looks) == "none"
        assert await tile(page, "yard/busy").evaluate(looks) == "none"
        await expect(page.get_by_role("button", name="Needs attention 1")).to_be_visible()
        await page.get_by_role("button", name="Needs attention 1").click()
        await expect(page.locator(".tile:visible")).to_have_count(1)
        scene.quiet.clear()
        await expect(tile(page, "yard/dead")).to_have_attribute("data-state", "live")
        assert seen.problems == []


async def test_by_keys_alone(hub: LocalHub, js: Any, browser: Browser) -> None:
    """From the top of the page to a camera, a drawn mask in the desired configuration, the past, and back."""
    scene = Scene(js, ["cam1", "cam2", "cam3"])
    async with on_stage(hub, scene, browser) as (url, seen):
        page, press = seen.page, seen.page.keyboard.press
        await page.goto(url)
        await measured(page, "yard/cam3")
        await press("Tab")
        await expect(page.locator(".skip")).to_be_focused()
        await press("Enter")
        await expect(page.locator("main")).to_be_focused()
        for _ in range(3):
            await press("Tab")
        await expect(tile(page, "yard/cam1").locator("a")).to_be_focused()
        await press("ArrowRight")
        await expect(tile(page, "yard/cam2").locator("a")).to_be_focused()
        await press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("yard / cam2")
        await expect(page.get_by_role("button", name="Draw mask")).to_be_enabled()
        await page.get_by_role("button", name="Draw mask").focus()
        await press("Enter")
        await expect(page.get_by_role("application")).to_be_focused()
        for keys in (["Space"], ["Shift+ArrowRight", "Space"], ["Shift+ArrowDown", "Space"], ["Enter"]):
            for key in keys:
                await press(key)
        await expect(page.get_by_role("button", name="Save")).to_be_focused()
        await press("Enter")
        bucket = await js.key_value("DESIRED")

        async def stored() -> Any:
            entry = await bucket.get("yard.box1")
            return device_pb2.DesiredConfig.FromString(entry.value)

        await expect(page.locator(".force")).to_contain_text("Waiting for the device")
        (wanted,) = (await stored()).cameras
        assert wanted.camera == "cam2"
        points = [(round(it.x, 2), round(it.y, 2)) for it in wanted.masks[0].points]
        assert points == [(0.5, 0.5), (0.6, 0.5), (0.6, 0.6)]
        slider = page.get_by_role("slider")
        await slider.focus()
        await expect(page.locator("output")).to_have_text("Live")
        for _ in range(4):
            await press("ArrowLeft")
        await expect(page.locator(".past")).to_be_visible()
        await expect(page.locator(".past")).not_to_be_empty()
        await press("End")
        await expect(page.locator("output")).to_have_text("Live")
        await expect(page.locator(".past")).to_be_hidden()
        await page.get_by_role("link", name="Back to all cameras").focus()
        await press("Enter")
        await expect(page.locator(".tile")).to_have_count(3)
        assert seen.problems == []


async def test_nothing_is_drawn_before_the_device_has_reported(
    hub: LocalHub, js: Any, browser: Browser
) -> None:
    """What is drawn there already is not known before."""
    scene = Scene(js, ["gate"])
    scene.reports = False
    async with on_stage(hub, scene, browser) as (url, seen):
        page = seen.page
        await page.goto(f"{url}#/camera/yard/gate")
        await eventually(lambda: page.evaluate("document.querySelector('.boxes').dataset.sequence"))
        tools, hint = page.locator(".tool"), page.locator(".toolbar .help")
        assert await tools.count() == 3
        assert await page.locator(".tool:disabled").count() == 3
        await expect(hint).to_have_text("Its device has not reported yet.")
        scene.reports = True
        await expect(page.locator(".tool:disabled")).to_have_count(0)
        await expect(hint).to_have_text("")
        assert seen.problems == []


async def test_a_viewer_logs_in_and_sees_their_cameras(
    hub: LocalHub, js: Any, browser: Browser, tmp_path: Path
) -> None:
    """A token in, their one camera shown, no drawing without leave, nothing left after logging out."""
    issuer, scene = Issuer(tmp_path), Scene(js, ["gate", "dock"])
    async with (
        running_web(hub, token_keys=[str(issuer.public)]) as url,
        scene.playing(),
        watched(browser) as seen,
    ):
        page = seen.page
        await page.goto(url)
        await page.get_by_label("Access token").fill("not a token")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert")).to_have_text("this is not a token of ours")
        await page.get_by_label("Access token").fill(issuer.token(cameras=["yard/gate"], methods=["read"]))
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator(".tile")).to_have_count(1)
        await measured(page, "yard/gate")
        assert await page.evaluate("document.cookie") == ""
        await page.goto(f"{url}#/camera/yard/dock")
        await expect(page.locator(".chip")).to_have_text("Waiting")
        await page.goto(f"{url}#/")
        await expect(page.locator(".tile")).to_have_count(1)
        await page.goto(f"{url}#/camera/yard/gate")
        await expect(page.get_by_role("button", name="Draw mask")).to_have_count(0)
        await page.goto(f"{url}#/fleet")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.locator("tbody")).not_to_contain_text("dock")
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Access token")).to_be_visible()
        assert await page.context.cookies() == []
    # What the browser itself says of the answers 401 and 403 on the way.
    assert all("401" in problem or "403" in problem for problem in seen.problems), seen.problems


async def test_a_server_that_goes_away_is_said_and_comes_back(
    hub: LocalHub, js: Any, browser: Browser
) -> None:
    """The page never shows an old picture as if it were live."""
    scene = Scene(js, ["gate"])
    async with scene.playing(), watched(browser) as seen:
        page = seen.page
        async with running_web(hub, open_to_all=True) as url:
            port = int(url.rstrip("/").rpartition(":")[2])
            await page.goto(url)
            await measured(page, "yard/gate")
        await expect(tile(page, "yard/gate")).to_have_attribute("data-state", "lost", timeout=3000)
        await expect(page.locator(".trouble")).to_contain_text("Connection lost")
        async with running_web(hub, open_to_all=True, port=port):
            await expect(tile(page, "yard/gate")).to_have_attribute("data-state", "live")
            await expect(page.locator(".trouble")).to_be_hidden()


async def test_pictures_of_every_page(hub: LocalHub, js: Any, browser: Browser) -> None:
    """Kept under build/web to be looked at: light, dark and phone; nothing is wider than its screen."""
    recording = record(reference.open_clip(CLIP), catalogue.load("centernet-mobilenetv3"), frames=60, every=2)
    client = await cloud_client(hub)
    replay = Replay(client, recording, [f"cam{it}" for it in range(1, 9)], tenant="acme", site="yard")
    replay.budget_kbit_s = 60
    playing = asyncio.create_task(replay.run())
    screens = {
        "wall-light": ("", (1440, 1000), {"color_scheme": "light"}),
        "wall-dark": ("", (1440, 1000), {"color_scheme": "dark"}),
        "wall-phone": ("", (390, 844), {"color_scheme": "dark", "has_touch": True, "is_mobile": True}),
        "camera-light": ("#/camera/yard/cam1", (1440, 1050), {"color_scheme": "light"}),
        "camera-dark": ("#/camera/yard/cam1", (1440, 1050), {"color_scheme": "dark"}),
        "camera-phone": ("#/camera/yard/cam1", (390, 844), {"color_scheme": "light", "is_mobile": True}),
        "fleet-light": ("#/fleet", (1440, 700), {"color_scheme": "light"}),
        "fleet-dark": ("#/fleet", (1440, 700), {"color_scheme": "dark"}),
        "fleet-phone": ("#/fleet", (390, 844), {"color_scheme": "dark", "is_mobile": True}),
    }
    async with running_web(hub, open_to_all=True) as url:
        for name, (path, size, options) in screens.items():
            async with watched(browser, size=size, reduced_motion="reduce", **options) as seen:
                await seen.page.goto(f"{url}{path}")
                if "fleet" in name:
                    await expect(seen.page.locator("tbody tr")).to_have_count(1)
                else:
                    await eventually(
                        lambda page=seen.page: page.evaluate(
                            "document.querySelector('.picture')?.dataset.sequence"
                        ),
                        within_s=20,
                    )
                if name == "wall-light":
                    await expect(seen.page.locator(".tile")).to_have_count(8)
                    await expect(seen.page.locator(".picture[data-sequence]")).to_have_count(8)
                    replay.idle.add("cam2")
                    replay.silent.add("cam3")
                    replay.degraded["cam4"] = "chain_gap"
                    replay.state["cam5"] = device_pb2.CAMERA_STATE_RECONNECTING, "the camera does not answer"
                    await expect(tile(seen.page, "yard/cam3")).to_have_attribute("data-state", "stale")
                    await expect(tile(seen.page, "yard/cam5")).to_have_attribute("data-state", "reconnecting")
                if name == "camera-dark":
                    await _drawn(seen.page)
                await seen.shot(name, full_page="phone" in name and "wall" not in name)
                wide = await seen.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
                assert wide <= 0, name
                moving = await seen.page.evaluate(
                    "getComputedStyle(document.querySelector('nav a')).transitionDuration"
                )
                assert moving == "0s"
                assert seen.problems == []
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    await client.close()


async def _drawn(page: Page) -> None:
    """A mask, a zone and a line, not saved."""
    stage = await page.locator(".stage").bounding_box()
    assert stage is not None
    for kind, corners in (
        ("mask", [(0.02, 0.03), (0.3, 0.03), (0.3, 0.24), (0.02, 0.24)]),
        ("zone", [(0.35, 0.4), (0.95, 0.34), (0.97, 0.72), (0.52, 0.7)]),
        ("line", [(0.2, 0.55), (0.45, 0.9)]),
    ):
        await page.get_by_role("button", name=f"Draw {kind}").click()
        for x, y in corners:
            await page.mouse.click(stage["x"] + x * stage["width"], stage["y"] + y * stage["height"])
        if kind != "line":
            await page.keyboard.press("Enter")
    await expect(page.locator(".shapes li")).to_have_count(3)
