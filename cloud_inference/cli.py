"""`cloud-inference worker | api | web | triton | repository | local | secrets | enroll | tell | revoke`,
`token`, `models`, `engines`, `tune`, and what `operate.cli` adds.

Each command imports only what it needs. Expected failures are one line on stderr and exit status 2; Ctrl-C is
130; SIGTERM, which asks a server to stop, is 0.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cloud_inference.running import run as _run
from eyeline.errors import ConfigError, EyelineError

app = typer.Typer(
    help="The cloud side of Eyeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the settings.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, such as triton.timeout_s=2; over file and environment."),
]

Device = Annotated[
    str, typer.Option(help="Where models run: cpu, gpu, or auto for a GPU where there is one.")
]
Instances = Annotated[int, typer.Option(min=1, max=64, help="Of each model, on each device.")]


@app.command()
def worker(config: Config = None, set_: Set = None) -> None:
    """Answer the cameras of the tenants: decode, infer, track, store."""
    settings = _settings(config, set_)
    from cloud_inference.worker import run

    _run(run(settings))


@app.command()
def api(config: Config = None, set_: Set = None) -> None:
    """Serve the gRPC API."""
    settings = _settings(config, set_)
    from cloud_inference.api.server import run

    _run(run(settings))


@app.command()
def web(config: Config = None, set_: Set = None) -> None:
    """Serve the web page: live pictures and answers, the fleet, and drawing."""
    settings = _settings(config, set_)
    from cloud_inference.web.server import run

    _run(run(settings))


@app.command()
def triton(  # typer calls it, by name
    config: Config = None,
    set_: Set = None,
    state: Annotated[Path | None, typer.Option(help="Folder for the model repository.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to serve, by name or folder; repeat it for several.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8002,
    max_batch: Annotated[int, typer.Option(min=1, max=256)] = 4,
    max_queue_delay_us: Annotated[int, typer.Option(min=0, max=1_000_000)] = 500,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of one run of the model.")] = 1,
    device: Device = "cpu",
    instances: Instances = 1,
) -> None:
    """Start tritonserver with a repository made from the catalogue."""
    settings = _settings(config, set_)
    from cloud_inference.triton_command import run
    from cloud_inference.triton_repository import Serving
    from cloud_inference.triton_server import Ports

    _run(
        run(
            model or [settings.triton.model],
            state_dir=state,
            host=host,
            ports=Ports(grpc_port, http_port, metrics_port),
            serving=Serving(
                max_batch, max_queue_delay_us, threads, device=_serving_device(device), instances=instances
            ),
        )
    )


@app.command()
def repository(
    out: Annotated[Path, typer.Option(help="Folder that gets the models.")],
    config: Config = None,
    set_: Set = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to serve, by name or folder; repeat it for several.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=256)] = 4,
    max_queue_delay_us: Annotated[int, typer.Option(min=0, max=1_000_000)] = 500,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of one run of the model.")] = 1,
    device: Device = "cpu",
    instances: Instances = 1,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; 0 is no limit.")] = 0,
    queue_timeout_us: Annotated[
        int, typer.Option(min=0, help="How long a request waits that says nothing else; 0 is no limit.")
    ] = 0,
) -> None:
    """Write Triton's model repository, for a tritonserver that is started by somebody else."""
    settings = _settings(config, set_)
    from cloud_inference import triton_repository
    from eyeline_models import catalogue

    names = model or [settings.triton.model]
    served = [triton_repository.of_card(catalogue.load(name)) for name in names]
    serving = triton_repository.Serving(
        max_batch,
        max_queue_delay_us,
        threads,
        device=_serving_device(device),
        instances=instances,
        max_queue=max_queue,
        queue_timeout_us=queue_timeout_us,
    )
    try:
        triton_repository.write(out, served, serving)
    except OSError as problem:
        raise ConfigError(f"--out {out} cannot be written: {problem.strerror}") from None


@app.command()
def local(  # typer calls it, by name
    config: Config = None,
    set_: Set = None,
    state: Annotated[Path | None, typer.Option(help="Folder for data, keys, logs.")] = None,
    tenant: Annotated[str, typer.Option(help="Name of the only tenant.")] = "default",
    device: Annotated[
        list[str] | None, typer.Option(help="SITE/DEVICE that gets credentials; repeat it for several.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    hub_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 4222,
    api_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 50051,
    web_port: Annotated[
        int | None, typer.Option(help="Of the web page [default: 8080, or a free one where that is taken].")
    ] = None,
    web_page: Annotated[bool, typer.Option("--web/--no-web", help="Serve the web page.")] = True,
    triton_port: Annotated[int, typer.Option(help="gRPC; 0 takes a free one.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of one run of the model.")] = 1,
    tls: Annotated[
        bool,
        typer.Option(
            "--tls", help="TLS on hub and API, with a certificate made here; the API asks for tokens."
        ),
    ] = False,
    public: Annotated[
        str | None, typer.Option(help="Name by which others reach this machine [default: --host].")
    ] = None,
    websocket_port: Annotated[
        int | None, typer.Option(help="Serve the hub over WebSocket too, such as 443; 0 takes a free one.")
    ] = None,
    encrypt: Annotated[
        Path | None, typer.Option("--encrypt", help="File with a secret: what the hub keeps is encrypted.")
    ] = None,
    encrypt_before: Annotated[
        Path | None, typer.Option("--encrypt-before", help="File with the secret until now, to change it.")
    ] = None,
) -> None:
    """Run hub, Triton, worker, API and web page on this machine, and keep them running."""
    settings = _settings(config, set_)
    from cloud_inference.config import is_loopback
    from cloud_inference.local import LocalOptions, port_or_free, run
    from cloud_inference.triton_repository import Serving
    from cloud_inference.triton_server import Ports

    if not tls and not is_loopback(host):
        raise ConfigError(f"--host {host} lets others in: give --tls too, or listen on 127.0.0.1")
    options = LocalOptions(
        state_dir=state or default_state_dir(),
        tenant=tenant,
        devices=tuple(_device(text) for text in device or ["local/edge"]),
        host=host,
        hub_port=hub_port,
        api_port=api_port,
        triton=Ports(grpc=triton_port),
        serving=Serving(threads=threads),
        tls=tls,
        public=public,
        websocket_port=websocket_port,
        store_key=_store_key(encrypt, encrypt_before),
        web_port=(port_or_free(host, 8080) if web_port is None else web_port) if web_page else None,
    )
    _run(run(settings, options))


DeviceName = Annotated[str, typer.Argument(metavar="TENANT/SITE/DEVICE")]
State = Annotated[Path | None, typer.Option(help="The hub's state folder [default: as for local].")]
Hub = Annotated[str | None, typer.Option(help="Address of the hub [default: the one of this machine].")]


@app.command()
def secrets(
    out: Annotated[Path, typer.Option(help="File to write; keep it as secret as what is in it.")],
    state: State = None,
    tenant: Annotated[list[str] | None, typer.Option(help="Repeat it for several.")] = None,
    hub: Annotated[
        str, typer.Option(help="Address of the hub inside the cluster.")
    ] = "nats://eyeline-nats:4222",
    public: Annotated[str | None, typer.Option(help="The same for devices [default: --hub].")] = None,
    namespace: Annotated[str | None, typer.Option(help="Of the Secrets [default: kubectl's].")] = None,
) -> None:
    """Write the Secrets that the manifests in deploy/k8s refer to."""
    from cloud_inference import cluster
    from cloud_inference.hub import TRUST_FOLDER
    from cloud_inference.trust import Trust

    folder = state or default_state_dir()
    made = cluster.secrets(folder, tenant or ["default"], hub=hub, public=public, namespace=namespace)
    cluster.write(out, made)
    print(out)
    if not cluster.devices_fit(Trust(folder / TRUST_FOLDER).account_jwts()):
        print("too many devices for a Secret: the hub knows them by cloud-inference tell", file=sys.stderr)


@app.command()
def enroll(
    device: DeviceName,
    state: State = None,
    hub: Hub = None,
    ca: Annotated[Path | None, typer.Option(help="Authority of the hub's certificate, PEM.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write [default: in the state folder].")] = None,
    expires: Annotated[str | None, typer.Option(help="Such as 365d [default: until revoked].")] = None,
    new_tenant: Annotated[
        bool, typer.Option("--new-tenant", help="The tenant is not known yet: make its account.")
    ] = False,
) -> None:
    """Write a device's credentials, for `edge-agent init --join`; older ones stay valid until revoked."""
    from cloud_inference import hub_admin
    from eyeline import log

    log.configure(level="error")
    path, told = asyncio.run(
        hub_admin.enroll(
            state or default_state_dir(),
            hub_admin.Device.parse(device),
            hub=hub,
            ca=ca,
            out=out,
            expires_s=_duration(expires) if expires else None,
            new_tenant=new_tenant,
        )
    )
    print(path)
    if not told:
        print(
            "the hub does not know it yet: it will once it starts here, or by cloud-inference tell",
            file=sys.stderr,
        )


@app.command()
def tell(
    state: State = None,
    hub: Hub = None,
    ca: Annotated[Path | None, typer.Option(help="Authority of the hub's certificate, PEM.")] = None,
) -> None:
    """Tell a running hub of every tenant and device, as after it was made anew."""
    from cloud_inference import hub_admin
    from eyeline import log

    log.configure(level="error")
    count = asyncio.run(hub_admin.tell(state or default_state_dir(), hub=hub, ca=ca))
    print(f"the hub knows {count} accounts")


@app.command()
def revoke(
    device: DeviceName,
    state: State = None,
    hub: Hub = None,
    ca: Annotated[Path | None, typer.Option(help="Authority of the hub's certificate, PEM.")] = None,
    old: Annotated[bool, typer.Option("--old", help="All but the newest: the end of a rotation.")] = False,
) -> None:
    """Make a device's credentials void: a running hub cuts it off at once."""
    from cloud_inference import hub_admin
    from eyeline import log

    log.configure(level="error")
    count, told = asyncio.run(
        hub_admin.revoke(
            state or default_state_dir(), hub_admin.Device.parse(device), hub=hub, ca=ca, keep_newest=old
        )
    )
    when = "the hub was told" if told else "no hub runs: it counts from its next start on"
    print(f"{device}: {count} revoked; {when}")


@app.command()
def token(
    tenant: Annotated[str, typer.Option(help="Whose results.")] = "default",
    cameras: Annotated[
        list[str] | None, typer.Option(help="SITE/CAMERA, either may be '*'; repeat it [default: */*].")
    ] = None,
    allow: Annotated[str, typer.Option(help="Of read, write, detect.")] = "read,detect",
    expires: Annotated[str, typer.Option(help="Such as 12h or 30d.")] = "30d",
    state: State = None,
    key: Annotated[
        Path | None, typer.Option(help="Private key, PEM [default: the one of local --tls].")
    ] = None,
    audience: Annotated[str, typer.Option(help="The API's api.audience.")] = "eyeline",
    name: Annotated[str | None, typer.Option(help="Whose it is, for the audit log.")] = None,
) -> None:
    """Print an access token for the API."""
    from cloud_inference import access
    from cloud_inference.local import PRIVATE_KEY

    print(
        access.mint(
            key or (state or default_state_dir()) / PRIVATE_KEY,
            tenant=tenant,
            cameras=cameras or ["*/*"],
            methods=[method.strip() for method in allow.split(",")],
            expires_s=_duration(expires),
            audience=audience,
            name=name,
        )
    )


def _duration(text: str) -> float:
    """Seconds of `30d`, `12h`, `10m` or `45s`; raises `ConfigError`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in units or not 0 < int(number) < 100_000:
        raise ConfigError(f"--expires {text!r} must be a number and s, m, h or d, such as 30d")
    return int(number) * units[unit]


def default_state_dir() -> Path:
    """`eyeline/cloud` in the user's folder for state."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "eyeline" / "cloud"


def main() -> None:
    """Entry point."""
    # Only where it is asked for: the converters load half a dozen libraries.
    if sys.argv[1:2] in (["models"], ["--help"], []):
        from cloud_inference.rollout.cli import register
        from eyeline_models.cli import app as models

        register(models)
        app.add_typer(models, name="models", help="The catalogue, bringing your own model, rollouts.")
    from cloud_inference.operate.cli import app as operate

    app.add_typer(operate)
    if sys.argv[1:2] in (["tune"], ["--help"], []):
        from cloud_inference.tune import command as tune

        app.command("tune")(tune)
    if sys.argv[1:2] in (["engines"], ["--help"], []):
        from cloud_inference.engines.cli import app as engines

        app.add_typer(engines, name="engines", help="TensorRT engines: build, measure, keep for all nodes.")
    try:
        app()
    except EyelineError as problem:
        sys.stderr.write(f"{problem}\n")
        raise SystemExit(2) from None


def _settings(config: Path | None, assignments: list[str] | None) -> Any:
    """The settings, and logging as they say; raises `ConfigError`."""
    from cloud_inference.config import load
    from eyeline import log

    overrides = {}
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not key or not equals:
            raise ConfigError(f"--set {assignment!r} must be KEY=VALUE, such as triton.timeout_s=2")
        try:
            overrides[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None
    settings = load(config, overrides)
    log.configure(level=settings.log_level)
    return settings


def _serving_device(text: str) -> Any:
    if text not in {"cpu", "gpu", "auto"}:
        raise ConfigError(f"--device {text!r} must be cpu, gpu or auto")
    return text


def _store_key(path: Path | None, before: Path | None) -> Any:
    from eyeline.nats_server import StoreKey
    from eyeline.settings import secret

    new = secret(None, path, "--encrypt")
    if new is None and before is None:
        return None
    if not new:
        raise ConfigError("--encrypt needs a file with a secret in it")
    return StoreKey(new, secret(None, before, "--encrypt-before"))


def _device(text: str) -> tuple[str, str]:
    site, slash, name = text.partition("/")
    if not slash or not site or not name:
        raise ConfigError(f"--device {text!r} must be SITE/DEVICE")
    return site, name
