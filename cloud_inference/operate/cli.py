"""`cloud-inference audit | erase | release`: what an operator does to a running system."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from eyeline import log
from eyeline.errors import ConfigError
from eyeline.moments import parse_moment

app = typer.Typer(no_args_is_help=True)
_release = typer.Typer(help="Release configuration, a model or the agent to devices.", no_args_is_help=True)
app.add_typer(_release, name="release")

T = TypeVar("T")

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="The cloud's settings [default: local's].")
]
State = Annotated[Path | None, typer.Option(help="Folder of cloud-inference local [default: as for local].")]
Tenant = Annotated[str | None, typer.Option(help="Whose [default: the only one].")]
Camera = Annotated[str, typer.Option(help="SITE/CAMERA.")]
From = Annotated[
    str | None, typer.Option("--from", help="Such as 2026-05-01T06:00:00Z, or 2d; without, from the first.")
]
To = Annotated[str | None, typer.Option("--to", help="The same; it is not included. Without, up to now.")]
Whom = Annotated[str, typer.Option("--to", help="SITE/DEVICE, 'SITE/*' or '*/*'.")]
Key = Annotated[Path | None, typer.Option(help="Seed that signs it [default: the one in the state folder].")]
Factory = Annotated[
    bool, typer.Option("--factory", help="Instead: back to what the devices were installed with.")
]
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
    start_ns, end_ns = (moment_ns(text) if text else 0 for text in (from_, to))
    wanted = check_pattern(camera) if camera is not None else None
    chain = Chain()

    async def run() -> list[Entry]:
        found = []
        async with connect.account(settings, tenant) as account:
            async for entry in read(account.js):
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


@app.command()
def erase(
    camera: Camera,
    from_: Annotated[str, typer.Option("--from", help="Such as 2026-05-01T06:00:00Z, or 2h ago as 2h.")],
    to: Annotated[str, typer.Option("--to", help="The same; not included.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for the camera's devices.", min=0)] = 30,
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Erase what a camera showed in a time, everywhere, and look again; exit status 1 if anything is left."""
    from cloud_inference.operate import connect
    from cloud_inference.operate import erase as erasing

    settings = _settings(config, state)
    site, _, name = camera.partition("/")
    order = erasing.Order(site, name, moment_ns(from_), moment_ns(to))

    async def run() -> erasing.Report:
        async with connect.account(settings, tenant) as account:
            return await erasing.erase(account, order, wait_s=wait)

    report = asyncio.run(run())
    if as_json:
        print(json.dumps(erasing.as_dict(report)))
    else:
        for place in report.places:
            counts = f"{place.erased} messages, {place.erased_bytes} bytes erased, {place.left} left"
            print(f"{place.name:12} {counts}")
        for device in report.devices:
            waits = "not heard of yet; it erases when it hears of this"
            print(f"spool of {device}: {waits if device in report.pending else 'nothing left'}")
        print("complete" if report.complete else "NOT complete: give the command again later")
    raise typer.Exit(0 if report.complete else 1)


@_release.command("config")
def release_config(
    to: Whom,
    file: Annotated[Path | None, typer.Argument(help="Settings that go over the devices' own files.")] = None,
    version: Annotated[str | None, typer.Option(help="For people [default: from its digest].")] = None,
    factory: Factory = False,
    key: Key = None,
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
) -> None:
    """Release settings: sections go over the device's own key by key, cameras by their names."""
    from cloud_inference.operate import release

    artefact = release.factory("config") if factory else release.config_artefact(_given(file), version)
    _publish(artefact, to, key, config, state, tenant)


@_release.command("model")
def release_model(
    to: Whom,
    model: Annotated[str | None, typer.Argument(help="Name in the catalogue, or a model's folder.")] = None,
    allow_downgrade: Annotated[bool, typer.Option("--allow-downgrade")] = False,
    factory: Factory = False,
    key: Key = None,
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
) -> None:
    """Release the model that runs on the devices."""
    from cloud_inference.operate import release

    artefact = release.factory("model") if factory else release.model_artefact(_given(model))
    _publish(artefact, to, key, config, state, tenant, allow_downgrade=allow_downgrade)


@_release.command("agent")
def release_agent(
    to: Whom,
    wheels: Annotated[
        list[Path] | None, typer.Argument(help="Eyeline's wheel, and others that it needs.")
    ] = None,
    allow_downgrade: Annotated[
        bool, typer.Option("--allow-downgrade", help="The version may be lower than what runs.")
    ] = False,
    factory: Factory = False,
    key: Key = None,
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
) -> None:
    """Release the agent itself."""
    from cloud_inference.operate import release

    artefact = release.factory("agent") if factory else release.agent_artefact(_given(wheels))
    _publish(artefact, to, key, config, state, tenant, allow_downgrade=allow_downgrade)


@app.command()
def rollout(
    wait: Annotated[float, typer.Option(help="Seconds to wait until every device is through.", min=0)] = 0,
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Show what was released and how far each device is; exit status 1 unless all have it."""
    from dataclasses import asdict

    from cloud_inference.operate import connect, release

    settings = _settings(config, state)

    async def run() -> list[release.Row]:
        async with connect.account(settings, tenant) as account:
            return await release.until_done(account, wait)

    rows = asyncio.run(run())
    for row in rows:
        if as_json:
            print(json.dumps(asdict(row)))
        else:
            runs = f", runs {row.runs}" if row.runs and row.runs != row.wanted else ""
            print(f"{row.device}  {row.kind}  {row.wanted}: {row.state}{runs}  {row.message}".rstrip())
    if not rows and not as_json:
        print("nothing was released for a device that ever reported")
    raise typer.Exit(0 if all(row.done for row in rows) else 1)


def _given(value: T | None) -> T:
    if not value:
        raise ConfigError("say what to release, or give --factory")
    return value


def _publish(
    artefact: Any,
    to: str,
    key: Path | None,
    config: Path | None,
    state: Path | None,
    tenant: str | None,
    *,
    allow_downgrade: bool = False,
) -> None:
    from cloud_inference.cli import default_state_dir
    from cloud_inference.hub import TRUST_FOLDER
    from cloud_inference.operate import connect, release
    from cloud_inference.trust import Trust
    from eyeline.nkey import NKey

    settings = _settings(config, state)
    if key is not None:
        try:
            signer = NKey.from_seed(key.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as problem:
            raise ConfigError(f"--key {key} cannot be read: {problem}") from None
    else:
        folder = (state or default_state_dir()) / TRUST_FOLDER
        if not folder.is_dir():
            raise ConfigError(f"there is no key in {folder}: give --key, or --state")
        signer = Trust(folder).release_key()

    async def run() -> Any:
        async with connect.account(settings, tenant) as account:
            return await release.publish(account, artefact, to, signer, allow_downgrade=allow_downgrade)

    manifest = asyncio.run(run())
    what = f"{artefact.kind} {artefact.version}" if artefact.data else f"{artefact.kind} as installed"
    print(f"released {what} to {to}, serial {manifest.serial}; see cloud-inference rollout")


def _as_dict(entry: Any) -> dict[str, Any]:
    names = ("sequence", "stored_ns", "when_ns", "who", "what", "cameras", "detail", "digest")
    return {name: getattr(entry, name) for name in names}


def _settings(config: Path | None, state: Path | None) -> Any:
    from cloud_inference.cli import default_state_dir
    from cloud_inference.operate import connect

    log.configure(level="error")
    return connect.settings(config, state or default_state_dir())


def moment_ns(text: str) -> int:
    """Nanoseconds since the Unix epoch; raises `InvalidRequest`."""
    return parse_moment(text, time.time_ns())


def shown(moment: int) -> str:
    """A time for people."""
    return datetime.fromtimestamp(moment / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
