"""Releasing configuration, models and agents to devices, and seeing how far they are."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nats.errors
import yaml
from google.protobuf.message import DecodeError
from nats.js.errors import APIError, BucketNotFoundError, NotFoundError

from cloud_inference.operate.connect import Account, operator
from eyeline import releases, subjects
from eyeline.errors import BusError, ConfigError
from eyeline.nkey import NKey
from eyeline.settings import read_yaml
from eyeline.v1 import device_pb2, release_pb2
from eyeline_models import catalogue

# As the wheel's name has it (PEP 427): eyeline-1.2.3-py3-none-any.whl
_WHEEL: Final = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-[^-]+-[^-]+-(?P<platform>[^-]+)\.whl"
)


@dataclass(frozen=True, slots=True)
class Artefact:
    """What is to be released. inline: travels in the bucket, which only the devices meant can read."""

    kind: str
    version: str
    data: bytes
    inline: bool = False

    @property
    def sha256(self) -> str:
        """Its digest; empty for what the device was installed with."""
        return hashlib.sha256(self.data).hexdigest() if self.data else ""


def config_artefact(path: Path, version: str | None) -> Artefact:
    """Settings that go over those of the devices' own files; raises `ConfigError`."""
    values = read_yaml(path)
    releases.check_config(values)
    data = yaml.safe_dump(values, sort_keys=False).encode()
    if len(data) > releases.MAX_INLINE_BYTES:
        raise ConfigError(f"{path} has {len(data)} bytes, at most {releases.MAX_INLINE_BYTES} are allowed")
    return Artefact("config", version or hashlib.sha256(data).hexdigest()[:12], data, inline=True)


def model_artefact(name: str) -> Artefact:
    """A model of the catalogue, or in a folder; raises `UnknownModel`, `BadModel`."""
    card = catalogue.load(name)
    return Artefact("model", f"{card.name} {card.version}", _zip([card.path.parent / "card.yaml", card.path]))


def agent_artefact(wheels: Sequence[Path]) -> Artefact:
    """The agent's wheel, with others that it needs beside it; raises `ConfigError`."""
    named = {path: _WHEEL.fullmatch(path.name) for path in wheels}
    for path, found in named.items():
        if found is None or not path.is_file():
            raise ConfigError(f"{path} is no wheel: `pip wheel --no-deps -w dist .` makes one")
    versions = [found["version"] for found in named.values() if found and found["name"] == "eyeline"]
    if len(versions) != 1:
        raise ConfigError("give the wheel of eyeline itself, once, and then those that it needs beside it")
    data = wheels[0].read_bytes() if len(wheels) == 1 else _zip(wheels, zipfile.ZIP_STORED)
    return Artefact("agent", versions[0], data)


def factory(kind: str) -> Artefact:
    """What the devices were installed with."""
    return Artefact(kind, "", b"")


def _zip(paths: Sequence[Path], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The files in a flat archive, the same bytes for the same files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for path in paths:
            member = zipfile.ZipInfo(path.name)
            member.compress_type = how
            try:
                archive.writestr(member, path.read_bytes())
            except OSError as problem:
                raise ConfigError(f"{path} cannot be read: {problem.strerror}") from None
    return made.getvalue()


async def publish(
    account: Account, artefact: Artefact, target: str, key: NKey, *, allow_downgrade: bool = False
) -> release_pb2.ReleaseManifest:
    """Sign and release it, and tell the devices; what was signed. Raises `ConfigError`, `BusError`."""
    bucket_key = releases.key_of(artefact.kind, target)
    if len(artefact.data) > releases.MAX_ARTEFACT_BYTES:
        raise ConfigError(
            f"the artefact has {len(artefact.data)} bytes, the most are {releases.MAX_ARTEFACT_BYTES}"
        )
    try:
        bucket = await account.js.key_value(subjects.RELEASES)
        manifest = release_pb2.ReleaseManifest(
            schema_major=releases.SCHEMA_MAJOR,
            tenant=account.tenant,
            target=target,
            kind=releases.KINDS[artefact.kind],
            serial=max(
                [int(time.time() * 1000), *(one.serial + 1 for one in (await released(account)).values())]
            ),
            version=artefact.version,
            sha256=artefact.sha256,
            size_bytes=len(artefact.data),
            allow_downgrade=allow_downgrade,
            issued_ns=time.time_ns(),
        )
        await account.audit.record(
            operator(),
            "release",
            [],
            kind=artefact.kind,
            target=target,
            version=artefact.version,
            serial=manifest.serial,
            sha256=artefact.sha256,
        )
        if artefact.data and not artefact.inline:
            store = await account.js.object_store(subjects.ARTEFACTS)
            info = await store.put(artefact.sha256, artefact.data)
            manifest.object = info.nuid or ""
        signed = releases.sign(manifest, key, artefact.data if artefact.inline else b"")
        await bucket.put(bucket_key, signed)
    except (TimeoutError, APIError, nats.errors.Error, BucketNotFoundError) as problem:
        raise BusError(f"the release was not stored: {str(problem) or 'no answer'}") from None
    await _poke(account, target)
    return manifest


async def released(account: Account) -> dict[str, release_pb2.ReleaseManifest]:
    """What is released, by key of the bucket, unchecked."""
    prefix = f"$KV.{subjects.RELEASES}."
    found = {}
    try:
        bucket = await account.js.key_value(subjects.RELEASES)
        info = await account.js.stream_info(f"KV_{subjects.RELEASES}", subjects_filter=f"{prefix}>")
        for subject in info.state.subjects or {}:
            key = subject.removeprefix(prefix)
            try:
                entry = await bucket.get(key)
                signed = release_pb2.SignedRelease.FromString(entry.value or b"")
                found[key] = release_pb2.ReleaseManifest.FromString(signed.manifest)
            except (NotFoundError, DecodeError):
                continue
    except (TimeoutError, APIError, nats.errors.Error, BucketNotFoundError) as problem:
        raise BusError(f"what was released cannot be read: {str(problem) or 'no answer'}") from None
    return found


async def statuses(account: Account) -> list[device_pb2.DeviceStatus]:
    """What the tenant's devices reported last, by site and name; raises `BusError`."""
    try:
        info = await account.js.stream_info(
            subjects.STATUS, subjects_filter=subjects.status_subject("*", "*")
        )
        found = []
        for subject in sorted(info.state.subjects or {}):
            try:
                stored = await account.js.get_last_msg(subjects.STATUS, subject, direct=True)
                found.append(device_pb2.DeviceStatus.FromString(stored.data or b""))
            except (NotFoundError, DecodeError):
                continue
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(f"the devices' status cannot be read: {str(problem) or 'no answer'}") from None
    return found


async def _poke(account: Account, target: str) -> None:
    """Devices that are there look now rather than in some minutes."""
    site, device = releases.check_target(target)
    request = device_pb2.ControlRequest(releases=True).SerializeToString()
    for status in await statuses(account):
        if site in {"*", status.site} and device in {"*", status.device}:
            await account.connection.publish(subjects.control_subject(status.site, status.device), request)
    await account.connection.flush()


@dataclass(frozen=True, slots=True)
class Row:
    """How far a device is with one kind: what is wanted of it, and what it says."""

    device: str
    kind: str
    wanted: str
    serial: int
    runs: str
    state: str
    message: str

    @property
    def done(self) -> bool:
        """Whether what is wanted is in force."""
        return self.state == "applied"


async def rollout(account: Account) -> list[Row]:
    """How far every known device is; raises `BusError`."""
    wanted = await released(account)
    rows = []
    for status in await statuses(account):
        for kind in releases.KINDS:
            found = [
                wanted[key] for key in releases.keys_for(kind, status.site, status.device) if key in wanted
            ]
            if found:
                newest = max(found, key=lambda one: one.serial)
                rows.append(_row(status, kind, newest))
    return rows


_STATES: Final[Mapping[int, str]] = {
    device_pb2.RELEASE_STATE_FETCHING: "fetching",
    device_pb2.RELEASE_STATE_TRIAL: "on trial",
    device_pb2.RELEASE_STATE_APPLIED: "applied",
    device_pb2.RELEASE_STATE_FAILED: "failed",
}


def _row(status: device_pb2.DeviceStatus, kind: str, wanted: release_pb2.ReleaseManifest) -> Row:
    told: Any = next((one for one in status.releases if one.kind == kind), None)
    state, message, runs = "waiting", "", ""
    if told is not None:
        if told.serial == wanted.serial or not told.serial:
            state = _STATES.get(told.state, "waiting")
        runs, message = told.version, told.message
        if told.state == device_pb2.RELEASE_STATE_FETCHING and told.total_bytes:
            message = f"{told.done_bytes * 100 // told.total_bytes} %"
    return Row(
        f"{status.site}/{status.device}",
        kind,
        wanted.version if wanted.sha256 else "as installed",
        wanted.serial,
        runs,
        state,
        message,
    )


async def until_done(account: Account, within_s: float) -> list[Row]:
    """The rows once every device has what it should or refused it, or the time is over."""
    end = time.monotonic() + within_s
    while True:
        rows = await rollout(account)
        if all(row.state in {"applied", "failed"} for row in rows) or time.monotonic() > end:
            return rows
        await asyncio.sleep(0.5)
