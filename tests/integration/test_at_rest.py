"""What lies on disks: encrypted when asked for, and gone when nobody needs it any more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cloud_inference import streams
from cloud_inference.cli import _store_key
from cloud_inference.config import CloudSettings, StreamSettings
from cloud_inference.hub import LocalHub
from cloud_inference.store import ResultLog
from edge_agent.config import SpoolSettings
from edge_agent.spool import Spool
from eyeline import subjects
from eyeline.errors import ConfigError, ServerFailed
from eyeline.nats_server import StoreKey
from tests.integration.test_erase import envelope
from tests.support.servers import cloud_client, running_hub

MARKS = (b"MARKED-PIXELS", b"MARKED-RESULT")


def on_disk(folder: Path, marks: Sequence[bytes] = MARKS) -> list[bytes]:
    """Which marks can be read in any file below."""
    data = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return [mark for mark in marks if any(mark in one for one in data)]


async def fill(hub: LocalHub) -> None:
    client = await cloud_client(hub)
    js = client.jetstream()
    await streams.ensure(js, StreamSettings())
    await js.publish(subjects.frame_subject("yard", "box1", "gate"), MARKS[0] * 10)
    await js.publish(subjects.result_subject("yard", "gate"), MARKS[1] * 10)
    await (await js.key_value(subjects.DESIRED)).put("yard.box1", MARKS[1])
    await client.close()


async def read(hub: LocalHub) -> bytes:
    client = await cloud_client(hub)
    found = await client.jetstream().get_last_msg(
        subjects.FRAMES, subjects.frame_subject("yard", "box1", "gate")
    )
    await client.close()
    return found.data or b""


async def test_the_hub_s_files_hold_no_plaintext(tmp_path: Path) -> None:
    """From plain to encrypted, to another key, and never with a wrong one."""
    state = tmp_path / "hub"
    async with running_hub(state) as hub:
        await fill(hub)
    assert on_disk(state / "jetstream") == list(MARKS)
    # A secret may look like anything.
    for key in (StoreKey("12 {secret} $x"), StoreKey("second", before="12 {secret} $x"), StoreKey("second")):
        async with running_hub(state, store_key=key) as hub:
            assert await read(hub) == MARKS[0] * 10
        assert on_disk(state) == []
        assert "secret" not in repr(key)
    for wrong in (StoreKey("third"), None):
        with pytest.raises(ServerFailed, match="encrypted with another key"):
            async with running_hub(state, store_key=wrong):
                pass
    async with running_hub(state, store_key=StoreKey("second")) as hub:
        assert await read(hub) == MARKS[0] * 10
    assert not on_disk(state, [b"second", b"12 {secret}"])


async def test_nor_does_a_device_s_spool(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("of this device\n")
    kept = envelope(1, mark=MARKS[0])

    async def run(settings: SpoolSettings, *, put: bool = False) -> int:
        spool = Spool(settings, tmp_path)
        await spool.start()
        try:
            if put:
                await spool.put(kept)
            return spool.messages
        finally:
            await spool.stop()

    assert await run(SpoolSettings(), put=True) == 1
    assert on_disk(tmp_path / "spool") == [MARKS[0]]
    assert await run(SpoolSettings(key_file=secret)) == 1
    assert on_disk(tmp_path / "spool") == []
    assert await run(SpoolSettings(key=SecretStr("of this device"))) == 1
    with pytest.raises(ServerFailed, match="encrypted with another key"):
        await run(SpoolSettings(key=SecretStr("of another")))
    assert await run(SpoolSettings(key=SecretStr("new"), key_file_before=secret)) == 1
    assert await run(SpoolSettings(key=SecretStr("new"))) == 1
    assert on_disk(tmp_path / "spool") == []


def test_a_key_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("secret\n")
    assert _store_key(path, None) == StoreKey("secret")
    assert _store_key(None, None) is None
    path.write_text("\n")
    for given in ((path, None), (None, path), (tmp_path / "nowhere", None)):
        with pytest.raises(ConfigError):
            _store_key(*given)


async def test_pixels_stay_as_long_as_their_tenant_wants(hub: LocalHub) -> None:
    client = await cloud_client(hub)
    js = client.jetstream()
    await streams.ensure(js, StreamSettings())

    async def left(keep_s: float, wait_s: float = 0.0) -> int:
        for number in range(3):
            await js.publish(subjects.frame_subject("yard", "box1", "gate"), b"%d" % number)
        info = await js.stream_info(subjects.FRAMES)
        log = ResultLog(client, js, "yard", "gate", pixels_keep_s=keep_s)
        end = time.monotonic() + wait_s
        while True:
            log._purged_s = -1e9
            await log.purge_frames(info.state.last_seq + 1)
            count = (await js.stream_info(subjects.FRAMES)).state.messages
            if time.monotonic() >= end or not count:
                return count

    assert await left(0) == 0
    assert await left(3600) == 3
    assert await left(0.5, wait_s=10) == 0
    await client.close()


async def test_each_tenant_has_its_own_retention(hub: LocalHub) -> None:
    creds: dict[str, Any] = {name: str(hub.tenant(name).cloud) for name in ("acme", "globex")}
    own = {"pixels_keep_s": 60, "results_max_age_s": 3600}
    settings = CloudSettings.model_validate(
        {
            "hub": {
                "streams": {"results_max_age_s": 7200},
                "tenants": [
                    {"name": "acme", "creds_file": creds["acme"]},
                    {"name": "globex", "creds_file": creds["globex"], "streams": own},
                ],
            }
        }
    )
    ages = {}
    for tenant in settings.hub.tenants:
        client = await cloud_client(hub, tenant.name)
        await streams.ensure(client.jetstream(), settings.hub.streams_of(tenant))
        info = await client.jetstream().stream_info(subjects.RESULTS)
        ages[tenant.name] = info.config.max_age
        await client.close()
    assert ages == {"acme": 7200, "globex": 3600}
    assert [settings.hub.streams_of(it).pixels_keep_s for it in settings.hub.tenants] == [0, 60]
