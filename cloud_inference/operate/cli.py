"""`cloud-inference audit | erase | release`: what an operator does to a running system."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from eyeline import log
from eyeline.errors import ConfigError

app = typer.Typer(no_args_is_help=True)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="The cloud's settings [default: local's].")
]
State = Annotated[Path | None, typer.Option(help="Folder of cloud-inference local [default: as for local].")]
Tenant = Annotated[str | None, typer.Option(help="Whose [default: the only one].")]
Camera = Annotated[str, typer.Option(help="SITE/CAMERA.")]
From = Annotated[
    str | None, typer.Option("--from", help="Such as 2026-05-01T06:00Z; without, from the first.")
]
To = Annotated[str | None, typer.Option("--to", help="The same; it is not included. Without, up to now.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def audit(
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
    camera: Annotated[str | None, typer.Option(help="Only what tells of SITE/CAMERA.")] = None,
    what: Annotated[
        str | None, typer.Option(help="Only view, export, desired, masks, erase or release.")
    ] = None,
    from_: From = None,
    to: To = None,
    as_json: Json = False,
) -> None:
    """Print the audit log, and check that nothing was taken out of it or changed; exit status 1 if so."""
    from cloud_inference.audit import Chain, Entry, read
    from cloud_inference.operate import connect
    from eyeline.subjects import check_pattern

    settings = _settings(config, state)
    start_ns, end_ns = moment_ns(from_, "--from"), moment_ns(to, "--to")
    wanted = check_pattern(camera) if camera is not None else None
    chain = Chain()

    async def run() -> list[Entry]:
        found = []
        async with connect.account(settings, tenant) as account:
            async for entry in read(account.connection, account.js):
                chain.follow(entry)
                inside = entry.stored_ns >= start_ns and not (end_ns and entry.stored_ns >= end_ns)
                kind = what is None or entry.what.startswith(what)
                if inside and kind and (wanted is None or entry.concerns(*wanted)):
                    found.append(entry)
        return found

    for entry in asyncio.run(run()):
        if as_json:
            print(json.dumps(_as_dict(entry)))
        else:
            detail = json.dumps(entry.detail) if entry.detail else ""
            print(
                f"{shown(entry.stored_ns)}  {entry.what:8} {entry.who}: {', '.join(entry.cameras)} {detail}"
            )
    for problem in chain.broken:
        typer.echo(f"broken: {problem}", err=True)
    if not as_json:
        print(f"{chain.entries} entries, the chain {'is BROKEN' if chain.broken else 'holds'}")
    raise typer.Exit(1 if chain.broken else 0)


def _as_dict(entry: Any) -> dict[str, Any]:
    names = ("sequence", "stored_ns", "when_ns", "who", "what", "cameras", "detail", "digest")
    return {name: getattr(entry, name) for name in names}


def _settings(config: Path | None, state: Path | None) -> Any:
    from cloud_inference.cli import default_state_dir
    from cloud_inference.operate import connect

    log.configure(level="error")
    return connect.settings(config, state or default_state_dir())


def moment_ns(text: str | None, option: str) -> int:
    """Nanoseconds since the Unix epoch of an ISO time, UTC where it says no zone; 0 for None."""
    if text is None:
        return 0
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be a time such as 2026-05-01T06:00Z") from None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1e6) * 1000


def shown(moment: int) -> str:
    """A time for people."""
    return datetime.fromtimestamp(moment / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
