"""A device with its launcher, an operator who releases for it, and agents to release."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cloud_inference.config import CloudSettings
from cloud_inference.hub import LocalHub
from cloud_inference.operate import connect, release
from cloud_inference.operate.connect import Account
from cloud_inference.operate.release import Artefact
from eyeline.v1 import device_pb2, release_pb2
from tests.support.eventually import eventually
from tests.support.programs import ROOT, Program, agent_file

PACKAGES = {
    "edge_agent": "edge_agent",
    "eyeline": "protos/eyeline",
    "eyeline_models": "models/eyeline_models",
}


def wheel(
    folder: Path, version: str, changes: Mapping[str, str | Callable[[str], str]] | None = None
) -> Path:
    """A wheel of this very agent under another version, some of its files changed; models are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"eyeline-{version}-py3-none-any.whl"
    changes = dict(changes or {})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for package, place in PACKAGES.items():
            for file in sorted((ROOT / place).rglob("*.py")):
                name = f"{package}/{file.relative_to(ROOT / place)}"
                text = file.read_text(encoding="utf-8")
                change = changes.pop(name, None)
                changed = change(text) if callable(change) else text if change is None else change
                assert change is None or changed != text, f"{name} does not say what was to be changed"
                made.writestr(name, changed)
        for name, text in changes.items():
            assert isinstance(text, str), f"{name} is no file of the agent"
            made.writestr(name, text)
        made.writestr(
            f"eyeline-{version}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: eyeline\nVersion: {version}\n",
        )
    return path


def cloud_settings(hub: LocalHub) -> CloudSettings:
    tenants = [{"name": name, "creds_file": str(hub.tenant(name).cloud)} for name in ("acme", "globex")]
    return CloudSettings.model_validate({"hub": {"url": hub.url, "tenants": tenants}})


class Yard:
    """The operator of the tenant `acme`, and its device yard/box1 below a launcher."""

    def __init__(self, hub: LocalHub, account: Account, folder: Path) -> None:
        self.hub, self.account, self.folder = hub, account, folder
        self.state_dir = folder / "state"

    def configure(self, *, hub_url: str | None = None, **settings: Any) -> Path:
        device = self.hub.tenant("acme").device("yard", "box1")
        base = {
            "tenant": "acme",
            "cameras": [{"name": "gate", "source": "pattern:160x120@5"}],
            "updates": {"confirm_s": 8, "settle_s": 0.5},
        }
        told = {"site": "yard", "device": "box1", "creds": str(device.creds)}
        return agent_file(self.folder, hub_url or self.hub.url, told, **{**base, **settings})

    @contextlib.contextmanager
    def launched(self, config: Path) -> Iterator[Program]:
        command = [sys.executable, "-m", "edge_agent.launch", "--state-dir", str(self.state_dir)]
        command += ["--", "run", "--config", str(config)]
        with Program(command, self.folder / "launcher.log") as program:
            try:
                yield program
            finally:
                children = program.descendants()
                program.send(15)
                with contextlib.suppress(Exception):
                    program.wait(20)
                for child in children:
                    with contextlib.suppress(Exception):
                        child.kill()

    async def release(
        self, artefact: Artefact, target: str = "yard/box1", **options: Any
    ) -> release_pb2.ReleaseManifest:
        key = options.pop("key", None) or self.hub.trust.release_key()
        return await release.publish(self.account, artefact, target, key, **options)

    async def status(self) -> device_pb2.DeviceStatus | None:
        return next((one for one in await release.statuses(self.account) if one.device == "box1"), None)

    async def until(self, kind: str, state: str, serial: int, *, within_s: float = 60) -> release.Row:
        """The device's row as soon as it says so about that release."""
        rows: list[release.Row] = []

        async def there() -> bool:
            rows[:] = [row for row in await release.rollout(self.account) if row.kind == kind]
            return any(row.state == state and row.serial == serial for row in rows)

        try:
            await eventually(there, within_s=within_s, what=f"{kind} {state}")
        except AssertionError as problem:
            words = (self.folder / "launcher.log").read_text(errors="replace")
            raise AssertionError(f"{problem}: {rows}\n{words[-6000:]}") from None
        return rows[0]

    async def up(self) -> device_pb2.DeviceStatus:
        """Its status once it reports a live camera."""
        found: list[device_pb2.DeviceStatus] = []

        async def there() -> bool:
            status = await self.status()
            found[:] = [status] if status is not None else []
            return bool(found) and any(
                camera.state == device_pb2.CAMERA_STATE_LIVE for camera in found[0].cameras
            )

        await eventually(there, within_s=60, what="the agent is up")
        return found[0]


@contextlib.asynccontextmanager
async def yard(hub: LocalHub, folder: Path) -> AsyncIterator[Yard]:
    folder.mkdir(parents=True, exist_ok=True)
    async with connect.account(cloud_settings(hub), "acme") as account:
        yield Yard(hub, account, folder)


async def pause() -> None:
    """Let others go on."""
    await asyncio.sleep(0)
