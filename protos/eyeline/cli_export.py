"""`eyeline export | grab | sink mqtt | sink webhook`: results and pictures for other tools."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eyeline import errors, show
from eyeline.client import Client
from eyeline.terminal import (
    DEFAULT_SERVER,
    INTERRUPTED,
    OK,
    TIMEOUT_S,
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
    moment,
    nothing,
    period,
    progress,
    run,
)
from eyeline.values import Result

if TYPE_CHECKING:
    from eyeline.sinks.pump import Counts, Sink, Wanted

sink_app = typer.Typer(
    help="Pass results on as they are stored: at least once, in order, going on where it stopped.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Format(StrEnum):
    """What `export` writes."""

    COCO = "coco"
    MOT = "mot"
    PARQUET = "parquet"
    JSONL = "jsonl"


def export(
    format_: Annotated[Format, typer.Argument(metavar="FORMAT", help="coco, mot, parquet or jsonl.")],
    cameras: Cameras = None,
    out: Annotated[Path | None, typer.Option(help="File to write; of mot, a folder.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Included; default: the oldest kept.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="TIME", help="Not included; default: now.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Of mot: only these objects; repeat it for several.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Write stored results for other tools: COCO JSON, MOT text, Parquet, or JSON lines.

    By default to results.json, results/, results.parquet or results.jsonl. Frames without an answer are never
    written as frames without objects: coco and mot leave them out and count them, the others name the reason.
    """
    from eyeline.exports import files

    path = out or Path({"coco": "results.json", "mot": "results"}.get(format_, f"results.{format_}"))
    begin, end = period(from_, to)
    end = end or time.time_ns()
    if classes and format_ is not Format.MOT:
        raise errors.InvalidRequest(f"--class is for mot alone: {format_.value} names each object's class")

    async def work() -> int:
        async with client_of(server, token, tls, ca) as client:
            named = cameras or sorted(f"{r.site}/{r.camera}" for r in await client.latest(timeout_s=timeout))
            if not named:
                return nothing("no results yet")
            with progress(f"export {format_.value}") as tell:
                results = history_of(client, named, begin, end, timeout, tell)
                written = await files.write(format_.value, path, results, frozenset(classes or ()))
        if not written["results"]:
            return nothing("no results in that time")
        counted = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in written.items() if count)
        Output(as_json).item(lambda: {"out": str(path), **written}, lambda: f"{path}: {counted}")
        return OK

    run(work())


async def history_of(
    client: Client, cameras: list[str], begin: int, end: int, timeout_s: float, tell: Any
) -> AsyncIterator[Result]:
    """Results of several cameras, one camera after the other, telling how far it is."""
    read = 0
    for index, camera in enumerate(cameras):
        site, name = camera_of(camera)
        first = begin
        async for result in client.history(site, name, begin, end, page_size=1000, timeout_s=timeout_s):
            first = first or result.captured_ns
            read += 1
            if read % 500 == 0:
                part = (result.captured_ns - first) / max(end - first, 1)
                tell((index + min(max(part, 0.0), 1.0)) / len(cameras), f"{camera}, {read} results")
            yield result


def grab(
    camera: Camera,
    out: Annotated[Path | None, typer.Option(help="File to write [default: SITE-CAMERA.jpg].")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The picture alone, nothing drawn in.")] = False,
    width: Annotated[int, typer.Option(min=0, max=4096, help="Scale to this width; 0: as it was sent.")] = 0,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Write what a camera shows now as a JPEG, with its answer drawn in.

    The picture is one that the device sent anyway: looking costs it nothing.
    """
    site, name = camera_of(camera)
    path = out or Path(f"{site}-{name}.jpg")

    async def work() -> int:
        async with client_of(server, token, tls, ca) as client:
            still = await client.still(site, name, annotated=not plain, width_px=width, timeout_s=timeout)
        try:
            path.write_bytes(still.jpeg)
        except OSError as problem:
            raise errors.ConfigError(f"{path} cannot be written: {problem.strerror}") from None
        Output(as_json).item(
            lambda: show.still_object(still, str(path)),
            lambda: show.still_line(still, str(path), time.time_ns()),
        )
        return OK

    run(work())


StateFile = Annotated[
    Path | None, typer.Option("--state", help="Remember how far it got here, and go on from there.")
]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Start here when nothing is remembered.")]
Final = Annotated[bool, typer.Option("--final", help="Leave out provisional results.")]
Objects = Annotated[bool, typer.Option("--objects", help="Only results with objects.")]
Classes = Annotated[
    list[str] | None, typer.Option("--class", help="Only results with such an object; repeat it for several.")
]
MinScore = Annotated[float, typer.Option(min=0, max=1, help="Of an object, for the two above.")]
TemplateFile = Annotated[
    Path | None, typer.Option("--template", help="File with the message, $name for parts of the result.")
]
AsText = Annotated[
    bool, typer.Option("--text", help="The template is plain text: nothing in it is escaped as for JSON.")
]
SkipRefused = Annotated[
    bool, typer.Option("--skip-refused", help="Leave out what the other side refuses, rather than stop.")
]
Count = Annotated[int | None, typer.Option(min=1, help="End after so many were sent.")]
SinkCa = Annotated[Path | None, typer.Option("--sink-ca", help="Trust this certificate of the other side.")]


@sink_app.command("mqtt")
def sink_mqtt(
    broker: Annotated[str, typer.Argument(metavar="URL", help="mqtt://HOST or mqtts://USER@HOST:8883.")],
    cameras: Cameras = None,
    topic: Annotated[str, typer.Option(help="$name for parts of the result.")] = "eyeline/$site/$camera",
    qos: Annotated[int, typer.Option(min=0, max=2, help="0 acknowledges nothing: results can be lost.")] = 1,
    retain: Annotated[
        bool, typer.Option("--retain", help="The broker keeps the newest of each topic.")
    ] = False,
    password_file: Annotated[
        Path | None, typer.Option(help="Its password [default: EYELINE_MQTT_PASSWORD].")
    ] = None,
    sink_ca: SinkCa = None,
    template: TemplateFile = None,
    as_text: AsText = False,
    state: StateFile = None,
    since: Since = None,
    final: Final = False,
    objects: Objects = False,
    classes: Classes = None,
    min_score: MinScore = 0.0,
    skip_refused: SkipRefused = False,
    count: Count = None,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Publish results to an MQTT broker, until interrupted.

    At least once: what was not acknowledged before a stop is sent again after it. Without --template the
    message is the result as JSON, as `eyeline watch --json` prints it.
    """
    from eyeline.sinks.mqtt import Mqtt
    from eyeline.sinks.template import Template

    named, message = Template(topic, as_json=False), _template(template, as_text)
    password = _secret(password_file) if password_file else os.environ.get("EYELINE_MQTT_PASSWORD")

    async def make() -> Sink:
        return Mqtt(
            broker,
            named.render,
            message.render,
            qos=qos,
            retain=retain,
            password=password,
            ca=sink_ca,
        )

    wanted = _wanted(objects, classes, min_score)
    client = client_of(server, token, tls, ca)
    limits = _Limits(cameras, moment(since), final, skip_refused, count)
    run(_pump(client, make, wanted, state, limits, Output(as_json)))


@sink_app.command("webhook")
def sink_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="http:// or https://, POSTed to.")],
    cameras: Cameras = None,
    header: Annotated[
        list[str] | None, typer.Option(help="NAME: VALUE, sent with each; repeat it for several.")
    ] = None,
    header_file: Annotated[Path | None, typer.Option(help="The same from a file: for secrets.")] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="Sign each body with what is in it: X-Eyeline-Signature.")
    ] = None,
    sink_ca: SinkCa = None,
    template: TemplateFile = None,
    as_text: AsText = False,
    state: StateFile = None,
    since: Since = None,
    final: Final = False,
    objects: Objects = False,
    classes: Classes = None,
    min_score: MinScore = 0.0,
    skip_refused: SkipRefused = False,
    count: Count = None,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
    tls: UseTls = False,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """POST results to a web address, until interrupted.

    At least once: what was not answered with 2xx before a stop is sent again after it; Idempotency-Key tells
    what came twice. 5xx and the like are tried again, 4xx stop it (or see --skip-refused).
    """
    from eyeline.sinks.webhook import Webhook

    message = _template(template, as_text)
    lines = [*(header or ()), *(_secret(header_file).splitlines() if header_file else ())]
    headers = dict(_header(line) for line in lines if line.strip())
    secret = _secret(secret_file).encode() if secret_file else None

    async def make() -> Sink:
        return Webhook(
            url,
            message.render,
            headers=headers,
            content_type="text/plain; charset=utf-8" if as_text else "application/json",
            secret=secret,
            ca=sink_ca,
        )

    wanted = _wanted(objects, classes, min_score)
    client = client_of(server, token, tls, ca)
    limits = _Limits(cameras, moment(since), final, skip_refused, count)
    run(_pump(client, make, wanted, state, limits, Output(as_json)))


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of what is passed on: which cameras, from when, which results, and until when."""

    cameras: list[str] | None
    since_ns: int | None
    final_only: bool
    skip_refused: bool
    count: int | None


async def _pump(
    client: Client, make: Any, wanted: Wanted, state_file: Path | None, limits: _Limits, out: Output
) -> int:
    from eyeline.sinks.pump import Counts, Pump, State

    state = State.load(state_file)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    counts = Counts()
    async with client:
        sink = await make()
        subscription = client.subscribe(
            limits.cameras or None,
            resume=state.token or None,
            since_ns=None if state.token else limits.since_ns,
            final_only=limits.final_only,
            on_gap="continue",
        )
        pump = Pump(subscription, sink, state, wanted, limits.skip_refused, limits.count, counts=counts)
        working = asyncio.create_task(pump.run())
        stopping = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.wait({working})
            await sink.close()
        _report(counts, subscription.gaps, state, out)
        if not working.cancelled():
            working.result()
    return INTERRUPTED if stopped.is_set() else OK


def _report(counts: Counts, gaps: list[errors.ResumeGapError], state: Any, out: Output) -> None:
    told = {
        "sent": counts.sent,
        "passed_over": counts.passed_over,
        "refused": counts.refused,
        "retries": counts.retries,
        "gaps": len(gaps),
        "resume_token": state.token,
    }
    words = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in list(told.items())[:-1])
    out.item(lambda: told, lambda: words)
    if state.path is None and state.token:
        sys.stderr.write("name a --state file to go on from here the next time\n")


def _template(path: Path | None, as_text: bool) -> Any:
    from eyeline.sinks.template import Template

    if path is None:
        return Template("$result")
    try:
        template = Template(path.read_text(encoding="utf-8"), as_json=not as_text)
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or "it is not UTF-8"
        raise errors.ConfigError(f"template {path} cannot be read: {why}") from None
    if not as_text:
        template.check_json()
    return template


def _wanted(objects: bool, classes: list[str] | None, min_score: float) -> Wanted:
    from eyeline.sinks.pump import Wanted

    return Wanted(objects, frozenset(classes or ()), min_score)


def _secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or "it is not UTF-8"
        raise errors.ConfigError(f"{path} cannot be read: {why}") from None


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip() or not line.isascii() or not line.isprintable():
        raise errors.InvalidRequest(f"header {line[:40]!r} must be NAME: VALUE, such as 'X-Site: yard'")
    return name.strip(), value.strip()
