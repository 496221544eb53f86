"""A scene in a browser, and what is on the page of a camera, read off its canvases."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, Page

from cloud_inference.hub import LocalHub
from tests.support.chromium import Watched, watched
from tests.support.eventually import eventually
from tests.support.web import running_web
from tests.support.web_scene import SOURCE, Scene

# As a browser without WebCodecs, or a page that may not use it.
NO_DECODER = "delete window.VideoDecoder"

# The bright square of a picture, in source pixels.
BRIGHT = """(picture, source) => {
  const { width, height } = picture;
  const { data } = picture.getContext('2d').getImageData(0, 0, width, height);
  let [x1, y1, x2, y2] = [Infinity, Infinity, -1, -1];
  for (let y = 0; y < height; y += 1) for (let x = 0; x < width; x += 1) {
    if (data[4 * (y * width + x)] < 150) continue;
    [x1, y1, x2, y2] = [Math.min(x1, x), Math.min(y1, y), Math.max(x2, x + 1), Math.max(y2, y + 1)];
  }
  return [x1 * source[0] / width, y1 * source[1] / height, x2 * source[0] / width, y2 * source[1] / height];
}"""

# What is on the stage at this very moment: the picture's bright square, and the box that is drawn, both in
# source pixels. Of the box: its outline's outermost pixels on lines through where its middle should be.
MEASURE = """([camera, source]) => {
  const bright = (BRIGHT);
  const find = (place) => document.querySelector(place);
  const stage = find(`[data-camera="${camera}"] .stage`) || find('.stage');
  if (!stage) return null;
  const [picture, boxes] = stage.querySelectorAll('canvas');
  const sequence = Number(picture.dataset.sequence);
  if (!sequence || boxes.dataset.sequence !== picture.dataset.sequence) return null;
  const shown = boxes.getBoundingClientRect();
  const [sx, sy] = [boxes.width / source[0], boxes.height / source[1]];
  const left = 8 + 4 * (sequence % 40);
  const ink = (data, at) => data[at + 3] > 200 && Math.max(data[at], data[at + 1], data[at + 2]) > 120;
  const row = boxes.getContext('2d').getImageData(0, Math.round(90 * sy), boxes.width, 1).data;
  const found = [...Array(boxes.width).keys()].filter((x) => ink(row, 4 * x));
  const middle = Math.round((left + 34) * sx);
  const column = boxes.getContext('2d').getImageData(middle, 0, 1, boxes.height).data;
  const near = (y) => y > 57.5 * sy && y < 123 * sy; // below the label
  const rows = [...Array(boxes.height).keys()].filter((y) => ink(column, 4 * y) && near(y));
  return { sequence, bright: bright(picture, source), perSource: shown.width / source[0],
    box: [found[0] / sx, rows[0] / sy, found.at(-1) / sx, rows.at(-1) / sy] };
}""".replace("BRIGHT", BRIGHT)

# Which frames the canvases say they show: the picture's, and the boxes'.
FRAMES = "['.picture', '.boxes'].map((it) => Number(document.querySelector(it).dataset.sequence || 0))"


@contextlib.asynccontextmanager
async def on_stage(
    hub: LocalHub, scene: Scene, browser: Browser, *, script: str = ""
) -> AsyncIterator[tuple[str, Watched]]:
    """The scene plays, and a page that asks for no token is served: its address, and an empty page."""
    async with (
        running_web(hub, open_to_all=True) as url,
        scene.playing(),
        watched(browser, script=script) as seen,
    ):
        yield url, seen


async def measured(page: Page, camera: str) -> dict[str, Any]:
    return dict(await eventually(lambda: page.evaluate(MEASURE, [camera, list(SOURCE)])))
