"""Releases from the hub: looked up, checked, fetched, tried, and reported.

The bucket RELEASES says what this device should run; it is a state, so a device that was away for a month
looks once and has it. Nothing is used before the operator's signature, the digest, the serial number (which
only ever rises) and the version hold. What is taken up goes on trial: the agent ends, the launcher starts it
anew with it, and `Proof` confirms it once all is well, or rolls it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import yaml

from edge_agent import install
from edge_agent.allowance import wire_bytes
from edge_agent.config import AgentSettings, Source
from edge_agent.durable import write_durable
from edge_agent.fetch import digest_of, fetch
from edge_agent.launch_state import LAUNCHED, Slot, UpdateState
from edge_agent.link import Link, Refused, Session
from eyeline import creds, releases
from eyeline.errors import BadRelease, BusError, ConfigError, EyelineError
from eyeline.subjects import RELEASES
from eyeline.v1 import device_pb2, release_pb2
from eyeline_models import catalogue

_log = structlog.get_logger()

# A poke over the control subject brings it forward.
_EVERY_S: Final = 300.0
_REQUEST_S: Final = 10.0
_PREFLIGHT_S: Final = 60.0
_POLL_S: Final = 0.2
# With a byte budget: how long after connecting, and how far apart the questions are.
_LATER_S: Final = 12.0
_APART_S: Final = 1.0
_DISK_RESERVE_BYTES: Final = 64 << 20

# The new agent's own view of the configuration, and its version.
_PREFLIGHT: Final = """
import sys
from importlib import metadata
from pathlib import Path
import edge_agent.agent, edge_agent.cli
from edge_agent.config import load_in_force
load_in_force(Path(sys.argv[1]) if sys.argv[1] else None)
print(metadata.version("eyeline"))
"""


@dataclass(frozen=True, slots=True)
class Agent:
    """What updates need of the agent.

    source: where its settings came from; without, nothing can be released for it. live: cameras that give
    pictures. problem: why the agent does not work, in one line; empty while it does.
    """

    source: Source | None
    live: Callable[[], set[str]]
    problem: Callable[[], str]


class Updates:
    """Follows what was released for this device. `restart` is set when the agent has to end for it."""

    def __init__(self, hub: Link, settings: AgentSettings, agent: Agent) -> None:
        self.restart = asyncio.Event()
        self._hub, self._settings, self._agent = hub, settings, agent
        self._state = UpdateState.load(settings.state_dir)
        self._key = _public_key(settings)
        self._frugal = any(settings.encode_of(it.name).budget_kbit_s is not None for it in settings.cameras)
        self._launched = bool(os.environ.get(LAUNCHED))
        self._poked = asyncio.Event()
        # What the status says, by kind.
        self._told: dict[str, device_pb2.ReleaseStatus] = {}
        self._said: set[str] = set()

    def look(self) -> None:
        """Look now: something was released."""
        self._poked.set()

    def status(self) -> list[device_pb2.ReleaseStatus]:
        """What is in force, under way or failed, by kind."""
        found = dict(self._told)
        for kind, slot in self._state.in_force().items():
            trial = self._state.trial is not None and self._state.trial.kind == kind
            state = device_pb2.RELEASE_STATE_TRIAL if trial else device_pb2.RELEASE_STATE_APPLIED
            found.setdefault(kind, _status(kind, slot.serial, slot.version, slot.sha256, state))
        for kind, failure in self._state.failed.items():
            if kind not in self._told:
                found[kind] = _failed(kind, failure.serial, failure.version, failure.reason)
        return [found[kind] for kind in sorted(found)]

    async def run(self) -> None:
        """Prove what is on trial, then follow the hub, for ever."""
        if self._state.trial is not None:
            await self._prove()
        if not self._settings.updates.enabled or not self._key or self._agent.source is None:
            await asyncio.Event().wait()
        self._tidy()
        began = time.monotonic()
        session = await self._hub.ready()
        if time.monotonic() - began < self._settings.updates.confirm_s:
            # Reached at once with what was there before: it was not the link.
            self._state.give_up()
        seen: Session | None = None
        while True:
            session = await self._hub.ready()
            if self._frugal and session is not seen:
                # Nine questions: not while connecting takes its bytes as well.
                seen = session
                await self._pause(session, _LATER_S)
                continue
            self._poked.clear()
            try:
                await self._round(session)
            except (BusError, OSError) as problem:
                _log.debug("updates_wait", reason=str(problem))
            await self._pause(session, _EVERY_S)

    async def _pause(self, session: Session, seconds: float) -> None:
        """Wait, unless something is said to be released or the connection ends."""
        waiting = [asyncio.create_task(it.wait()) for it in (self._poked, session.closed)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    # A trial

    async def _prove(self) -> None:
        """Confirm what is on trial after it was well for a while, or roll it back; then restart."""
        trial = self._state.trial
        assert trial is not None  # noqa: S101  # the caller saw it
        end = time.monotonic() + trial.deadline_s
        well_since: float | None = None
        problem = "starting"
        while time.monotonic() < end:
            problem = self._problem(trial.live)
            now = time.monotonic()
            well_since = (well_since or now) if not problem else None
            if well_since is not None and now - well_since >= self._settings.updates.settle_s:
                self._state.confirm()
                _log.info("release_confirmed", kind=trial.kind, version=trial.slot.version)
                return
            await asyncio.sleep(_POLL_S)
        _log.error("release_rolled_back", kind=trial.kind, version=trial.slot.version, reason=problem)
        # A link that is down may be nobody's fault: it is tried again once the link is back.
        away = self._hub.session is None
        self._state.roll_back(f"not well within {trial.deadline_s:g} s: {problem}", again=away)
        self.restart.set()
        await asyncio.Event().wait()

    def _problem(self, live: list[str]) -> str:
        problem = self._agent.problem()
        if problem:
            return problem
        if self._hub.session is None:
            return f"the hub is not reached{': ' if self._hub.problem else ''}{self._hub.problem}"
        configured = {camera.name for camera in self._settings.cameras}
        dark = sorted((set(live) & configured) - self._agent.live())
        return f"no picture from: {', '.join(dark)}" if dark else ""

    # What the hub says

    async def _round(self, session: Session) -> None:
        for kind in releases.KINDS:
            newest = await self._newest(session, kind)
            if newest is None:
                continue
            manifest, inline = newest
            serial = manifest.serial
            current, failed = self._state.current.get(kind), self._state.failed.get(kind)
            if (current is not None and current.serial == serial) or (
                failed is not None and failed.serial == serial and not failed.again
            ):
                self._told.pop(kind, None)
                continue
            retried = failed is not None and failed.serial == serial
            if serial <= self._state.highest.get(kind, 0) and not retried:
                self._refuse(kind, manifest, "it is older than what this device had: not taken", forget=False)
                continue
            if not self._launched:
                reason = "this agent runs without its launcher: see edge-agent service install"
                self._tell(kind, manifest, device_pb2.RELEASE_STATE_FAILED, reason)
                continue
            try:
                slot = await self._take(session, kind, manifest, inline)
            except (BadRelease, ConfigError) as problem:
                self._refuse(kind, manifest, str(problem))
                continue
            except OSError as problem:
                # Such as a full disk: nobody's fault, and tried again.
                reason = f"waits: {problem.strerror or problem}"
                if self._told.get(kind) is None or self._told[kind].message != reason:
                    _log.warning("release_waits", kind=kind, version=manifest.version, reason=reason)
                self._tell(kind, manifest, device_pb2.RELEASE_STATE_FETCHING, reason)
                continue
            _log.info("release_on_trial", kind=kind, version=slot.version, serial=slot.serial)
            live = sorted(self._agent.live())
            self._state.begin(kind, slot, live, self._settings.updates.confirm_s)
            self.restart.set()
            await asyncio.Event().wait()

    async def _newest(self, session: Session, kind: str) -> tuple[release_pb2.ReleaseManifest, bytes] | None:
        """The newest good release for this device; bad ones are told of and left."""
        settings, found = self._settings, []
        for key in releases.keys_for(kind, settings.site, settings.device):
            if self._frugal:
                await asyncio.sleep(_APART_S)
            try:
                answer = await session.request(
                    f"$JS.API.DIRECT.GET.KV_{RELEASES}.$KV.{RELEASES}.{key}", timeout_s=_REQUEST_S
                )
            except Refused:
                return None  # no such bucket yet
            headers = answer.headers or {}
            if "Nats-Sequence" not in headers or headers.get("KV-Operation"):
                continue
            try:
                found.append(
                    releases.verify(
                        answer.data,
                        self._key,
                        tenant=settings.tenant,
                        site=settings.site,
                        device=settings.device,
                        kind=kind,
                    )
                )
            except BadRelease as problem:
                line = f"{key}: {problem}"
                if line not in self._said:
                    self._said.add(line)
                    _log.error("release_refused", kind=kind, key=key, reason=str(problem))
                self._told[kind] = _failed(kind, 0, "", line)
        if found and kind in self._told and not self._told[kind].serial:
            del self._told[kind]
        return max(found, key=lambda one: one[0].serial, default=None)

    def _refuse(
        self, kind: str, manifest: release_pb2.ReleaseManifest, reason: str, *, forget: bool = True
    ) -> None:
        _log.error(
            "release_refused", kind=kind, version=manifest.version, serial=manifest.serial, reason=reason
        )
        if forget:
            self._told.pop(kind, None)
            self._state.refuse(kind, manifest.serial, manifest.version, reason)
        else:
            self._tell(kind, manifest, device_pb2.RELEASE_STATE_FAILED, reason)

    def _tell(
        self,
        kind: str,
        manifest: release_pb2.ReleaseManifest,
        state: device_pb2.ReleaseState.ValueType,
        message: str = "",
        done_bytes: int = 0,
    ) -> None:
        told = _status(kind, manifest.serial, manifest.version, manifest.sha256, state)
        told.message = message[:300]
        told.done_bytes, told.total_bytes = done_bytes, manifest.size_bytes
        self._told[kind] = told

    # Fetching and installing

    async def _take(
        self, session: Session, kind: str, manifest: release_pb2.ReleaseManifest, inline: bytes
    ) -> Slot:
        """Bring and install it, and try it as far as that goes without a restart.

        Raises `BadRelease` and `ConfigError` for what cannot work, `BusError` and OSError for what may later.
        """
        self._check_version(kind, manifest)
        if not manifest.sha256:
            return Slot(manifest.serial, manifest.version)
        path = f"{kind}-{manifest.serial}"
        place = self._state.folder / path
        artefact = await self._artefact(session, kind, manifest, inline)
        try:
            if kind == "config":
                values = _mapping(artefact)
                releases.check_config(values)
                assert self._agent.source is not None  # noqa: S101  # without, nothing is followed
                self._agent.source.reload(values)
                await asyncio.to_thread(write_durable, place, artefact.read_bytes())
            elif kind == "model":
                await asyncio.to_thread(install.unpack_model, artefact, place)
                await asyncio.to_thread(catalogue.load, f"{place}/")
            else:
                await asyncio.to_thread(install.unpack_wheels, artefact, place)
                await self._preflight(place, manifest.version)
        except (BadRelease, ConfigError):
            _remove(place)
            raise
        except EyelineError as problem:
            _remove(place)
            raise BadRelease(str(problem)) from None
        finally:
            artefact.unlink(missing_ok=True)
        return Slot(manifest.serial, manifest.version, manifest.sha256, path)

    def _check_version(self, kind: str, manifest: release_pb2.ReleaseManifest) -> None:
        current = self._state.current.get(kind)
        if kind == "config" or manifest.allow_downgrade or current is None or not current.version:
            return
        if releases.version_key(manifest.version) < releases.version_key(current.version):
            raise BadRelease(
                f"version {manifest.version} is lower than {current.version}, which runs: release it with "
                "--allow-downgrade if that is meant"
            )

    async def _artefact(
        self, session: Session, kind: str, manifest: release_pb2.ReleaseManifest, inline: bytes
    ) -> Path:
        folder = self._state.folder / "partial"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / manifest.sha256
        if not manifest.object:
            path.write_bytes(inline)
            if digest_of(path) != manifest.sha256:
                path.unlink()
                raise BadRelease("its digest is not the one that was signed")
            return path
        # As it comes and as it is unpacked.
        needed = manifest.size_bytes * 4 + _DISK_RESERVE_BYTES
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"it needs {needed >> 20} MiB of disk, {free >> 20} are free")

        before = 0

        def progress(done: int) -> None:
            # What is fetched goes as fast as the link does, and takes nothing of the pictures' budget.
            nonlocal before
            self._hub.planned_bytes += wire_bytes(done - before) if before else 0.0
            before = done
            self._tell(kind, manifest, device_pb2.RELEASE_STATE_FETCHING, done_bytes=done)

        await fetch(
            session,
            manifest.object,
            path,
            size=manifest.size_bytes,
            sha256=manifest.sha256,
            progress=progress,
        )
        return path

    async def _preflight(self, place: Path, version: str) -> None:
        """Whether the new agent can be imported here and takes this device's configuration."""
        path = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")]))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            _PREFLIGHT,
            str(self._agent.source.file or "") if self._agent.source is not None else "",
            env={**os.environ, "PYTHONPATH": path},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PREFLIGHT_S):
                out, err = await process.communicate()
        except TimeoutError:
            raise BadRelease(f"the new agent cannot be tried: no answer in {_PREFLIGHT_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            last = (err.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            raise BadRelease(f"the new agent does not run here: {last[:200]}")
        found = out.decode(errors="replace").strip()
        if found != version:
            raise BadRelease(f"the package is version {found[:40]}, the release says {version[:40]}")

    def _tidy(self) -> None:
        """Keep what is in force, and forget the rest."""
        folder = self._state.folder
        if not folder.is_dir():
            return
        install.tidy(folder)
        kept = {slot.path for slot in self._state.in_force().values()}
        for path in folder.iterdir():
            if path.name.partition("-")[0] in releases.KINDS and path.name not in kept:
                _remove(path)


def _public_key(settings: AgentSettings) -> str:
    """The operator's key, by which releases are known; empty without one."""
    if settings.updates.key:
        return settings.updates.key
    if settings.hub.creds_file is None:
        return ""
    with contextlib.suppress(ConfigError):
        return creds.read(settings.hub.creds_file).names.get("release-key", "")
    return ""


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        raise BadRelease("the configuration is not YAML") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BadRelease("the configuration must hold a mapping of settings")
    return values


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _status(
    kind: str,
    serial: int,
    version: str,
    sha256: str,
    state: device_pb2.ReleaseState.ValueType,
) -> device_pb2.ReleaseStatus:
    return device_pb2.ReleaseStatus(kind=kind, serial=serial, version=version, sha256=sha256, state=state)


def _failed(kind: str, serial: int, version: str, reason: str) -> device_pb2.ReleaseStatus:
    found = _status(kind, serial, version, "", device_pb2.RELEASE_STATE_FAILED)
    found.message = reason[:300]
    return found
