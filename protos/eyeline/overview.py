"""The one look at everything: devices, cameras, their newest answers and the cloud side."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from eyeline import show
from eyeline._status import one_line
from eyeline.client import Client
from eyeline.errors import ServerError
from eyeline.moments import format_duration
from eyeline.v1 import device_pb2, system_pb2
from eyeline.values import Provenance, Result

# Of each camera's newest answers, so many at most are looked at.
_MOST_RECENT = 3000
_AT_ONCE = 8
# A worker announces itself several times in this.
WORKER_SILENT_S = 15.0

Name = tuple[str, str]


@dataclass(slots=True)
class Recent:
    """What became of a camera's frames in the last minute or so."""

    frames: int = 0
    without_answer: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    delays_ns: list[int] = field(default_factory=list)

    @property
    def delay_ns(self) -> int | None:
        """Median from capture to answer, of live frames with pixels; None without any."""
        return sorted(self.delays_ns)[len(self.delays_ns) // 2] if self.delays_ns else None

    def add(self, result: Result) -> None:
        """Count a result."""
        self.frames += result.frames
        self.sources[result.provenance.name] += result.frames
        if result.provenance is Provenance.DEGRADED:
            self.without_answer[result.reason or "unknown"] += result.frames
        elif result.provenance is Provenance.CLOUD and not result.late and result.captured_ns:
            self.delays_ns.append(result.answered_ns - result.captured_ns)


@dataclass(slots=True)
class Overview:
    """Everything at one moment. system: None from a server that is too old to tell."""

    server: str
    now_ns: int
    system: system_pb2.GetSystemResponse | None
    devices: list[device_pb2.Device]
    latest: dict[Name, Result]
    recent: dict[Name, Recent]
    # Round trip of the question, and the middle of it by the local clock, nanoseconds.
    asked_ns: int = 0
    round_trip_ns: int = 0

    def cameras(self) -> list[tuple[Name, device_pb2.Device | None, device_pb2.CameraStatus | None]]:
        """Every camera that a device reports or that has answers, by name."""
        found: dict[Name, tuple[device_pb2.Device | None, device_pb2.CameraStatus | None]] = dict.fromkeys(
            self.latest, (None, None)
        )
        for device in sorted(self.devices, key=lambda it: it.status.stored_ns):
            for camera in device.status.cameras:
                found[device.status.site, camera.camera] = device, camera
        return [(name, *found[name]) for name in sorted(found)]

    def workers_alive(self) -> int:
        """Workers that announced themselves lately."""
        if self.system is None:
            return 0
        since = self.system.now_ns - WORKER_SILENT_S * 1e9
        return sum(worker.heard_ns >= since for worker in self.system.workers)


async def gather(client: Client, *, window_s: float, timeout_s: float) -> Overview:
    """Ask for everything; raises what the client raises."""
    began = time.time_ns()
    system = await _system(client, timeout_s)
    ended = time.time_ns()
    devices, newest = await asyncio.gather(
        client.devices(timeout_s=timeout_s), client.latest(timeout_s=timeout_s)
    )
    latest = {(result.site, result.camera): result for result in newest}
    now_ns = system.now_ns + (time.time_ns() - ended) if system is not None else time.time_ns()
    slots = asyncio.Semaphore(_AT_ONCE)

    async def recent_of(name: Name) -> tuple[Name, Recent]:
        recent = Recent()
        async with slots:
            since_ns = now_ns - int(window_s * 1e9)
            async for result in client.history(*name, since_ns, page_size=1000, timeout_s=timeout_s):
                recent.add(result)
                if recent.frames >= _MOST_RECENT:
                    break
        return name, recent

    fresh = [name for name, result in latest.items() if now_ns - last_ns(result) < window_s * 1e9]
    recent = dict(await asyncio.gather(*(recent_of(name) for name in fresh)))
    return Overview(
        client.address, now_ns, system, devices, latest, recent, (began + ended) // 2, ended - began
    )


async def _system(client: Client, timeout_s: float) -> system_pb2.GetSystemResponse | None:
    try:
        return await client.system(timeout_s=timeout_s)
    except ServerError as problem:
        if problem.status != "UNIMPLEMENTED":
            raise
        return None


def last_ns(result: Result) -> int:
    """When the newest frame that a result covers was captured, nanoseconds since the Unix epoch."""
    return int(result.proto.last_captured_ns or result.captured_ns)


def as_object(seen: Overview) -> dict[str, Any]:
    """For JSON."""
    return {
        "server": seen.server,
        "now_ns": seen.now_ns,
        "system": None if seen.system is None else _system_object(seen.system),
        "workers_alive": seen.workers_alive(),
        "cameras": [
            {
                "camera": "/".join(name),
                "device": device.status.device if device is not None else None,
                "state": show.state_name(camera) if camera is not None else None,
                "rung": camera.rung if camera is not None else None,
                **_answer_object(seen, name),
            }
            for name, device, camera in seen.cameras()
        ],
        "devices": [show.device_object(device) for device in seen.devices],
    }


def _answer_object(seen: Overview, name: Name) -> dict[str, Any]:
    latest, recent = seen.latest.get(name), seen.recent.get(name, Recent())
    return {
        "provenance": latest.provenance.name if latest is not None else None,
        "reason": latest.reason if latest is not None else None,
        "answer_age_ns": seen.now_ns - last_ns(latest) if latest is not None else None,
        "delay_ns": recent.delay_ns,
        "frames": recent.frames,
        "frames_by_provenance": dict(recent.sources),
        "frames_without_answer": dict(recent.without_answer),
    }


def _system_object(system: system_pb2.GetSystemResponse) -> dict[str, Any]:
    streams = {}
    for name in ("frames", "results", "dead") if system.HasField("hub") else ():
        stream = getattr(system.hub, name)
        streams[name] = {
            "messages": stream.messages,
            "bytes": stream.bytes,
            "limit_bytes": stream.limit_bytes,
            "oldest_ns": stream.oldest_ns,
        }
    return {
        "version": system.version,
        "tenant": system.caller.tenant,
        "allowed": {"cameras": list(system.caller.cameras), "methods": list(system.caller.methods)},
        "token_expires_ns": system.caller.expires_ns,
        "model": system.inference.model.name,
        "model_version": system.inference.model.version,
        "model_ready": system.inference.ready,
        "model_problem": system.inference.problem,
        "workers": [
            {
                "worker": worker.worker,
                "heard_ns": worker.heard_ns,
                "cameras": [f"{it.site}/{it.camera}" for it in worker.cameras],
            }
            for worker in system.workers
        ],
        "hub": streams,
    }


def head(seen: Overview) -> list[Text]:
    """Lines about the cloud side."""
    if seen.system is None:
        return [Text(f"{seen.server}  an older server, which tells nothing of itself", "yellow")]
    system = seen.system
    first = Text(f"{seen.server}  ", "bold")
    first.append(f"eyeline {one_line(system.version)}", "default")
    model = f"{one_line(system.inference.model.name)} {one_line(system.inference.model.version)}".strip()
    ready = system.inference.ready
    first.append(f"  model {model} ")
    first.append(
        "ready" if ready else f"not ready: {one_line(system.inference.problem)}", "green" if ready else "red"
    )
    alive = seen.workers_alive()
    first.append("  workers ")
    first.append(str(alive), "green" if alive else "red")
    silent = len(system.workers) - alive
    if silent:
        first.append(f" ({silent} silent)", "yellow")
    lines = [first]
    if system.HasField("hub"):
        hub = system.hub
        second = Text("hub  ")
        second.append(f"frames {_size(hub.frames)}")
        if hub.frames.oldest_ns:
            second.append(f", oldest {format_duration(max(0, system.now_ns - hub.frames.oldest_ns))}")
        second.append(f"  results {_size(hub.results)}")
        if hub.dead.messages:
            second.append(f"  set aside {hub.dead.messages} messages", "yellow")
        lines.append(second)
    return lines


def camera_table(seen: Overview) -> Table:
    """One row a camera."""
    table = Table(pad_edge=False, box=None, header_style="bold")
    table.add_column("camera", no_wrap=True)
    table.add_column("device", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("answer", no_wrap=True)
    for column in ("age", "delay", "fps", "backlog"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("rung", overflow="ellipsis", no_wrap=True)
    for name, device, camera in seen.cameras():
        latest, recent = seen.latest.get(name), seen.recent.get(name, Recent())
        table.add_row(
            Text("/".join(map(one_line, name)), "bold"),
            Text(one_line(device.status.device) if device is not None else "-"),
            _state(camera),
            _answer(latest),
            _age(seen, latest),
            Text(format_duration(recent.delay_ns) if recent.delay_ns is not None else "-"),
            Text(f"{camera.capture_fps:.1f}" if camera is not None else "-"),
            _backlog(device),
            Text(one_line(camera.rung) if camera is not None else "-"),
        )
    return table


def troubles(seen: Overview) -> list[Text]:
    """One line for each camera that a person should look at: in the table a narrow terminal would hide it."""
    lines = []
    for name, device, camera in seen.cameras():
        words = trouble(device, camera, seen.recent.get(name, Recent()))
        if words:
            lines.append(Text(f"  {'/'.join(map(one_line, name))}: {words}", "yellow"))
    return lines


def trouble(device: device_pb2.Device | None, camera: device_pb2.CameraStatus | None, recent: Recent) -> str:
    """What a person should know of a camera, in a few words; empty when all is well."""
    words = []
    if device is not None and not device.status.hub_connected:
        words.append("away from the hub")
    well = {device_pb2.CAMERA_STATE_LIVE, device_pb2.CAMERA_STATE_ENDED}
    if camera is not None and (camera.state not in well or camera.message.startswith("no pixels leave")):
        words.append(one_line(camera.message))
    lost = sum(recent.without_answer.values())
    if lost:
        reasons = ", ".join(one_line(reason) for reason, _ in recent.without_answer.most_common(3))
        words.append(f"{lost} of {recent.frames} frames without answer: {reasons}")
    if camera is not None and camera.frames_dropped:
        dropped = ", ".join(f"{n} {one_line(reason)}" for reason, n in sorted(camera.frames_dropped.items()))
        words.append(f"dropped since start: {dropped}")
    return "; ".join(words)


def _state(camera: device_pb2.CameraStatus | None) -> Text:
    if camera is None:
        return Text("-", "dim")
    return Text(show.state_name(camera), show.STATE_STYLES.get(camera.state, ""))


def _answer(latest: Result | None) -> Text:
    if latest is None:
        return Text("none yet", "yellow")
    return Text(latest.provenance.name.lower(), show.STYLES[latest.provenance])


def _age(seen: Overview, latest: Result | None) -> Text:
    if latest is None:
        return Text("-")
    age_ns = max(0, seen.now_ns - last_ns(latest))
    return Text(format_duration(age_ns), "yellow" if age_ns > 30e9 else "")


def _backlog(device: device_pb2.Device | None) -> Text:
    if device is None:
        return Text("-")
    spool = device.status.spool
    if not spool.messages:
        return Text("0", "dim")
    return Text(f"{spool.bytes / 1e6:.1f} MB, {format_duration(spool.oldest_age_ns)}")


def _size(stream: system_pb2.StreamHealth) -> str:
    limit = f" of {stream.limit_bytes / 1e6:.0f}" if stream.limit_bytes else ""
    return f"{stream.bytes / 1e6:.1f}{limit} MB"
