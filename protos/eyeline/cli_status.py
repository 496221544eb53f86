"""`eyeline status | doctor`: how everything is, what is wrong, and how to mend it."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from eyeline import errors
from eyeline.terminal import (
    DEFAULT_SERVER,
    OK,
    TIMEOUT_S,
    WRONG,
    Ca,
    Json,
    Output,
    Server,
    Timeout,
    Token,
    UseTls,
    client_of,
    duration,
    nothing,
    run,
)

Stale = Annotated[
    str, typer.Option(metavar="DURATION", help="How old a report or an answer may be before it is wrong.")
]
_WINDOW_S = 60.0
_STYLES = {"fine": "green", "warning": "yellow", "wrong": "red"}


def status(
    server: Server = DEFAULT_SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    stale: Stale = "30s",
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """The one look at everything: cloud side, devices, cameras, and how old their answers are.

    Trouble is of the last minute; drops are counted since the agent started.
    """
    from eyeline import doctor, overview

    stale_s = duration(stale, "--stale")

    async def work() -> int:
        async with client_of(server, token, tls, ca) as client:
            seen = await overview.gather(client, window_s=_WINDOW_S, timeout_s=timeout)
        found = [it for it in doctor.findings(seen, stale_s=stale_s) if it.level != "fine"]
        out = Output(as_json)
        if as_json:
            out.line({**overview.as_object(seen), "findings": [_object(it) for it in found]})
        else:
            for line in overview.head(seen):
                out.print(line)
            if seen.cameras():
                out.print(overview.camera_table(seen))
                for line in overview.troubles(seen):
                    out.print(line)
            if found:
                wrong = sum(it.level == "wrong" for it in found)
                out.print(f"{wrong} wrong, {len(found) - wrong} warnings: eyeline doctor says more")
        return OK if seen.cameras() else nothing("no device has reported yet")

    run(work())


def doctor(
    server: Server = DEFAULT_SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    stale: Stale = "30s",
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Say what is wrong, from the connection to the last camera, and how to mend it.

    Exit status 0 when nothing is (warnings do not count), 5 when something is.
    """
    from eyeline import doctor as checks
    from eyeline import overview

    stale_s = duration(stale, "--stale")

    async def work() -> int:
        async with client_of(server, token, tls, ca) as client:
            access = checks.Access(client.address, token, tls, ca)
            found = await checks.connection(access)
            if all(it.level != "wrong" for it in found):
                try:
                    seen = await overview.gather(client, window_s=_WINDOW_S, timeout_s=timeout)
                except errors.EyelineError as problem:
                    found.append(checks.refusal(problem, access))
                else:
                    found += checks.findings(seen, stale_s=stale_s)
        out = Output(as_json)
        for one in found:
            out.item(partial(_object, one), partial(_shown, one))
        return WRONG if any(one.level == "wrong" for one in found) else OK

    run(work())


def _object(one: object) -> dict[str, object]:
    return {name: getattr(one, name) for name in ("level", "code", "what", "mend")} | {
        "at_ns": time.time_ns()
    }


def _shown(one: object) -> object:
    from rich.table import Table
    from rich.text import Text

    level, what, mend = (str(getattr(one, name)) for name in ("level", "what", "mend"))
    # A table without lines, so that long texts hang under their beginning.
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8, no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(level, _STYLES[level]), Text(what))
    if mend:
        table.add_row(Text(""), Text(f"-> {mend}", "dim"))
    return table
