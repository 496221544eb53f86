"""`eyeline watch | latest | history | detect | devices`: answers and devices on the command line."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import eyeline._quiet  # noqa: F401  # before anything that loads gRPC

# isort: split
import typer
from rich.console import Console

from eyeline import errors, show
from eyeline.client import Client, Tls
from eyeline.moments import parse_moment

OK, NOTHING, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130

_CODES: Final = """
Exit status: 0 fine; 1 nothing found; 2 wrong usage or input; 3 the server cannot be reached or does not
answer in time; 4 the server refused or failed, or results are no longer kept; 130 interrupted.

Times are RFC 3339 (2026-03-01T12:00:00Z) or how long ago (30s, 10m, 1h30m, 2d).
"""

app = typer.Typer(
    help="Read the answers of Eyeline's cameras, ask about images, look at devices.\n" + _CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Common to typer's own copy of click and to click itself: what is wrong with the command line.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

Server = Annotated[str, typer.Option(envvar="EYELINE_SERVER", help="HOST:PORT of the API.")]
Token = Annotated[
    str | None, typer.Option(envvar="EYELINE_TOKEN", help="Bearer token; better given by the environment.")
]
UseTls = Annotated[bool, typer.Option("--tls", help="Talk TLS, trusting the usual authorities.")]
Ca = Annotated[
    Path | None, typer.Option("--ca", envvar="EYELINE_CA", help="Talk TLS, trusting this certificate (PEM).")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
Timeout = Annotated[float, typer.Option(min=0.01, help="Seconds that an answer may take.")]
Cameras = Annotated[list[str] | None, typer.Argument(metavar="SITE/CAMERA", help="Default: all.")]

_SERVER: Final = "127.0.0.1:50051"
_TIMEOUT_S: Final = 10.0


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
    count: Annotated[int | None, typer.Option(min=1, help="End after so many results.")] = None,
    skip_gap: Annotated[
        bool, typer.Option("--skip-gap", help="Go on when results in between are no longer kept.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the server at the start.")] = 10.0,
) -> None:
    """Print results as they are stored, until interrupted; lost connections are made again.

    At the end it tells the token to go on with.
    """
    _run(
        _watch(
            _client(server, token, tls, ca),
            cameras,
            since_ns=_moment(since),
            resume=resume,
            final_only=final,
            on_gap="continue" if skip_gap else "raise",
            wait_s=wait,
            count=count,
            out=_Output(as_json),
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
        async with _client(server, token, tls, ca) as client:
            results = await client.latest(cameras or None, timeout_s=timeout)
        out = _Output(as_json)
        for result in results:
            out.result(result)
        return OK if results else _nothing("no results yet")

    _run(work())


@app.command()
def history(
    camera: Annotated[str, typer.Argument(metavar="SITE/CAMERA")],
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
    site, slash, name = camera.partition("/")
    if not slash:
        _fail(f"camera {camera[:80]!r} must be SITE/CAMERA, such as yard/gate", USAGE)
    begin, end = _moment(from_) or 0, _moment(to) or 0

    async def work() -> int:
        out = _Output(as_json)
        shown = 0
        async with _client(server, token, tls, ca) as client:
            pages = client.history(
                site, name, begin, end, page_size=min(limit or 500, 500), timeout_s=timeout
            )
            async for result in pages:
                out.result(result)
                shown += 1
                if shown == limit:
                    break
        return OK if shown else _nothing(f"no results of {camera} in that time")

    _run(work())


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
        out = _Output(as_json)
        found = 0
        async with _client(server, token, tls, ca) as client:
            for image in images:
                answer = await client.detect(image, model, min_score, timeout_s=timeout)
                found += len(answer.detections)
                out.item(
                    lambda name=str(image), answer=answer: show.image_object(name, answer),
                    lambda name=str(image), answer=answer: show.image_table(name, answer),
                )
        return OK if found else NOTHING

    _run(work())


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
        _fail(f"device {site[:80]!r} must be SITE/DEVICE, such as yard/box1", USAGE)

    async def work() -> int:
        async with _client(server, token, tls, ca) as client:
            if device is None:
                found = await client.devices(timeout_s=timeout)
            else:
                found = [await client.device(site, name, timeout_s=timeout)]
        out = _Output(as_json)
        if as_json:
            for one in found:
                out.line(show.device_object(one))
        elif found:
            out.print(show.device_table(found, time.time_ns()))
        return OK if found else _nothing("no device has reported yet")

    _run(work())


async def _watch(
    client: Client,
    cameras: Iterable[str] | None,
    *,
    since_ns: int | None,
    resume: str | None,
    final_only: bool,
    on_gap: Any,
    wait_s: float,
    count: int | None,
    out: _Output,
) -> int:
    last = ""
    shown = 0
    async with client:
        subscription = client.subscribe(
            cameras or None,
            since_ns=since_ns,
            resume=resume,
            final_only=final_only,
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


class _Output:
    """Standard output: lines for people or for programs, and quiet when nobody reads on."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = _PipeConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)
        self.broken = False

    def result(self, result: Any) -> None:
        """One line about a result."""
        self.item(lambda: show.result_object(result), lambda: show.result_line(result))

    def item(self, for_programs: Any, for_people: Any) -> None:
        """Whichever is asked for."""
        if self._as_json:
            self.line(for_programs())
        else:
            self.print(for_people())

    def line(self, value: dict[str, Any]) -> None:
        """One JSON object, at once."""
        self._guarded(lambda: print(json.dumps(value, separators=(",", ":")), flush=True))

    def print(self, shown: Any) -> None:
        """Anything that rich can show, at once."""
        self._guarded(lambda: self._console.print(shown))

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as problem:
            self.broken = True
            if problem.errno not in {errno.EPIPE, errno.EINVAL}:
                _silence()
                _fail(f"standard output cannot be written: {problem.strerror}", USAGE)
            _silence()
            raise SystemExit(OK) from None


class _PipeConsole(Console):
    """A console that leaves a broken pipe to us."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error, which goes on to us."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _silence() -> None:
    """Nothing more can be written: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _client(server: str, token: str | None, tls: bool, ca: Path | None) -> Client:
    secure: Tls = ca if ca is not None else tls
    return Client(server, token, tls=secure)


def _moment(text: str | None) -> int | None:
    return None if text is None else parse_moment(text, time.time_ns())


def _nothing(why: str) -> int:
    sys.stderr.write(f"{why}\n")
    return NOTHING


def _run(work: Coroutine[Any, Any, int]) -> NoReturn:
    raise SystemExit(asyncio.run(work))


def _fail(line: str, status: int) -> NoReturn:
    sys.stderr.write(f"eyeline: {line}\n")
    raise SystemExit(status)


def _status_of(problem: errors.EyelineError) -> int:
    match problem:
        case errors.NotFound():
            return NOTHING
        case errors.Unavailable() | errors.DeadlineExceeded():
            return UNREACHABLE
        case errors.InvalidRequest() | errors.InvalidName() | errors.ConfigError():
            return USAGE
        case _:
            return REFUSED


def main() -> None:
    """Entry point."""
    # One line a problem on stderr, the client's warnings included.
    logging.basicConfig(format="eyeline: %(message)s", level=logging.WARNING)
    try:
        status = app(standalone_mode=False)
    except errors.EyelineError as problem:
        _fail(str(problem), _status_of(problem))
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(INTERRUPTED) from None
    except _UsageError as problem:
        text = str(getattr(problem, "format_message", problem.__str__)())
        if "\n" in text:  # the help, for lack of a command
            sys.stderr.write(f"{text}\n")
            raise SystemExit(USAGE) from None
        _fail(f"{text} See 'eyeline --help'.", USAGE)
    raise SystemExit(status if isinstance(status, int) else OK)


if __name__ == "__main__":
    main()
