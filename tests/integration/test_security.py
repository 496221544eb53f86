"""`cloud-inference local --tls` and the commands about who belongs, as a person types them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eyeline import Client, bus, creds, errors, subjects
from eyeline.errors import BusError
from tests.support.eventually import eventually
from tests.support.programs import Program, module

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[Path]:
    """The state folder of a running `local --tls`."""
    folder = tmp_path / "cloud"
    arguments = ["--state", str(folder), "--hub-port", "0", "--api-port", "0", "--websocket-port", "0"]
    arguments += ["--tls", "--device", "yard/box1"]
    with Program(module("cloud_inference", "local", *arguments), tmp_path / "local.log") as program:
        await asyncio.to_thread(program.until, "local_ready", within_s=60)
        yield folder
        assert await asyncio.to_thread(program.end) == 0
        assert "Traceback" not in program.said
        secrets = [path.read_text() for path in folder.rglob("*.key")]
        secrets += [creds.read(path).key.seed for path in folder.rglob("*.creds")]
        assert not [secret for secret in secrets if secret in program.said]


async def cloud_inference(*arguments: str, status: int = 0) -> str:
    """What it said; on stderr when it failed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cloud_inference", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200"},
    )
    output, trouble = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == status, trouble.decode()
    if status:
        assert "Traceback" not in trouble.decode()
        return trouble.decode().strip()
    return output.decode().strip()


async def joined(path: Path, url: str | None = None) -> Any:
    """A connection as the device of that file, with nothing else."""
    names = creds.read(path).names
    return await bus.connect(
        url or names["hub"],
        name="device",
        creds_file=path,
        inbox_prefix=subjects.device_inbox(names["site"], names["device"]),
        wait=False,
    )


async def test_enroll_revoke_and_token_on_a_running_system(state: Path, tmp_path: Path) -> None:
    endpoints = json.loads((state / "endpoints.json").read_text())
    (made,) = endpoints["tenants"]["default"]["devices"]
    where = ("--state", str(state))

    # Enrolling, by TCP and by WebSocket.
    box1 = await joined(Path(made["creds"]))
    path = Path(await cloud_inference("enroll", "default/yard/box2", *where))
    assert path == state / "devices" / "default" / "yard" / "box2.creds"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    box2 = await joined(path)
    far = tmp_path / "far.creds"
    await cloud_inference(
        "enroll", "default/yard/far", *where, "--hub", endpoints["websocket"], "--out", str(far)
    )
    assert creds.read(far).names["hub"].startswith("wss://")
    far_client = await joined(far)
    await far_client.jetstream().publish(subjects.status_subject("yard", "far"), b"")

    # Revoking: cut at once, and nobody else.
    said = await cloud_inference("revoke", "default/yard/box2", *where)
    assert said == "default/yard/box2: 1 revoked; the hub was told"
    await eventually(lambda: not box2.is_connected, within_s=5)
    with pytest.raises(BusError, match="no longer, valid"):
        await joined(path)
    for client in (box1, far_client):
        await client.flush()
    # Rotating: the new key first, then the old one away.
    new = Path(
        await cloud_inference("enroll", "default/yard/box1", *where, "--out", str(tmp_path / "new.creds"))
    )
    both = await joined(new)
    assert (await cloud_inference("revoke", "default/yard/box1", *where, "--old")).startswith(
        "default/yard/box1: 1 revoked"
    )
    await eventually(lambda: not box1.is_connected, within_s=5)
    await both.flush()
    for client in (box1, box2, both, far_client):
        with contextlib.suppress(Exception):
            await client.close()

    # Tokens.
    ca = Path(endpoints["ca"])
    everything = await cloud_inference("token", *where)
    async with Client(endpoints["api"], everything, tls=ca) as client:
        assert [device.status.device for device in await client.devices()] == [""]
    narrow = await cloud_inference(
        "token", *where, "--cameras", "other/*", "--expires", "1h", "--allow", "read"
    )
    async with Client(endpoints["api"], narrow, tls=ca) as client:
        assert await client.devices() == []
        assert await client.latest() == []
        with pytest.raises(errors.PermissionDenied):
            await client.latest(["yard/gate"])
        with pytest.raises(errors.PermissionDenied):
            await client.detect(b"image")
    async with Client(endpoints["api"], tls=ca) as client:
        with pytest.raises(errors.Unauthenticated):
            await client.latest()


async def test_mistakes_are_one_line_and_status_2(tmp_path: Path) -> None:
    where = ("--state", str(tmp_path / "none"))
    for arguments, expected in (
        (("enroll", "yard/box1", *where), "must be TENANT/SITE/DEVICE"),
        (("enroll", "default/yard/box1", *where), "no hub was made in"),
        (("revoke", "default/yard/box1", *where), "no hub was made in"),
        (("enroll", "default/yard/box1", *where, "--expires", "soon"), "such as 30d"),
        (("token", *where), "cannot be read"),
        (("token", *where, "--cameras", "gate"), "must be SITE/CAMERA"),
        (("token", *where, "--allow", "all"), "methods are read, write, detect"),
        (("local", *where, "--host", "0.0.0.0"), "give --tls too"),  # noqa: S104
    ):
        said = await cloud_inference(*arguments, status=2)
        assert expected in said
        assert "\n" not in said


@pytest.mark.long
async def test_the_demo_over_tls(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "benchmarks.demo",
            "--tls",
            "--seconds",
            "4",
            "--out",
            str(tmp_path / "demo"),
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 110)
    assert process.returncode == 0, said.decode()
    assert b"with TLS" in said
    assert b"tls://127.0.0.1" in said
