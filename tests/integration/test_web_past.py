"""The past of a camera in a real browser: pictures and boxes of a moment, and steps from answer to answer."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, expect

from cloud_inference.hub import LocalHub
from tests.support.eventually import eventually
from tests.support.on_stage import BRIGHT, FRAMES, NO_DECODER, measured, on_stage
from tests.support.web_scene import SOURCE, Scene, box

pytestmark = pytest.mark.long


# Notes them from now on, as often as the screen is drawn.
NOTE = f"""() => {{
  window.noted = [];
  const note = () => {{ window.noted.push({FRAMES}); requestAnimationFrame(note); }};
  note();
}}"""

LIVE_THEN_PREVIOUS = """() => {
  const button = (it) => [...document.querySelectorAll('.timeline button')].find(
    (one) => [one.textContent, one.getAttribute('aria-label')].includes(it));
  button('Live').click();
  button('Previous answer').click();
}"""

# Only the time: this very picture is kept.
EXACT = re.compile(r"^\d[\d:]*( [AP]M)?$")


async def settled(page: Page) -> None:
    """Until the strip counts some seconds: the slider goes back from the end of what was counted last."""
    await page.wait_for_function(
        "() => window.eyeline.page.timeline.counted?.pieces.filter((it) => it.cloud).length >= 5"
    )


async def scrubbed(page: Page) -> int:
    """Back by some seconds, to a moment with its picture: the frame shown."""
    await page.get_by_role("slider").fill("985")
    await expect(page.locator(".past")).to_have_text(EXACT)
    picture, boxes = await page.evaluate(FRAMES)
    assert picture == boxes > 0
    return int(boxes)


@pytest.mark.parametrize("script", ["", NO_DECODER], ids=["video", "stills"])
async def test_the_past_shows_what_was_answered(
    hub: LocalHub, js: Any, browser: Browser, script: str
) -> None:
    """Scrubbed back, the stored box of that moment on its own picture, while live ones go on coming."""
    scene = Scene(js, ["gate"])
    async with on_stage(hub, scene, browser, script=script) as (url, seen):
        page = seen.page
        await page.goto(f"{url}#/camera/yard/gate")
        await settled(page)
        await measured(page, "yard/gate")
        again = await scrubbed(page)
        now = scene.devices["gate"].sequence
        assert again < now - 10
        # Live pictures come and are decoded; none is drawn.
        await page.wait_for_function(
            "it => window.eyeline.page.view.player.picture.sequence > it", arg=now + 5
        )
        shown = await measured(page, "")
        assert shown["sequence"] == again
        for drawn, pixel, wanted in zip(shown["box"], shown["bright"], box(again), strict=True):
            assert abs(drawn - wanted) * shown["perSource"] <= 2
            assert abs(pixel - wanted) <= 4
        await page.get_by_role("button", name="Next answer").click()
        await page.wait_for_function(f"it => {FRAMES}.every((one) => one === it)", arg=again + 1)
        await page.get_by_role("button", name="Live", exact=True).click()
        await expect(page.locator(".past")).to_be_hidden()
        await page.wait_for_function(f"it => {FRAMES}.every((one) => one > it)", arg=now + 5)
        assert seen.problems == []


async def test_a_slow_picture_of_the_past_never_lies_under_other_boxes(
    hub: LocalHub, js: Any, browser: Browser
) -> None:
    """Both change at once, however long that takes; of moments passed over meanwhile none is asked for."""
    scene, asked, ready = Scene(js, ["gate"]), [], asyncio.Semaphore(0)

    async def slowly(route: Route) -> None:
        asked.append(route.request.url)
        await ready.acquire()
        await route.continue_()

    async with on_stage(hub, scene, browser) as (url, seen):
        page, slider = seen.page, seen.page.get_by_role("slider")
        await page.goto(f"{url}#/camera/yard/gate")
        await settled(page)
        await measured(page, "yard/gate")
        await page.route("**/api/picture?*", slowly)
        await page.evaluate(NOTE)
        await slider.fill("985")
        await expect(page.locator(".past")).to_have_text(re.compile("^Looking for "))
        live, _ = await page.evaluate(FRAMES)
        for value in ("987", "990", "992"):
            await slider.fill(value)
            await page.wait_for_function(
                "it => window.eyeline.page.moment === window.eyeline.page.timeline.moment"
                " && document.querySelector('input[type=range]').value === it",
                arg=value,
            )
        assert await page.evaluate(FRAMES) == [live, live]
        assert len(asked) == 1
        ready.release()
        await expect(page.locator(".past")).to_have_text(EXACT)
        await eventually(lambda: len(asked) == 2)
        await page.wait_for_function(f"it => {FRAMES}.every((one) => one && one < it)", arg=live)
        ready.release()
        await page.wait_for_function("() => !window.eyeline.page.following")
        last = await page.evaluate("window.eyeline.page.timeline.moment.answer.sequence")
        assert await page.evaluate(FRAMES) == [last, last]
        assert len(asked) == 2
        noted = await page.evaluate("window.noted")
        assert len({tuple(pair) for pair in noted}) >= 3
        assert all(picture == boxes or not boxes for picture, boxes in noted), noted
        # Live while one is looked for: it is not shown any more.
        await slider.fill("985")
        await eventually(lambda: len(asked) == 3)
        await page.get_by_role("button", name="Live", exact=True).click()
        await page.wait_for_function(f"it => {FRAMES}.every((one) => one > it)", arg=last)
        ready.release()
        await page.wait_for_function("() => !window.eyeline.page.following")
        picture, _ = await page.evaluate(FRAMES)
        assert picture > last
        assert seen.problems == []


async def test_a_picture_of_another_moment_says_so(hub: LocalHub, js: Any, browser: Browser) -> None:
    """An answer that was filled in lies over the picture before it, and the page says so."""
    scene = Scene(js, ["gate"])
    scene.filled.add("gate")
    async with on_stage(hub, scene, browser) as (url, seen):
        page, past = seen.page, seen.page.locator(".past")
        await page.goto(f"{url}#/camera/yard/gate")
        await settled(page)
        await eventually(lambda: page.evaluate("document.querySelector('.picture').dataset.sequence"))
        await page.get_by_role("slider").fill("985")
        await expect(past).to_be_visible()
        # Three answers, one after the other: on their own picture, and 0.2 and 0.4 s after it.
        said = {}
        for _ in range(3):
            await expect(past).not_to_be_empty()
            await page.wait_for_function("() => !window.eyeline.page.following")
            picture, boxes = await page.evaluate(FRAMES)
            said[boxes - picture] = await past.text_content()
            await page.get_by_role("button", name="Next answer").click()
            await page.wait_for_function(f"it => {FRAMES}[1] === it", arg=boxes + 1)
        assert sorted(said) == [0, 1, 2]
        assert EXACT.search(said[0] or "")
        for later in (1, 2):
            assert re.search(r" · picture 0\.\d s earlier$", said[later] or ""), said
        scene.idle.add("gate")
        calm = scene.devices["gate"].sequence
        await eventually(lambda: scene.devices["gate"].sequence > calm + 8)
        # Both at once: the answer before the newest, not the one before the moment that was looked at.
        await page.evaluate(LIVE_THEN_PREVIOUS)
        await expect(past).to_have_text(re.compile(r" · picture \d+\.\d s earlier, unchanged since$"))
        assert seen.problems == []


async def test_a_crop_lies_where_it_was_cut_out_in_the_past_too(
    hub: LocalHub, js: Any, browser: Browser
) -> None:
    """As live: by the format that its picture was sent with."""
    scene = Scene(js, ["gate"])
    scene.origin = 24, 40
    async with on_stage(hub, scene, browser) as (url, seen):
        page = seen.page
        await page.goto(f"{url}#/camera/yard/gate")
        await settled(page)
        await eventually(lambda: page.evaluate("document.querySelector('.picture').dataset.sequence"))
        bright = f"source => ({BRIGHT})(document.querySelector('.picture'), source)"
        again = await scrubbed(page)
        pixels = await page.evaluate(bright, list(SOURCE))
        for pixel, wanted in zip(pixels, box(again, scene.origin), strict=True):
            assert abs(pixel - wanted) <= 4, (again, pixels)
        assert seen.problems == []


async def test_steps_lead_over_times_without_answers(hub: LocalHub, js: Any, browser: Browser) -> None:
    """From answer to answer, over a pause, and a long range is the answer of each moment in it."""
    scene = Scene(js, ["gate"])
    ranges = [await scene.idle_range("gate", 125, span) for span in ((110, 85), (50, 49), (28, 14))]
    async with on_stage(hub, scene, browser) as (url, seen):
        page = seen.page
        await page.goto(f"{url}#/camera/yard/gate")
        await eventually(lambda: scene.devices["gate"].sequence > ranges[-1] + 5)

        async def shown(first: int) -> None:
            await page.wait_for_function(
                "it => window.eyeline.page.timeline.moment?.answer?.sequence === it", arg=first
            )

        # 95 s ago of 5 minutes: within the first range, 15 s after it began.
        await page.get_by_role("slider").fill(str(1000 - round(95 / 0.3)))
        await shown(1)
        for step, firsts in (("Next", (126, 251, 376, 377)), ("Previous", (376, 251, 126, 1))):
            for first in firsts:
                await page.get_by_role("button", name=f"{step} answer").click()
                await shown(first)
        # Nothing is before the first.
        await page.get_by_role("button", name="Previous answer").click()
        await asyncio.sleep(0.5)
        await shown(1)
        assert seen.problems == []
