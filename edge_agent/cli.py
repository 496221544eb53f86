"""The `edge-agent` command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from edge_agent import service, setup
from edge_agent.config import AgentSettings, Source, load, load_in_force
from eyeline import log
from eyeline.errors import EyelineError

DEFAULT_CONFIG = Path("/etc/eyeline/edge-agent.yaml")
_HUB = "nats://127.0.0.1:4222"

app = typer.Typer(
    help="Eyeline edge agent: cameras in, answers out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_service = typer.Typer(help="Run the agent as a system service.", no_args_is_help=True)
app.add_typer(_service, name="service")

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help=f"Configuration file [default: {DEFAULT_CONFIG} if it exists]."),
]
HubUrl = Annotated[str | None, typer.Option("--hub", help="Address of the hub: hub.url.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Folder for the spool: state_dir.")]


def _load(config: Path | None, **overrides: Any) -> AgentSettings:
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    return load_in_force(config, {key.replace("__", "."): value for key, value in overrides.items()})


@app.command()
def run(
    config: Config = None,
    hub: HubUrl = None,
    state_dir: StateDir = None,
    http_port: Annotated[int | None, typer.Option(help="Port for health and metrics: http.port.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    exit_when_done: Annotated[
        bool, typer.Option("--exit-when-done", help="End when every recording was played and delivered.")
    ] = False,
) -> None:
    """Run the cameras until told to stop."""
    flags = {
        "hub.url": hub,
        "state_dir": str(state_dir) if state_dir is not None else None,
        "http.port": http_port,
        "log_level": log_level,
    }
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    settings = load_in_force(config, flags)
    log.configure(level=settings.log_level)
    source = Source(config, lambda released: load_in_force(config, flags, released))
    raise typer.Exit(uvloop.run(_run(settings, source, exit_when_done=exit_when_done)))


async def _run(settings: AgentSettings, source: Source, *, exit_when_done: bool) -> int:
    asked: list[int] = []
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask(number: int) -> None:
        asked.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    from edge_agent.agent import Agent  # takes the codecs and the model runtime along

    status = await Agent(settings, source, exit_when_done=exit_when_done).run(stop)
    return 130 if not status and asked[:1] == [signal.SIGINT] else status


@app.command()
def watch(
    config: Config = None,
    state_dir: StateDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many answers.")] = None,
) -> None:
    """Print what the running agent answers by itself, while the cloud is away."""
    from edge_agent import watch as local
    from eyeline.show import result_line, result_object

    folder = state_dir or _load(config).state_dir
    log.configure(level="critical")

    async def show() -> None:
        shown = 0
        async with contextlib.aclosing(local.results(folder)) as results:
            async for result in results:
                told = json.dumps(result_object(result)) if as_json else result_line(result).plain
                print(told, flush=True)
                shown += 1
                if shown == count:
                    return

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def check(
    config: Config = None,
    hub: HubUrl = None,
    state_dir: StateDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seconds: Annotated[float, typer.Option(help="How long each camera is measured.", min=0.5, max=60)] = 2.0,
) -> None:
    """Try cameras, model, hub and disk out; exit status 1 if something is wrong."""
    from edge_agent import check as checks

    settings = _load(config, hub__url=hub, state_dir=str(state_dir) if state_dir is not None else None)
    # What goes wrong is in the findings.
    log.configure(level="critical")
    findings = asyncio.run(checks.check(settings, seconds=seconds))
    good = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"ok": good, "findings": [finding.as_dict() for finding in findings]}, indent=2))
    else:
        table = Table("", "what", "found", "what to do", title=f"device {settings.device}")
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else "[red]wrong[/red]"
            table.add_row(mark, finding.what, _plain(finding.found), _plain(finding.mend))
        _console().print(table)
    raise typer.Exit(0 if good else 1)


@app.command()
def calibrate(
    camera: Annotated[str | None, typer.Argument(help="Name of one camera [default: all].")] = None,
    config: Config = None,
    state_dir: StateDir = None,
    show: Annotated[bool, typer.Option("--show", help="Only show the profiles there are.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask, and leave.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for profiles.", min=1)] = 900.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Have the cloud score what a camera could send, and sit on the cheapest rung that is good enough."""
    from edge_agent import calibrate_command as command

    settings = _load(config, state_dir=str(state_dir) if state_dir is not None else None)
    log.configure(level="critical")
    cameras, late = command.chosen(settings, camera), []
    if not show:
        before = command.ask(settings, cameras)
        if no_wait:
            return
        late = command.follow(settings, before, lambda line: print(line, file=sys.stderr), timeout)
    found = {name: command.profile_of(settings, name) for name in cameras}
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, one in found.items():
            _console().print(command.table(one) if one is not None else f"{name}: no profile")
    for name in late:
        print(f"edge-agent: {name} has no new profile after {timeout:g} s", file=sys.stderr)
    raise typer.Exit(1 if late or None in found.values() else 0)


@app.command()
def init(
    camera: Annotated[
        list[str] | None, typer.Option("--camera", help="NAME=ADDRESS; without any, cameras are looked for.")
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option("--join", help="File that the cloud made for this device: names, hub, keys."),
    ] = None,
    hub: Annotated[str | None, typer.Option("--hub", help=f"Address of the hub [default: {_HUB}].")] = None,
    config: Annotated[Path, typer.Option("--config", "-c", help="File to write.")] = Path("edge-agent.yaml"),
    device: Annotated[
        str | None, typer.Option(help="Name of this device [default: the host's name].")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Name of the site [default: default].")] = None,
    tenant: Annotated[str | None, typer.Option(help="Name of the tenant [default: default].")] = None,
    state_dir: Annotated[Path, typer.Option(help="Folder for the spool.")] = Path("/var/lib/eyeline"),
    user: Annotated[str | None, typer.Option(help="User of found ONVIF cameras.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="File with their password.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to look for cameras.", min=0.5, max=60)] = 3.0,
    no_test: Annotated[bool, typer.Option("--no-test", help="Do not try the cameras.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a configuration from given or found cameras, after trying them."""
    from eyeline.settings import secret

    log.configure(level="critical")
    given = setup.read_join(join) if join is not None else None
    if camera:
        cameras = [setup.parse_camera(text) for text in camera]
    else:
        cameras = _find(seconds, user, secret(None, password_file, "--password-file"))
    written = setup.write(
        config,
        tenant=tenant or (given.tenant if given else "default"),
        site=site or (given.site if given else "default"),
        device=device or (given.device if given else setup.device_name()),
        hub=hub or (given.hub if given else _HUB),
        credentials=given.text if given else None,
        state_dir=state_dir,
        cameras=cameras,
        force=force,
    )
    try:
        settings = load(config)
    except EyelineError:
        # What was just made is of no use.
        for file in written:
            file.unlink(missing_ok=True)
        raise
    for file in written:
        print(f"wrote {file}")
    if no_test:
        return
    from edge_agent.check import check_camera

    bad = 0
    for chosen in settings.cameras:
        finding = check_camera(chosen, 2.0)
        bad += not finding.ok
        print(f"{'ok   ' if finding.ok else 'wrong'} {finding.what}: {finding.found}")
    if bad:
        print(
            f"{bad} of {len(settings.cameras)} cameras give no picture: mend {config}, then edge-agent check"
        )
    raise typer.Exit(1 if bad else 0)


def _find(seconds: float, user: str | None, password: str | None) -> list[setup.NewCamera]:
    from edge_agent import onvif
    from edge_agent.discover import discover

    cameras: list[setup.NewCamera] = []
    for found in discover(seconds):
        note = " ".join(part for part in (found.name, found.model, found.host) if part)
        name = setup.camera_name(found.name or found.host, [camera.name for camera in cameras])
        try:
            streams = onvif.streams(found, user, password)
        except EyelineError as problem:
            print(f"{note}: {problem}", file=sys.stderr)
            continue
        if streams:
            cameras.append(setup.NewCamera(name, streams[0].uri, user, password, note))
    return cameras


@_service.command("install")
def service_install(
    config: Annotated[Path, typer.Option("--config", "-c", help="Configuration file.")] = DEFAULT_CONFIG,
    user: Annotated[str | None, typer.Option(help="User to run as [default: one made by systemd].")] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the unit instead.")] = False,
) -> None:
    """Write and enable a systemd unit."""
    settings = load(config)
    text = service.unit_text(config.absolute(), settings.state_dir, user=user)
    if print_only:
        print(text, end="")
        return
    service.install(text)
    print(f"{service.NAME} is enabled and running: see `systemctl status {service.NAME}`")


def _console() -> Console:
    """Wide enough for whole lines where nobody set a width."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def main() -> None:
    """Entry point: expected failures are one line on stderr and exit status 2."""
    try:
        app()
    except EyelineError as problem:
        print(f"edge-agent: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        raise SystemExit(1) from None
