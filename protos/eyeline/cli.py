"""The `eyeline` command: answers, devices, pictures, reports and exports on the command line."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import eyeline._quiet  # noqa: F401  # before anything that loads gRPC

# isort: split
import typer

from eyeline import cli_export, cli_report, cli_status, errors, show
from eyeline.client import Client
from eyeline.release import version
from eyeline.terminal import (
    DEFAULT_SERVER as _SERVER,
)
from eyeline.terminal import (
    EXIT_STATUSES,
    INTERRUPTED,
    NOTHING,
    OK,
    USAGE,
    Ca,
    Camera,
    Cameras,
    Json,
    Output,
    Server,
    Timeout,
    Token,
    UseTls,
    camera_of,
    client_of,
    fail,
    moment,
    nothing,
    period,
    run,
    status_of,
    use_certificate,
)
from eyeline.terminal import (
    TIMEOUT_S as _TIMEOUT_S,
)

_TIMES: Final = """
Times are RFC 3339 (2026-03-01T12:00:00Z) or how long ago (30s, 10m, 1h30m, 2d).
"""

app = typer.Typer(
    help="Answers, pictures, devices, exports and reports of Eyeline's cameras.\n" + EXIT_STATUSES + _TIMES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Common to typer's own copy of click and to click itself: what is wrong with the command line.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"eyeline {version()}\n")
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    cert: Annotated[
        Path | None, typer.Option(envvar="EYELINE_CERT", help="Show the server this certificate (PEM).")
    ] = None,
    key: Annotated[Path | None, typer.Option(envvar="EYELINE_KEY", help="Its key (PEM).")] = None,
) -> None:
    """Before every command."""
    use_certificate(cert, key)


@app.command()
def watch(
    cameras: Cameras = None,
    server: Server = _SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Start here rather than now.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Go on after the result that had this token.")
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="Leave out provisional results.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Leave out late results, as after an outage.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many results.")] = None,
    skip_gap: Annotated[
        bool, typer.Option("--skip-gap", help="Go on when results in between are no longer kept.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the server at the start.")] = 10.0,
) -> None:
    """Print results as they are stored, until interrupted; lost connections are made again.

    At the end it tells the token to go on with.
    """
    run(
        _watch(
            client_of(server, token, tls, ca),
            cameras,
            since_ns=moment(since),
            resume=resume,
            final_only=final,
            live_only=live,
            on_gap="continue" if skip_gap else "raise",
            wait_s=wait,
            count=count,
            out=Output(as_json),
        )
    )


@app.command()
def latest(
    cameras: Cameras = None,
    server: Server = _SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Print the newest result of each camera."""

    async def work() -> int:
        async with client_of(server, token, tls, ca) as client:
            results = await client.latest(cameras or None, timeout_s=timeout)
        out = Output(as_json)
        for result in results:
            out.result(result)
        return OK if results else nothing("no results yet")

    run(work())


@app.command()
def history(
    camera: Camera,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Included; default: the oldest kept.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="TIME", help="Not included; default: now.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many results.")] = None,
    server: Server = _SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Print one camera's stored results by capture time."""
    site, name = camera_of(camera)
    begin, end = period(from_, to)

    async def work() -> int:
        out = Output(as_json)
        shown = 0
        async with client_of(server, token, tls, ca) as client:
            pages = client.history(
                site, name, begin, end, page_size=min(limit or 500, 500), timeout_s=timeout
            )
            async for result in pages:
                out.result(result)
                shown += 1
                if shown == limit:
                    break
        return OK if shown else nothing(f"no results of {camera} in that time")

    run(work())


@app.command()
def detect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="JPEG, PNG or WebP files.")],
    model: Annotated[str, typer.Option(help="Default: the model that answers for cameras.")] = "",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="0 takes each class's own threshold.")] = 0.0,
    server: Server = _SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Print what a model sees in images."""

    async def work() -> int:
        out = Output(as_json)
        found = 0
        async with client_of(server, token, tls, ca) as client:
            for image in images:
                answer = await client.detect(image, model, min_score, timeout_s=timeout)
                found += len(answer.detections)
                name = str(image)
                out.item(partial(show.image_object, name, answer), partial(show.image_table, name, answer))
        return OK if found else NOTHING

    run(work())


@app.command()
def devices(
    device: Annotated[str | None, typer.Argument(metavar="SITE/DEVICE", help="Default: all.")] = None,
    server: Server = _SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Print what devices last reported."""
    site, slash, name = (device or "/").partition("/")
    if not slash:
        fail(f"device {site[:80]!r} must be SITE/DEVICE, such as yard/box1", USAGE)

    async def work() -> int:
        async with client_of(server, token, tls, ca) as client:
            if device is None:
                found = await client.devices(timeout_s=timeout)
            else:
                found = [await client.device(site, name, timeout_s=timeout)]
        out = Output(as_json)
        if as_json:
            for one in found:
                out.line(show.device_object(one))
        elif found:
            for shown in show.device_lines(found, time.time_ns()):
                out.print(shown)
        return OK if found else nothing("no device has reported yet")

    run(work())


app.command()(cli_status.status)
app.command()(cli_status.doctor)
app.command()(cli_export.grab)
app.command()(cli_export.export)
app.command()(cli_report.report)
app.add_typer(cli_export.sink_app, name="sink")


async def _watch(
    client: Client,
    cameras: Iterable[str] | None,
    *,
    since_ns: int | None,
    resume: str | None,
    final_only: bool,
    live_only: bool,
    on_gap: Any,
    wait_s: float,
    count: int | None,
    out: Output,
) -> int:
    last = ""
    shown = 0
    async with client:
        subscription = client.subscribe(
            cameras or None,
            since_ns=since_ns,
            resume=resume,
            final_only=final_only,
            live_only=live_only,
            on_gap=on_gap,
            connect_within_s=wait_s,
        )
        try:
            async for result in subscription:
                out.result(result)
                last, shown = result.resume_token, shown + 1
                if shown == count:
                    break
        finally:
            # Not after a broken pipe: what was printed last may not have been read.
            if last and not out.broken:
                sys.stderr.write(f"to go on: eyeline watch --resume {last}\n")
    return OK


def main() -> None:
    """Entry point."""
    # One line a problem on stderr, the client's warnings included.
    logging.basicConfig(format="eyeline: %(message)s", level=logging.WARNING)
    try:
        status = app(standalone_mode=False)
    except errors.EyelineError as problem:
        fail(str(problem), status_of(problem))
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(INTERRUPTED) from None
    except _UsageError as problem:
        text = str(getattr(problem, "format_message", problem.__str__)())
        if "\n" in text:  # the help, for lack of a command
            sys.stderr.write(f"{text}\n")
            raise SystemExit(USAGE) from None
        fail(f"{text.rstrip('.')}. See 'eyeline --help'.", USAGE)
    raise SystemExit(status if isinstance(status, int) else OK)


if __name__ == "__main__":
    main()
