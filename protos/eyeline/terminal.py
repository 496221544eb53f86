"""What the `eyeline` commands have in common: options, exit statuses, and how they write to the terminal."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import eyeline._quiet  # noqa: F401  # before anything that loads gRPC

# isort: split
import typer
from rich.console import Console

from eyeline import errors, show
from eyeline.client import Client, ClientCertificate, Tls
from eyeline.moments import parse_moment

OK, NOTHING, USAGE, UNREACHABLE, REFUSED, WRONG, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

EXIT_STATUSES: Final = """
Exit status: 0 fine; 1 nothing found; 2 wrong usage or input; 3 the server cannot be reached or does not
answer in time; 4 the server refused or failed, or results are no longer kept; 5 doctor found something wrong;
130 interrupted.
"""

DEFAULT_SERVER: Final = "127.0.0.1:50051"
TIMEOUT_S: Final = 10.0
# Of a pipe or file, which has none: nothing is cut off there.
_WIDE: Final = 250
# After Ctrl-C.
_END_WITHIN_S: Final = 5.0


def _known_cameras(incomplete: str) -> list[str]:
    """For the shell's completion: the cameras of the server in the environment, if it answers at once."""

    async def ask() -> list[str]:
        ca = os.environ.get("EYELINE_CA")
        server = os.environ.get("EYELINE_SERVER", DEFAULT_SERVER)
        async with Client(server, os.environ.get("EYELINE_TOKEN"), tls=Path(ca) if ca else False) as client:
            return sorted(f"{r.site}/{r.camera}" for r in await client.latest(timeout_s=1.0))

    try:
        return [name for name in asyncio.run(ask()) if name.startswith(incomplete)]
    except errors.EyelineError:
        return []


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
Cameras = Annotated[
    list[str] | None,
    typer.Argument(metavar="SITE/CAMERA", help="Default: all.", autocompletion=_known_cameras),
]
Camera = Annotated[str, typer.Argument(metavar="SITE/CAMERA", autocompletion=_known_cameras)]


class Output:
    """Standard output: lines for people or for programs, and quiet when nobody reads on."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.console = _PipeConsole(highlight=False, markup=False, emoji=False)
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = _WIDE
        self.broken = False

    def result(self, result: Any) -> None:
        """One line about a result."""
        self.item(lambda: show.result_object(result), lambda: show.result_line(result))

    def item(self, for_programs: Callable[[], dict[str, Any]], for_people: Callable[[], Any]) -> None:
        """Whichever is asked for."""
        if self._as_json:
            self.line(for_programs())
        else:
            self.print(for_people())

    def line(self, value: dict[str, Any]) -> None:
        """One JSON object, at once."""
        self._guarded(lambda: print(json.dumps(value, separators=(",", ":")), flush=True))  # noqa: T201

    def print(self, shown: Any) -> None:
        """Anything that rich can show, at once; lines are never broken, tables fit the terminal."""
        whole_lines = isinstance(shown, str) or type(shown).__name__ == "Text"
        self._guarded(lambda: self.console.print(shown, soft_wrap=whole_lines))

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as problem:
            self.broken = True
            if problem.errno not in {errno.EPIPE, errno.EINVAL}:
                _silence()
                fail(f"standard output cannot be written: {problem.strerror}", USAGE)
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


@contextmanager
def progress(what: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error while it lasts, where that is a terminal.

    Gives `tell(part, words)`, part being 0 to 1.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=1.0, words="")
        yield lambda part, words: bar.update(task, completed=min(max(part, 0.0), 1.0), words=words)


# Set before the command, for all of them: `eyeline --cert FILE --key FILE watch`.
_own: list[tuple[Path, Path]] = []


def use_certificate(certificate: Path | None, key: Path | None) -> None:
    """Show this certificate to the server."""
    _own.clear()
    if (certificate is None) != (key is None):
        fail("--cert and --key belong together", USAGE)
    if certificate is not None and key is not None:
        _own.append((certificate, key))


def client_of(server: str, token: str | None, tls: bool, ca: Path | None) -> Client:
    """The client that the common options ask for."""
    secure: Tls = ca if ca is not None else tls
    if _own:
        secure = ClientCertificate(*_own[0], ca)
    return Client(server, token, tls=secure)


def camera_of(text: str) -> tuple[str, str]:
    """Site and camera."""
    site, slash, name = text.partition("/")
    if not slash:
        fail(f"camera {text[:80]!r} must be SITE/CAMERA, such as yard/gate", USAGE)
    return site, name


def moment(text: str | None) -> int | None:
    """Nanoseconds since the Unix epoch, of a time as people write it."""
    return None if text is None else parse_moment(text, time.time_ns())


def period(from_: str | None, to: str | None) -> tuple[int, int]:
    """What `--from` and `--to` say, nanoseconds since the Unix epoch, 0 for what they do not."""
    begin, end = moment(from_) or 0, moment(to) or 0
    if to is not None and end <= begin:
        fail("--to must be later than --from", USAGE)
    return begin, end


def duration(text: str, option: str) -> float:
    """Seconds of `30s`, `10m` or `1h30m`; raises `InvalidRequest`."""
    now = time.time_ns()
    try:
        seconds = (now - parse_moment(text, now)) / 1e9
    except errors.InvalidRequest:
        seconds = -1.0
    if seconds <= 0 or text[:4].isdigit():
        raise errors.InvalidRequest(f"{option} {text[:60]!r} is no duration; write 30s, 10m, 1h30m or 2d")
    return seconds


def nothing(why: str) -> int:
    """Say that nothing was found."""
    sys.stderr.write(f"{why}\n")
    return NOTHING


def run(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a command's work; its result is the exit status. Ctrl-C ends it, at once or after some seconds."""
    raise SystemExit(asyncio.run(_interruptible(work)))


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  # we are in it

    def interrupt(_number: int, _frame: object) -> None:
        # A second one waits for nothing; nor do we for ever: a call that ends at that moment can keep gRPC.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        leaving = threading.Timer(_END_WITHIN_S, os._exit, (INTERRUPTED,))
        leaving.daemon = True
        leaving.start()
        loop.call_soon_threadsafe(task.cancel)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        return INTERRUPTED


def fail(line: str, status: int) -> NoReturn:
    """End with one line on standard error."""
    sys.stderr.write(f"eyeline: {line}\n")
    raise SystemExit(status)


def status_of(problem: errors.EyelineError) -> int:
    """The exit status of an expected failure."""
    match problem:
        case errors.NotFound():
            return NOTHING
        case errors.Unavailable() | errors.DeadlineExceeded():
            return UNREACHABLE
        case errors.InvalidRequest() | errors.InvalidName() | errors.ConfigError():
            return USAGE
        case _:
            return REFUSED
