"""`edge-agent init`: a configuration file with comments, made from found or given cameras."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edge_agent.address import without_credentials
from eyeline import creds
from eyeline.errors import ConfigError
from eyeline.subjects import check_token

_FOLDER_MODE = 0o700


@dataclass(frozen=True, slots=True)
class NewCamera:
    """A camera to be written. password stays out of the file: it goes into one of its own."""

    name: str
    source: str
    user: str | None = None
    password: str | None = None
    note: str = ""


def parse_camera(text: str) -> NewCamera:
    """`NAME=ADDRESS`, perhaps with credentials in the address; raises `ConfigError`, `InvalidName`."""
    name, equals, source = text.partition("=")
    if not equals or not source.strip():
        raise ConfigError(
            "--camera needs NAME=ADDRESS, for example --camera front=rtsp://192.168.1.20/stream"
        )
    check_token(name, "camera name")
    return split_credentials(name, source.strip())


def split_credentials(name: str, source: str, note: str = "") -> NewCamera:
    """The camera with its credentials apart from its address."""
    if "://" not in source:
        return NewCamera(name, source, note=note)
    parts = urlsplit(source)
    if "@" not in parts.netloc:
        return NewCamera(name, source, note=note)
    account, _, host = parts.netloc.rpartition("@")
    user, colon, password = account.partition(":")
    bare = parts._replace(netloc=host).geturl()
    return NewCamera(name, bare, unquote(user) or None, unquote(password) if colon else None, note)


def split_hub(url: str) -> tuple[str, str | None, str | None]:
    """A hub's address, user and password."""
    found = split_credentials("hub", url)
    return found.source, found.user, found.password


@dataclass(frozen=True, slots=True)
class Join:
    """What the cloud gave to a device: whose it is, the hub's address, and the credentials file's text."""

    tenant: str
    site: str
    device: str
    hub: str
    text: str = field(repr=False)


def read_join(path: Path) -> Join:
    """Read a credentials file that `cloud-inference` wrote for a device; raises `ConfigError`."""
    found = creds.read(path)
    try:
        tenant, site, device, hub = (found.names[key] for key in ("tenant", "site", "device", "hub"))
    except KeyError as missing:
        raise ConfigError(
            f"{path} does not say its {missing}: `cloud-inference enroll` makes such files"
        ) from None
    return Join(tenant, site, device, hub, found.text())


def device_name() -> str:
    """This machine's name, as it can stand in a subject."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0]).strip("-")[:64]
    return name or "device"


def camera_name(wanted: str, taken: Sequence[str]) -> str:
    """A valid camera name that no other camera has."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", wanted).strip("-").lower()[:56] or "camera"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name


def write(
    path: Path,
    *,
    tenant: str,
    site: str,
    device: str,
    hub: str,
    state_dir: Path,
    cameras: Sequence[NewCamera],
    credentials: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write the configuration and a file for each secret; returns what was written.

    credentials: text of the hub's credentials file, instead of a user and password in `hub`. Raises
    `ConfigError` when the file is there already, unless `force`.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} exists already: give --force to replace it, or --config another name")
    if not cameras:
        raise ConfigError("no camera: give --camera NAME=ADDRESS at least once")
    if credentials is not None and urlsplit(hub).username:
        raise ConfigError("--hub has a user, --join has credentials: give one of them")
    hub_url, hub_user, hub_password = split_hub(hub)
    secrets = path.absolute().parent / "secrets"
    written: list[Path] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)

        def keep(name: str, password: str | None) -> Path | None:
            if password is None:
                return None
            secrets.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            file = secrets / name
            _write_private(file, password + "\n")
            written.append(file)
            return file

        text = _text(
            tenant=tenant,
            site=site,
            device=device,
            hub=(hub_url, hub_user, keep("hub", hub_password)),
            creds_file=keep("hub.creds", credentials.strip() if credentials else None),
            state_dir=state_dir,
            cameras=[(camera, keep(f"camera-{camera.name}", camera.password)) for camera in cameras],
        )
        _write_private(path, text, 0o640)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written: {problem.strerror}") from None
    return [path, *written]


def _text(
    *,
    tenant: str,
    site: str,
    device: str,
    hub: tuple[str, str | None, Path | None],
    creds_file: Path | None,
    state_dir: Path,
    cameras: Sequence[tuple[NewCamera, Path | None]],
) -> str:
    lines = [
        "# Eyeline edge agent. Try it with `edge-agent check`, run it with `edge-agent run`.",
        "# Any key can also come from the environment: EYELINE_EDGE__HUB__URL is hub.url.",
        "# Passwords are not written here, but in files that only their owner can read.",
        f"tenant: {_scalar(tenant)}",
        f"site: {_scalar(site)}",
        "# This device's name; two devices of a site never share one.",
        f"device: {_scalar(device)}",
        "# Holds the spool: what the hub does not have yet.",
        f"state_dir: {_scalar(str(state_dir))}",
        "",
        "hub:",
        f"  url: {_scalar(hub[0])}",
    ]
    if hub[1] is not None:
        lines.append(f"  user: {_scalar(hub[1])}")
    if hub[2] is not None:
        lines.append(f"  password_file: {_scalar(str(hub[2]))}")
    if creds_file is not None:
        lines.append(f"  creds_file: {_scalar(str(creds_file))}")
    lines += ["", "cameras:"]
    for camera, secret in cameras:
        if camera.note:
            lines.append(f"  # {camera.note}")
        lines += [f"  - name: {_scalar(camera.name)}", f"    source: {_scalar(camera.source)}"]
        if camera.user is not None:
            lines.append(f"    user: {_scalar(camera.user)}")
        if secret is not None:
            lines.append(f"    password_file: {_scalar(str(secret))}")
    lines += [
        "",
        "# The rest stands at its defaults; these are the ones most often changed.",
        "# spool:",
        "#   max_bytes: 1073741824   # the oldest pictures go when it is full, and are counted",
        "#   fsync: 1s               # always, 1s or 2m: what a power cut can lose",
        "#   order: live-first       # after an outage: live-first, backlog-first or live-only",
        "# encode:",
        "#   max_fps: 5              # pictures a second that leave the device, at most",
        "#   width_px: 416           # longer side of these pictures",
        "#   crf: 28                 # lower is better and larger",
        "# detect:",
        "#   enabled: true           # answer on the device too, while the cloud cannot be reached",
        "",
    ]
    return "\n".join(lines)


def _scalar(text: str) -> str:
    """A YAML scalar; JSON's strings are YAML's."""
    plain = re.fullmatch(r"[A-Za-z/_][A-Za-z0-9/_.-]*", text) is not None
    reserved = text.lower() in {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    return text if plain and not reserved else json.dumps(text)


def _write_private(path: Path, text: str, mode: int = 0o600) -> None:
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def shown(camera: NewCamera) -> str:
    """The camera's address for people."""
    return without_credentials(camera.source)
