"""A real Chromium without a window."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, Request, async_playwright

SHOTS = Path(__file__).parents[2] / "build" / "web"


@contextlib.asynccontextmanager
async def chromium(*arguments: str) -> AsyncIterator[Browser]:
    """The machine's own; a missing one fails and says how to get it. arguments: more for its command line."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "these tests need a browser: apt-get install -y --no-install-recommends chromium"
    async with async_playwright() as playwright:
        # In a container, root has no sandbox; the pages are our own.
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *arguments])
        try:
            yield browser
        finally:
            await browser.close()


class Watched:
    """A page, and everything it complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("console", lambda it: self.problems.append(it.text) if it.type == "error" else None)
        page.on("pageerror", lambda problem: self.problems.append(str(problem)))
        page.on("requestfailed", self._failed)

    def _failed(self, request: Request) -> None:
        if "ERR_ABORTED" not in (request.failure or ""):  # a page that was left
            self.problems.append(f"{request.url} {request.failure}")

    async def shot(self, name: str, **options: Any) -> None:
        """Keep a picture of it under build/web."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SHOTS / f"{name}.png", **options)


@contextlib.asynccontextmanager
async def watched(
    browser: Browser, *, size: tuple[int, int] = (1280, 800), script: str = "", **options: Any
) -> AsyncIterator[Watched]:
    """A new page with nothing remembered. script: runs before the page's own."""
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    if script:
        await context.add_init_script(script)
    context.set_default_timeout(20_000)
    try:
        yield Watched(await context.new_page())
    finally:
        await context.close()
