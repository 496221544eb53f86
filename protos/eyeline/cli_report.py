"""`eyeline report`: a period as one HTML page."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from eyeline.cli_export import history_of
from eyeline.errors import InvalidRequest
from eyeline.terminal import (
    DEFAULT_SERVER,
    OK,
    Ca,
    Cameras,
    Json,
    Output,
    Server,
    Timeout,
    Token,
    UseTls,
    client_of,
    moment,
    nothing,
    progress,
    run,
)


def report(
    cameras: Cameras = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="Included.")] = "1h",
    to: Annotated[str | None, typer.Option(metavar="TIME", help="Not included; default: now.")] = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    server: Server = DEFAULT_SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Write one HTML file about a period, which loads nothing from elsewhere.

    Traffic against JPEG and video, where answers come from, delays, outages, counts by class, zone and line.
    It says of each figure whether it was measured or estimated.
    """
    begin, end = moment(since) or 0, moment(to) or time.time_ns()
    if end <= begin:
        raise InvalidRequest("--to must be later than --since")

    async def work() -> int:
        from eyeline.exports import frames
        from eyeline.reports import data, html

        async with client_of(server, token, tls, ca) as client:
            devices = await client.devices(timeout_s=timeout)
            named = cameras or sorted(f"{r.site}/{r.camera}" for r in await client.latest(timeout_s=timeout))
            collector, results = data.Collector(begin, end), 0
            with progress("report") as tell:
                for index, camera in enumerate(named):

                    def part(done: float, words: str, index: int = index) -> None:
                        tell((index + done) / len(named), words)

                    found = [it async for it in history_of(client, [camera], begin, end, timeout, part)]
                    results += len(found)
                    for result in frames.in_order(found):
                        collector.add(result)
        if not results:
            return nothing("no results in that time")
        made = collector.report(client.address, devices)
        await asyncio.to_thread(frames.write, out, html.page(made))
        told = {
            "out": str(out),
            "cameras": len(made.cameras),
            "frames": sum(camera.frames for camera in made.cameras),
            "bytes": round(sum(camera.wire_bytes for camera in made.cameras)),
        }
        Output(as_json).item(
            lambda: told,
            lambda: f"{out}: {told['frames']} frames, {', '.join(camera.name for camera in made.cameras)}",
        )
        return OK

    run(work())
