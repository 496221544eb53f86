"""The page over the whole system: a real agent, hub, worker and Triton, looked at with a real browser."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from benchmarks.demo import CLIP
from benchmarks.system import DEVICE, SITE, Agent, Cloud
from tests.support.chromium import chromium, watched
from tests.support.eventually import eventually

pytestmark = pytest.mark.long

# How bright the stage's picture is, between fractions of its sides: mean of red, green and blue.
BRIGHTNESS = """([left, top, right, bottom]) => {
  const picture = document.querySelector('.picture');
  const [x, y] = [Math.round(left * picture.width), Math.round(top * picture.height)];
  const [w, h] = [Math.round((right - left) * picture.width), Math.round((bottom - top) * picture.height)];
  const { data } = picture.getContext('2d').getImageData(x, y, w, h);
  return data.reduce((sum, value, at) => sum + (at % 4 === 3 ? 0 : value), 0) / (3 * w * h);
}"""


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with Cloud(tmp_path / "cloud", web=True) as running:
        yield running


async def draw(page: Page, tool: str, corners: list[tuple[float, float]]) -> None:
    """With the pointer, places in fractions of the picture; polygons are closed on their first corner."""
    await page.get_by_role("button", name=f"Draw {tool}").click()
    stage = await page.locator(".stage").bounding_box()
    assert stage is not None
    for x, y in corners:
        await page.mouse.click(stage["x"] + x * stage["width"], stage["y"] + y * stage["height"])
    if tool != "line":
        await page.keyboard.press("Enter")


async def test_a_camera_from_its_first_picture_to_its_end(cloud: Cloud, tmp_path: Path) -> None:
    """Live boxes; a drawn mask hides pixels on the device; zones count; killed, it is stale within 3 s."""
    street: dict[str, Any] = {"source": str(CLIP.absolute()), "realtime": True, "loop": True}
    settings = {"encode": {"max_fps": 5}, "detect": {"enabled": False}}
    agent = Agent(cloud, tmp_path / "agent", {"street": street}, settings=settings)
    async with chromium() as browser, watched(browser, size=(1280, 1000)) as seen, cloud.client() as client:
        page = seen.page
        async with agent:
            assert agent.process is not None
            await page.goto(f"{cloud.endpoints['web']}#/camera/{SITE}/street")
            frame = page.locator(".frame")
            await expect(frame).to_have_attribute("data-state", re.compile("live|idle"), timeout=60_000)
            await eventually(lambda: page.evaluate("document.querySelector('.boxes').dataset.sequence"))
            await expect(page.locator('[data-fact="model"]')).to_contain_text(cloud.model)
            assert await page.evaluate(BRIGHTNESS, [0.1, 0.6, 0.4, 0.9]) > 40

            await draw(page, "mask", [(0.05, 0.55), (0.45, 0.55), (0.45, 0.95), (0.05, 0.95)])
            await draw(page, "zone", [(0.3, 0.25), (0.95, 0.25), (0.95, 0.8), (0.3, 0.8)])
            await draw(page, "line", [(0.6, 0.1), (0.6, 0.9)])
            await page.get_by_role("button", name="Save").click()
            await expect(page.get_by_role("button", name="Save")).to_be_hidden()
            await expect(page.locator(".toolbar .help")).to_have_text("")
            await expect(page.locator(".force")).to_have_text("In force on the device.", timeout=30_000)
            await expect(page.locator('[data-fact="masks"] dd')).to_have_text("1", timeout=10_000)
            # Nothing of it comes any more, while the rest does.
            await eventually(
                lambda: _below(page, [0.1, 0.6, 0.4, 0.9], 25), within_s=20, what="the mask in the picture"
            )
            assert await page.evaluate(BRIGHTNESS, [0.5, 0.6, 0.9, 0.9]) > 40
            await expect(page.locator(".counts")).to_contain_text("zone 1", timeout=20_000)
            await expect(page.locator(".counts")).to_contain_text("line 1")
            (latest,) = await client.latest()
            assert [it.zone for it in latest.proto.zones] == ["zone 1"]
            assert [it.line for it in latest.proto.lines] == ["line 1"]
            inside = [await _inside(client) for _ in range(3)]
            assert max(inside) > 0, inside

            await page.evaluate(
                """() => new MutationObserver(() => {
                  const state = document.querySelector('.frame').dataset.state;
                  if (state === 'stale') window.staleAt ??= Date.now();
                }).observe(document.querySelector('.frame'), { attributes: true })"""
            )
            killed = time.time()
            os.kill(agent.process.pid or 0, signal.SIGKILL)
            await expect(frame).to_have_attribute("data-state", "stale", timeout=10_000)
            took_s = await page.evaluate("window.staleAt") / 1000 - killed
            assert took_s <= 3.0, took_s
            await page.goto(f"{cloud.endpoints['web']}#/fleet")
            row = page.locator(f'tr[data-device="{SITE}/{DEVICE}"]')
            await expect(row).to_have_attribute("data-state", "stale", timeout=30_000)
            await expect(page.locator(".model")).to_contain_text("Mean batch")
        assert seen.problems == []


async def _below(page: Page, area: list[float], most: float) -> bool:
    return float(await page.evaluate(BRIGHTNESS, area)) < most


async def _inside(client: Any) -> int:
    """Objects in the zone of a coming answer."""
    async for result in client.subscribe([(SITE, "street")]):
        if result.proto.zones:
            return int(result.proto.zones[0].inside)
    return 0
