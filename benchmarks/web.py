"""`python -m benchmarks.web`: a wall of cameras in a real browser, and what it costs.

    python -m benchmarks.web [--cameras 16] [--seconds 20] [--out benchmarks/results/web.json]

Pictures and answers are recorded ones (see `web_replay`): the street clip, coded at 5 pictures a second, with
an answer for each of its 10 frames a second, played to a real hub as so many cameras. API, page and browser
are the real ones, the browser without a window and without a graphics card. Counted are the answers that
reached the page against those that were stored, the pictures shown, and CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from playwright.async_api import Page, async_playwright

from benchmarks import machine, reference
from benchmarks.demo import CLIP
from benchmarks.web_replay import Replay, record
from cloud_inference import streams
from cloud_inference.api.server import serve as serve_api
from cloud_inference.config import CloudSettings, StreamSettings
from cloud_inference.hub import HubOptions, LocalHub
from cloud_inference.triton import TritonModel
from eyeline import bus
from eyeline.errors import EyelineError
from eyeline.process import Child
from eyeline_models import catalogue

# Counts what comes in, and what is shown, by camera.
COUNT = """() => {
  const { store, link, page } = window.eyeline;
  const counts = window.counts = { answers: {}, shown: {}, began: performance.now() };
  link.addEventListener('text', ({ detail }) => {
    for (const one of detail.results || []) {
      const seen = counts.answers[one.camera] ??= { first: one.sequence, last: 0, answers: 0, late: 0 };
      seen.last = Math.max(seen.last, one.last);
      seen.answers += one.last - one.sequence + 1;
      seen.late = Math.max(seen.late, store.now - one.answered);
    }
  });
  for (const { camera, picture } of page.views) {
    counts.shown[camera.name] = 0;
    new MutationObserver(() => { counts.shown[camera.name] += 1; })
      .observe(picture, { attributes: true, attributeFilter: ['data-sequence'] });
  }
}"""


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """Debian's, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        try:
            yield browser
        finally:
            await browser.close()


async def measure(cameras: int, seconds: float) -> dict[str, Any]:
    """Play, look, count. Raises `EyelineError`."""
    clip, card = reference.open_clip(CLIP), catalogue.load("centernet-mobilenetv3")
    print("recording ...", flush=True)
    recording = record(clip, card, frames=200, every=2)
    names = [f"cam{number}" for number in range(1, cameras + 1)]
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        async with _hub(state) as (url, creds), _api(url, creds) as api:
            config = state / "web.yaml"
            config.write_text(yaml.safe_dump({**_settings(url, creds), "web": {"port": 0, "api": api}}))
            said = state / "web.log"
            command = [sys.executable, "-m", "cloud_inference", "web", "--config", str(config)]
            page = Child(command, log=said, name="web")
            await page.start()
            connection = await bus.connect(url, name="replay", creds_file=creds, wait=False)
            await streams.ensure(connection.jetstream(timeout=5), StreamSettings())
            replay = Replay(connection, recording, names)
            playing = asyncio.create_task(replay.run())
            try:
                async with chromium() as browser:
                    return await _look(browser, await _url(said), replay, page, seconds)
            finally:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
                await connection.close()
                await page.stop()


def _settings(url: str, creds: Path) -> dict[str, Any]:
    tenant = {"name": "default", "creds_file": str(creds)}
    return {"hub": {"url": url, "tenants": [tenant]}, "api": {"port": 0}, "http": {"web_port": 0}}


@contextlib.asynccontextmanager
async def _hub(state: Path) -> AsyncIterator[tuple[str, Path]]:
    """A hub without a worker: what is stored is what is played. Its address, and the cloud's credentials."""
    hub = LocalHub({"default": (("local", "edge"),)}, state, HubOptions(port=0))
    await hub.start()
    try:
        yield hub.url, hub.tenant("default").cloud
    finally:
        await hub.stop()


@contextlib.asynccontextmanager
async def _api(url: str, creds: Path) -> AsyncIterator[str]:
    """The API without a model: nobody asks it about an image."""
    settings = CloudSettings.model_validate(_settings(url, creds))
    card = catalogue.load(settings.triton.model)
    async with (
        TritonModel(settings.triton.url, card, timeout_s=1) as model,
        serve_api(settings, model, card) as serving,
    ):
        yield serving.address


async def _url(said: Path) -> str:
    while True:
        for line in said.read_text().splitlines():
            if '"web_listening"' in line:
                return str(json.loads(line)["url"])
        await asyncio.sleep(0.1)


async def _look(browser: Any, url: str, replay: Replay, server: Child, seconds: float) -> dict[str, Any]:
    context = await browser.new_context(viewport={"width": 1920, "height": 1600})
    page: Page = await context.new_page()
    await page.goto(url)
    total = len(replay.cameras)
    await page.wait_for_function(
        "total => document.querySelectorAll('.picture[data-sequence]').length === total",
        arg=total,
        timeout=60_000,
    )
    chrome = [it for it in psutil.process_iter(["name"]) if "chrom" in (it.info["name"] or "")]
    others = machine.Others()
    await page.evaluate(COUNT)
    before, cpu = replay.stored, (_cpu([psutil.Process(server.pid or 0)]), _cpu(chrome))
    await asyncio.sleep(seconds)
    counts = await page.evaluate("({ ...counts, ms: performance.now() - counts.began })")
    took_s = counts["ms"] / 1000
    after = replay.stored
    spent = (_cpu([psutil.Process(server.pid or 0)]) - cpu[0], _cpu(chrome) - cpu[1])
    missing = {
        name: seen["last"] - seen["first"] + 1 - seen["answers"] for name, seen in counts["answers"].items()
    }
    return {
        "machine": machine.describe(),
        "cores_taken_by_others": round(others.share(), 2),
        "pictures_and_answers": "recorded: the street clip, 416 px, CRF 30, answers of centernet-mobilenetv3",
        "cameras": total,
        "seconds": round(took_s, 1),
        "answers_stored_a_second": round((after - before) / took_s, 1),
        "answers_shown_a_second": round(sum(it["answers"] for it in counts["answers"].values()) / took_s, 1),
        "cameras_with_answers": len(counts["answers"]),
        "answers_missing": sum(missing.values()),
        "answers_latest_ms": round(max(it["late"] for it in counts["answers"].values())),
        "pictures_shown_a_second_a_tile": {
            "least": round(min(counts["shown"].values()) / took_s, 2),
            "mean": round(sum(counts["shown"].values()) / total / took_s, 2),
        },
        "server_cpu_share": round(spent[0] / took_s, 3),
        "browser_cpu_share": round(spent[1] / took_s, 3),
    }


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds so far."""
    spent = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when no answer was missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--cameras", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    options = parser.parse_args(argv)
    try:
        figures = asyncio.run(measure(options.cameras, options.seconds))
    except EyelineError as problem:
        print(f"web: {problem}", file=sys.stderr)
        return 2
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    return 0 if figures["answers_missing"] == 0 and figures["cameras_with_answers"] == options.cameras else 1


if __name__ == "__main__":
    sys.exit(main())
