"""Updates over the air: a real hub, a real launcher with a real agent, and releases good and bad."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_inference.hub import LocalHub
from cloud_inference.operate import release
from cloud_inference.operate.release import Artefact
from eyeline import releases, subjects
from eyeline.nkey import Kind, NKey
from tests.support.commands import run
from tests.support.updates import Yard, cloud_settings, wheel, yard


@pytest.fixture
async def site(hub: LocalHub, tmp_path: Path) -> AsyncIterator[Yard]:
    async with yard(hub, tmp_path / "box1") as made:
        yield made


def config(**values: Any) -> Artefact:
    data = yaml.safe_dump(values).encode()
    return Artefact("config", str(len(data)), data, inline=True)


def state(site: Yard) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((site.state_dir / "updates" / "state.json").read_text())
    return found


async def test_configuration_good_bad_forged_and_old(site: Yard) -> None:
    """One agent through it all: each bad release leaves the last good one in force."""
    with site.launched(site.configure()) as program:
        await site.up()
        one = await site.release(config(encode={"crf": 21}), "yard/*")
        await site.until("config", "applied", one.serial)
        old = await (await site.account.js.key_value(subjects.RELEASES)).get("config.site.yard")
        # A key that no agent knows is told of at once, without a restart.
        wrong = await site.release(config(encode={"crff": 21}))
        row = await site.until("config", "failed", wrong.serial)
        assert "unknown key 'encode.crff'" in row.message
        # It works, but the device does not reach the hub with it.
        away = await site.release(config(hub={"url": "nats://127.0.0.1:1"}))
        row = await site.until("config", "failed", away.serial)
        assert "the hub is not reached" in row.message
        # Another one's signature, under a serial that is newer.
        forged = await site.release(config(encode={"crf": 1}), key=NKey.generate(Kind.OPERATOR))
        program.until("release_refused", within_s=60, reason="its signature is not by the operator's key")
        # The next good one takes its place, and one that was there before does not come back by itself.
        two = await site.release(config(encode={"crf": 22}))
        await site.until("config", "applied", two.serial)
        assert two.serial > forged.serial
        bucket = await site.account.js.key_value(subjects.RELEASES)
        await bucket.delete("config.device.yard.box1")
        await bucket.put("config.site.yard", old.value or b"")
        await release._poke(site.account, "yard/*")
        program.until(
            "release_refused", within_s=60, reason="it is older than what this device had: not taken"
        )
        status = await site.up()
        assert state(site)["current"]["config"]["serial"] == two.serial
        assert status.cameras[0].rung.startswith("h264")
        assert "crf22" in status.cameras[0].rung
        # Back to what it was installed with.
        back = await site.release(release.factory("config"))
        await site.until("config", "applied", back.serial)
        assert "crf22" not in (await site.up()).cameras[0].rung


@pytest.mark.long
async def test_the_agent_itself(site: Yard, tmp_path: Path) -> None:
    """A good one runs; ones that crash, hang, lie about their version or are older do not stay."""
    with site.launched(site.configure()) as program:
        await site.up()
        good = release.agent_artefact([wheel(tmp_path / "good", "7.0.0")])
        one = await site.release(good)
        await site.until("agent", "applied", one.serial)
        assert (await site.up()).agent_version == "7.0.0"
        before = state(site)["current"]["agent"]

        async def fails(version: str, changes: Any, why: str, **options: Any) -> None:
            made = release.agent_artefact([wheel(tmp_path / version, version, changes)])
            serial = (await site.release(made, **options)).serial
            row = await site.until("agent", "failed", serial)
            assert why in row.message, row.message
            assert state(site)["current"]["agent"] == before
            assert (await site.up()).agent_version == "7.0.0"

        await fails("6.0.0", None, "version 6.0.0 is lower than 7.0.0")
        await fails(
            "7.1.0", {"edge_agent/agent.py": "raise ImportError('no such library')"}, "no such library"
        )
        crash = {
            "edge_agent/agent.py": lambda text: text.replace(
                "with only_one(", "raise SystemExit(9)\n        with only_one("
            )
        }
        await fails("7.2.0", crash, "ended 3 times before it was healthy")
        dark = {"edge_agent/agent.py": lambda text: text.replace("camera.capture.start()", "pass")}
        await fails("7.3.0", dark, "no picture from: gate")
        down = await site.release(
            release.agent_artefact([wheel(tmp_path / "down", "5.0.0")]), allow_downgrade=True
        )
        await site.until("agent", "applied", down.serial)
        assert (await site.up()).agent_version == "5.0.0"
        assert program.running
        # What failed takes no room.
        names = {path.name for path in (site.state_dir / "updates").iterdir()}
        assert {name for name in names if name.startswith("agent-")} == {f"agent-{down.serial}"}


@pytest.mark.long
async def test_killed_at_any_moment_and_away_for_long(site: Yard, tmp_path: Path) -> None:
    """A device that is killed while it takes an update up, and one that hears of it much later."""
    file = site.configure()
    with site.launched(file) as program:
        await site.up()
        serial = (await site.release(release.agent_artefact([wheel(tmp_path / "a", "7.0.0")]))).serial
        program.until("agent_starting", within_s=60, trial="agent")
        children = program.descendants()
        program.send(9)
        for child in children:
            child.kill()
    # Away: meanwhile there were many releases, of which the newest counts.
    for number in range(3):
        last = await site.release(config(encode={"crf": 30 + number}), "*/*")
    with site.launched(file):
        await site.until("agent", "applied", serial)
        await site.until("config", "applied", last.serial)
        status = await site.up()
        assert (status.agent_version, "crf32" in status.cameras[0].rung) == ("7.0.0", True)


@pytest.mark.long
async def test_damaged_artefacts_and_objects_of_others(site: Yard, tmp_path: Path) -> None:
    with site.launched(site.configure()) as program:
        await site.up()
        made = release.agent_artefact([wheel(tmp_path / "a", "7.0.0")])
        store = await site.account.js.object_store(subjects.ARTEFACTS)
        signed = await site.release(made)
        await site.until("agent", "applied", signed.serial)
        # The hub gives other bytes than those that were signed.
        data = bytearray(made.data)
        data[len(data) // 2] ^= 1
        info = await store.put("damaged", bytes(data))
        bucket = await site.account.js.key_value(subjects.RELEASES)
        signed.serial, signed.object = signed.serial + 1, info.nuid or ""
        await bucket.put("agent.device.yard.box1", releases.sign(signed, site.hub.trust.release_key()))
        await release._poke(site.account, "yard/box1")
        row = await site.until("agent", "failed", signed.serial)
        assert row.message == "its digest is not the one that was signed"
        # And nothing at all.
        signed.serial, signed.object = signed.serial + 1, "nowhere"
        await bucket.put("agent.device.yard.box1", releases.sign(signed, site.hub.trust.release_key()))
        await release._poke(site.account, "yard/box1")
        assert "the hub has 0 of its" in (await site.until("agent", "failed", signed.serial)).message
        assert not list((site.state_dir / "updates" / "partial").iterdir())
        assert program.running


@pytest.mark.long
async def test_the_model_and_the_commands(site: Yard, hub: LocalHub, tmp_path: Path) -> None:
    file = site.configure(detect={"enabled": True, "max_fps": 1})
    settings = tmp_path / "cloud.yaml"
    settings.write_text(yaml.safe_dump(cloud_settings(hub).model_dump(mode="json", exclude_unset=True)))
    options = ["--config", settings, "--tenant", "acme"]
    signing = ["--state", tmp_path / "hub"]
    with site.launched(file):
        await site.up()
        done = await run(
            "cloud_inference",
            "release",
            "model",
            "centernet-mobilenetv3",
            "--to",
            "yard/*",
            *signing,
            *options,
        )
        assert done.status == 0, done.err
        assert "released model centernet-mobilenetv3" in done.out
        shown = await run("cloud_inference", "rollout", "--wait", "60", *options, within_s=90)
        assert shown.status == 0, shown.out + shown.err
        assert "yard/box1  model  centernet-mobilenetv3" in shown.out
        assert "applied" in shown.out
        bad = await run("cloud_inference", "release", "config", tmp_path / "nowhere", "--to", "a", *options)
        assert (bad.status, "cannot be read" in bad.err) == (2, True)
        own = tmp_path / "own.yaml"
        own.write_text("device: box2\n")
        bad = await run("cloud_inference", "release", "config", own, "--to", "yard/box1", *signing, *options)
        assert (bad.status, "cannot set device" in bad.err) == (2, True)
        status = await site.up()
        assert status.edge_model.name == "centernet-mobilenetv3"
    told = await run("cloud_inference", "audit", "--what", "release", "--json", *options)
    assert json.loads(told.out.splitlines()[0])["detail"]["target"] == "yard/*"
