"""What is wrong, and how to mend it: from the connection to the last camera."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from eyeline import errors
from eyeline._status import one_line
from eyeline.moments import format_duration, format_moment
from eyeline.overview import Overview, Recent, last_ns
from eyeline.release import version
from eyeline.v1 import device_pb2
from eyeline.values import Provenance

Level = Literal["fine", "warning", "wrong"]

_PROBE_S: Final = 5.0
_SOON_S: Final = 14 * 86_400
_TOKEN_SOON_S: Final = 3 * 86_400
_SKEW_NS: Final = 2_000_000_000
_DEVICE_SKEW_NS: Final = 5_000_000_000
_OLD_FRAME_NS: Final = 120_000_000_000
# Why frames had no answer: what to do.
_MEND_REASON: Final = {
    "redaction_failed": "the device cannot redact, so no pixels leave: `edge-agent check` there says why",
    "spool_full": "the device's spool was full: give it more (spool.max_bytes), or a better link",
    "overload": "the device is too slow for this: lower fps, or fewer cameras on it",
    "encoder_failed": "the device's encoder fails: look into its log",
    "inference_failed": "Triton refuses the pictures: look into its log and the worker's",
    "chain_gap": "messages were lost on the way; a keyframe is asked for by itself",
    "lost": "messages of the device never came: look at its spool and its log",
    "decode_error": "the worker cannot decode what comes: look into its log",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. code: stable and snake_case; mend: what to do, empty when it is fine."""

    level: Level
    code: str
    what: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """How the server is talked to."""

    server: str
    token: str | None
    tls: bool
    ca: Path | None


async def connection(access: Access) -> list[Finding]:
    """Whether the server can be reached as asked for; the first thing that is wrong ends it."""
    host, _, port = access.server.rpartition(":")
    host = host.strip("[]")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_PROBE_S):
            found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            del found
    except OSError:
        return [
            Finding(
                "wrong",
                "name_unknown",
                f"{host} is not a name that can be looked up here",
                "check the name, and this machine's DNS",
            )
        ]
    except TimeoutError:
        return [
            Finding("wrong", "name_unknown", f"looking up {host} takes too long", "check this machine's DNS")
        ]
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
    except TimeoutError:
        return [
            Finding(
                "wrong",
                "no_route",
                f"{access.server} does not answer at all",
                "check the address, the network, and firewalls in between",
            )
        ]
    except OSError as problem:
        return [
            Finding(
                "wrong",
                "not_listening",
                f"nothing listens at {access.server} ({(problem.strerror or str(problem)).lower()})",
                "start the API there (`cloud-inference api`, or `local`), or give its address with --server",
            )
        ]
    reached = Finding("fine", "reached", f"{access.server} can be reached")
    return [reached, *await asyncio.to_thread(_encryption, access, host, int(port))]


def _encryption(access: Access, host: str, port: int) -> list[Finding]:
    speaks = _handshake(host, port, _unchecked())
    wanted = access.tls or access.ca is not None
    if not wanted:
        if not isinstance(speaks, str):
            return [
                Finding(
                    "wrong",
                    "tls_needed",
                    f"{access.server} talks TLS, and you do not",
                    "give --ca FILE (of `local --tls`: tls/ca.pem in its state folder), or --tls",
                )
            ]
        return [Finding("fine", "no_tls", "the connection is not encrypted, as asked for")]
    if isinstance(speaks, str):
        return [
            Finding(
                "wrong",
                "tls_refused",
                f"{access.server} does not talk TLS ({speaks})",
                "leave --tls and --ca out, or give the API a certificate (api.tls_cert, api.tls_key)",
            )
        ]
    try:
        context = ssl.create_default_context(cafile=access.ca)
    except (OSError, ssl.SSLError) as problem:
        return [
            Finding(
                "wrong",
                "ca_unusable",
                f"certificate {access.ca} cannot be used ({problem.strerror or problem})",
                "give the authority's certificate as PEM",
            )
        ]
    checked = _handshake(host, port, context)
    if isinstance(checked, str):
        return [
            Finding(
                "wrong",
                "certificate_untrusted",
                f"the certificate of {access.server} is not trusted: {checked}",
                "give its authority's certificate (--ca), and the name that it is for (--server)",
            )
        ]
    until = ssl.cert_time_to_seconds(str(checked.get("notAfter", "Jan  1 00:00:00 2100 GMT")))
    left_s = until - time.time()
    if left_s < _SOON_S:
        return [
            Finding(
                "warning",
                "certificate_expires",
                f"the certificate of {access.server} expires in {format_duration(int(left_s * 1e9))}",
                "renew it; `local --tls` does so when it starts",
            )
        ]
    return [Finding("fine", "tls", "the connection is encrypted, and the certificate is trusted")]


def _handshake(host: str, port: int, context: ssl.SSLContext) -> dict[str, object] | str:
    """The other side's certificate, or why there is none."""
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), _PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return dict(secure.getpeercert() or {})
    except ssl.SSLCertVerificationError as problem:
        return problem.verify_message
    except (OSError, ssl.SSLError) as problem:
        return one_line(getattr(problem, "reason", None) or problem.strerror or "no handshake").lower()


def _unchecked() -> ssl.SSLContext:
    """Only to see whether TLS is talked at all; nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def refusal(problem: errors.EyelineError, access: Access) -> Finding:
    """What a failed call means."""
    match problem:
        case errors.Unauthenticated():
            return _token(access.token, str(problem.server_message))
        case errors.PermissionDenied():
            return Finding(
                "wrong",
                "token_scope",
                f"the token does not allow this: {problem.server_message}",
                "ask for one with the method 'read' and these cameras (`cloud-inference token`)",
            )
        case errors.Unavailable():
            return Finding(
                "wrong",
                "hub_away",
                f"the API is there, but does not serve: {problem.server_message or problem}",
                "look at the hub (nats-server) and the API's log; `/readyz` of the API says when it is ready",
            )
        case _:
            return Finding("wrong", "api_failed", str(problem), "look into the API's log")


def _token(token: str | None, said: str) -> Finding:
    if not token:
        return Finding(
            "wrong",
            "token_missing",
            f"the server asks for credentials ({said})",
            "set EYELINE_TOKEN to a token (`cloud-inference token` makes one)",
        )
    claims = _claims(token)
    expires = claims.get("exp")
    if isinstance(expires, int | float) and expires < time.time():
        return Finding(
            "wrong",
            "token_expired",
            f"the token expired on {format_moment(int(expires * 1e9))}",
            "ask for a new one (`cloud-inference token`)",
        )
    return Finding(
        "wrong",
        "token_refused",
        f"the server refuses the token: {said}",
        "check that it is for this server: its key, audience and tenant",
    )


def _claims(token: str) -> dict[str, object]:
    """What a JWT says of itself, unchecked; empty when it is none."""
    try:
        part = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def findings(seen: Overview, *, stale_s: float) -> list[Finding]:
    """What the overview tells. stale_s: how old a device's report and a camera's answer may be."""
    found = [*_system(seen), *_devices(seen, stale_s)]
    for name, device, camera in seen.cameras():
        found += _camera(seen, name, device, camera, stale_s)
    return found


def _system(seen: Overview) -> list[Finding]:
    system = seen.system
    if system is None:
        return [
            Finding(
                "warning", "server_old", "the server is too old to tell how it is", "update the cloud side"
            )
        ]
    found = []
    if system.version != version():
        found.append(
            Finding(
                "warning",
                "version_skew",
                f"this is eyeline {version()}, the server is {one_line(system.version)}",
                "update the older of the two",
            )
        )
    expires_ns = system.caller.expires_ns
    if expires_ns and expires_ns - seen.now_ns < _TOKEN_SOON_S * 1e9:
        left = format_duration(max(0, expires_ns - seen.now_ns))
        found.append(
            Finding("warning", "token_expires", f"the token expires in {left}", "ask for a new one in time")
        )
    skew_ns = system.now_ns - seen.asked_ns
    if abs(skew_ns) > _SKEW_NS + seen.round_trip_ns // 2:
        found.append(
            Finding(
                "warning",
                "clock_skew",
                f"this machine's clock and the server's differ by {format_duration(abs(skew_ns))}",
                "let both keep time by NTP; ages shown here are by the server's clock",
            )
        )
    if not seen.workers_alive():
        found.append(
            Finding(
                "wrong",
                "no_worker",
                "no worker runs: frames wait in the hub, and nothing is answered",
                "start one (`cloud-inference worker`), or look into the log of the one that should run",
            )
        )
    if not system.inference.ready:
        found.append(
            Finding(
                "wrong",
                "model_away",
                f"the inference server is not ready: {one_line(system.inference.problem)}",
                "look at Triton: its log, and that it serves the model of triton.model",
            )
        )
    found += _hub(seen)
    return found or [Finding("fine", "cloud", "server, workers, model and hub are well")]


def _hub(seen: Overview) -> list[Finding]:
    assert seen.system is not None  # noqa: S101  # asked only then
    if not seen.system.HasField("hub"):
        return []
    hub, found = seen.system.hub, []
    frames = hub.frames
    if frames.limit_bytes and frames.bytes > 0.8 * frames.limit_bytes:
        found.append(
            Finding(
                "warning" if frames.bytes < 0.95 * frames.limit_bytes else "wrong",
                "hub_full",
                f"the hub's frames fill {100 * frames.bytes / frames.limit_bytes:.0f} % of what they may",
                "workers are too slow or away; or raise hub.streams.frames_max_bytes. Agents keep the rest",
            )
        )
    if hub.dead.messages:
        found.append(
            Finding(
                "warning",
                "set_aside",
                f"{hub.dead.messages} messages were set aside because they cannot be used",
                "the worker's log says why (message_set_aside); an agent that is newer or broken makes them",
            )
        )
    return found


def _devices(seen: Overview, stale_s: float) -> list[Finding]:
    if not seen.devices:
        return [
            Finding(
                "wrong",
                "no_devices",
                "no device has reported yet",
                "enroll one (`cloud-inference enroll`), then on it `edge-agent init --join` and `run`",
            )
        ]
    found: list[Finding] = []
    for device in seen.devices:
        status = device.status
        name = f"{one_line(status.site)}/{one_line(status.device)}"
        age_ns = seen.now_ns - status.stored_ns
        if age_ns > stale_s * 1e9:
            found.append(
                Finding(
                    "wrong",
                    "device_silent",
                    f"device {name} was last heard of {format_duration(age_ns)} ago",
                    "look whether it has power and network, and at its log (`journalctl -u edge-agent`)",
                )
            )
        found += _device(seen, device, name)
    return found


def _device(seen: Overview, device: device_pb2.Device, name: str) -> list[Finding]:
    status, found = device.status, []
    spool = status.spool
    if spool.limit_bytes and spool.bytes > 0.5 * spool.limit_bytes:
        part = spool.bytes / spool.limit_bytes
        found.append(
            Finding(
                "wrong" if part > 0.9 else "warning",
                "spool_fills",
                f"the spool of {name} is {100 * part:.0f} % full, its oldest message"
                f" {format_duration(spool.oldest_age_ns)} old",
                "mend its link to the hub; when it is full, old frames are given up and reported",
            )
        )
    clock = status.clock
    if clock.uncertainty_ns and abs(clock.offset_ns) > _DEVICE_SKEW_NS:
        found.append(
            Finding(
                "warning",
                "device_clock",
                f"the clock of {name} is off by {format_duration(abs(clock.offset_ns))}",
                "times are corrected, but let it keep time by NTP",
            )
        )
    if seen.system is not None and status.agent_version != seen.system.version:
        found.append(
            Finding(
                "warning",
                "agent_version",
                f"{name} runs eyeline {one_line(status.agent_version)},"
                f" the server {one_line(seen.system.version)}",
                "update the older of the two",
            )
        )
    wanted = device.desired.revision
    if wanted and status.config_revision != wanted and seen.now_ns - status.stored_ns < 60e9:
        found.append(
            Finding(
                "warning",
                "config_pending",
                f"{name} runs configuration {status.config_revision}, {wanted} is wanted",
                "it follows within seconds; if not, its log says why it refuses",
            )
        )
    if not status.cameras:
        found.append(
            Finding(
                "warning", "no_cameras", f"device {name} has no cameras", "add one to its edge-agent.yaml"
            )
        )
    return found


def _camera(
    seen: Overview,
    name: tuple[str, str],
    device: device_pb2.Device | None,
    camera: device_pb2.CameraStatus | None,
    stale_s: float,
) -> list[Finding]:
    shown, found = "/".join(map(one_line, name)), []
    if camera is not None:
        found += _source(shown, camera)
    latest, recent = seen.latest.get(name), seen.recent.get(name, Recent())
    heard = device is not None and seen.now_ns - device.status.stored_ns <= stale_s * 1e9
    ended = camera is not None and camera.state == device_pb2.CAMERA_STATE_ENDED
    if latest is None:
        found.append(
            Finding(
                "warning",
                "no_answers",
                f"camera {shown} has no answer yet",
                "it takes some seconds after the start; if it stays, look at the worker and the device",
            )
        )
    elif seen.now_ns - last_ns(latest) > stale_s * 1e9 and not ended:
        age = format_duration(seen.now_ns - last_ns(latest))
        why = "its device is heard of" if heard else "its device is silent too"
        found.append(
            Finding(
                "wrong",
                "camera_stale",
                f"the newest answer of {shown} is {age} old; {why}",
                "look at the camera's state, the device's spool, and whether a worker runs",
            )
        )
    elif latest.provenance is Provenance.DEGRADED and not recent.without_answer:
        recent.without_answer[latest.reason] += latest.frames
    for reason, frames in recent.without_answer.most_common():
        found.append(
            Finding(
                "wrong" if 2 * frames > recent.frames else "warning",
                one_line(reason) or "degraded",
                f"{frames} of the last {max(recent.frames, frames)} frames of {shown} have no answer:"
                f" {one_line(reason)}",
                _MEND_REASON.get(reason, "the log of the device or the worker says more"),
            )
        )
    return found or [Finding("fine", "camera", f"camera {shown} is answered")]


def _source(shown: str, camera: device_pb2.CameraStatus) -> list[Finding]:
    message = one_line(camera.message)
    if "cannot be redacted" in message:
        return [Finding("wrong", "redaction_failed", f"{shown}: {message}", _MEND_REASON["redaction_failed"])]
    if camera.state == device_pb2.CAMERA_STATE_FAILED:
        return [
            Finding(
                "wrong",
                "camera_failed",
                f"camera {shown} has failed: {message}",
                "mend what it says; `edge-agent check` on the device tries it again",
            )
        ]
    if camera.state == device_pb2.CAMERA_STATE_RECONNECTING:
        return [
            Finding(
                "wrong",
                "camera_away",
                f"camera {shown} is away: {message}",
                "check its power, cable, address and password; the agent keeps trying",
            )
        ]
    return []
