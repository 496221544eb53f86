"""Releases as bytes, unpacked, fetched, remembered: what is not the operator's, or not whole, is out."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import durable, install, launch_state
from edge_agent.config import AgentSettings, Source, load_in_force
from edge_agent.fetch import fetch
from edge_agent.launch_state import Slot, UpdateState
from edge_agent.updates import Agent, Updates
from eyeline import nkey, releases
from eyeline.errors import BadRelease, BusError, ConfigError
from eyeline.nkey import Kind, NKey
from eyeline.settings import merged
from eyeline.v1 import device_pb2, release_pb2

KEY = NKey.generate(Kind.OPERATOR)
ME: Any = {"tenant": "acme", "site": "yard", "device": "box1"}


def manifest(**fields: Any) -> release_pb2.ReleaseManifest:
    base = {
        "schema_major": 1,
        "tenant": "acme",
        "target": "yard/box1",
        "kind": release_pb2.RELEASE_KIND_CONFIG,
        "serial": 7,
        "version": "1",
        "sha256": hashlib.sha256(b"log_level: debug").hexdigest(),
        "size_bytes": 16,
    }
    return release_pb2.ReleaseManifest(**{**base, **fields})


def test_a_good_one_is_read() -> None:
    for target in ("yard/box1", "yard/*", "*/*"):
        data = releases.sign(manifest(target=target), KEY, b"log_level: debug")
        found, inline = releases.verify(data, KEY.public, kind="config", **ME)
        assert (found.serial, inline) == (7, b"log_level: debug")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tenant": "globex"}, "another tenant"),
        ({"target": "yard/box2"}, "it is for yard/box2"),
        ({"target": "depot/*"}, "it is for depot"),
        ({"kind": release_pb2.RELEASE_KIND_AGENT}, "no release of a config"),
        ({"serial": 0}, "no serial"),
        ({"schema_major": 2}, "schema 2"),
        ({"sha256": "../../etc/passwd"}, "no digest"),
        ({"size_bytes": 1 << 40}, "at most"),
    ],
)
def test_one_that_is_not_for_this_device_is_refused(fields: dict[str, Any], why: str) -> None:
    data = releases.sign(manifest(**fields), KEY)
    with pytest.raises(BadRelease, match=why):
        releases.verify(data, KEY.public, kind="config", **ME)


def test_only_the_operator_s_signature_counts() -> None:
    other = NKey.generate(Kind.OPERATOR)
    good = releases.sign(manifest(), KEY)
    for data, key in (
        (releases.sign(manifest(), other), KEY.public),
        (good, other.public),
        (good, "not a key"),
        (good, ""),
        (good[:-3], KEY.public),
        (b"", KEY.public),
        (b"\xff" * 40, KEY.public),
    ):
        with pytest.raises(BadRelease):
            releases.verify(data, key, kind="config", **ME)
    # The manifest of one with the signature of another, and a signature over something else by the same key.
    signed = release_pb2.SignedRelease.FromString(good)
    forged = release_pb2.SignedRelease(
        manifest=manifest(serial=8).SerializeToString(), signature=signed.signature
    )
    with pytest.raises(BadRelease, match="operator's key"):
        releases.verify(forged.SerializeToString(), KEY.public, kind="config", **ME)
    forged.signature = KEY.sign(forged.manifest)
    with pytest.raises(BadRelease, match="operator's key"):
        releases.verify(forged.SerializeToString(), KEY.public, kind="config", **ME)


@given(at=st.integers(0, 400), bit=st.integers(0, 7))
def test_any_bit_changed_is_noticed(at: int, bit: int) -> None:
    data = bytearray(releases.sign(manifest(), KEY))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(BadRelease):
        releases.verify(bytes(data), KEY.public, kind="config", **ME)


def test_public_keys_are_checked() -> None:
    assert nkey.verify(KEY.public, b"data", KEY.sign(b"data"))
    assert not nkey.verify(KEY.public, b"data", KEY.sign(b"other"))
    assert not nkey.verify(KEY.public[:-1] + "A", b"data", KEY.sign(b"data"))


def test_versions_are_compared_by_value() -> None:
    ordered = ["0.9", "0.10", "1.0a2", "1.0rc1", "1.0", "1.0.1", "1.2", "1.10", "2"]
    keys = [releases.version_key(version) for version in ordered]
    assert keys == sorted(keys)
    assert releases.version_key("1.0") == releases.version_key("1.0.0")


def test_a_release_cannot_change_who_a_device_is_nor_its_secrets() -> None:
    releases.check_config({"encode": {"crf": 20}, "cameras": [{"name": "gate", "source": "pattern:8x8@1"}]})
    for values in (
        {"tenant": "globex"},
        {"state_dir": "/tmp/x"},
        {"updates": {"key": "O..."}},
        {"hub": {"creds_file": "/x"}},
        {"cameras": [{"name": "gate", "password": "x"}]},
    ):
        with pytest.raises(ConfigError, match="a release cannot set"):
            releases.check_config(values)
    for target in ("*/box1", "yard", "yard/", "a b/c", "yard/box1/x"):
        with pytest.raises((ConfigError, ValueError)):
            releases.key_of("config", target)


def test_released_settings_go_over_the_file_s(tmp_path: Path) -> None:
    assert merged({"a": {"b": 1, "c": 2}, "l": [1]}, {"a": {"c": 3}, "l": [2]}) == {
        "a": {"b": 1, "c": 3},
        "l": [2],
    }
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"device: box1\nstate_dir: {tmp_path}\nencode: {{crf: 25, max_fps: 3}}\n"
        "cameras: [{name: gate, source: 'pattern:64x64@5'}, {name: door, source: 'pattern:64x64@5'}]\n"
    )
    state = UpdateState(tmp_path / launch_state.FOLDER)
    state.folder.mkdir()
    (state.folder / "config-3").write_text(
        "encode: {crf: 20}\ncameras: [{name: door, realtime: false}, {name: roof, source: 'pattern:8x8@1'}]\n"
    )
    state.current["config"] = Slot(3, "v3", "0" * 64, "config-3")
    state.save()
    found = load_in_force(config)
    assert (found.encode.crf, found.encode.max_fps) == (20, 3)
    assert [camera.name for camera in found.cameras] == ["gate", "door", "roof"]
    assert [camera.realtime for camera in found.cameras] == [True, False, True]
    assert load_in_force(config, {"encode.crf": 18}).encode.crf == 18
    with pytest.raises(ConfigError, match=r"unknown key 'encode\.crff'"):
        load_in_force(config, None, {"encode": {"crff": 1}})


# Unpacking


def archive(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def test_a_wheel_and_a_zip_of_wheels(tmp_path: Path) -> None:
    wheel = archive(
        tmp_path / "eyeline-2-py3-none-any.whl",
        {
            "edge_agent/__init__.py": b"",
            "eyeline-2.data/purelib/extra.py": b"x = 1",
            "eyeline-2.data/scripts/edge-agent": b"#!python",
            "eyeline-2.dist-info/METADATA": b"Name: eyeline\nVersion: 2\n",
        },
    )
    install.unpack_wheels(wheel, tmp_path / "one")
    found = {
        str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*") if path.is_file()
    }
    assert found == {"edge_agent/__init__.py", "extra.py", "eyeline-2.dist-info/METADATA"}
    other = archive(tmp_path / "other-1-py3-none-any.whl", {"other.py": b"y = 2"})
    both = archive(tmp_path / "both.zip", {path.name: path.read_bytes() for path in (wheel, other)})
    install.unpack_wheels(both, tmp_path / "two")
    assert (tmp_path / "two" / "other.py").exists()
    assert (tmp_path / "two" / "edge_agent" / "__init__.py").exists()
    # Once more over what is there.
    install.unpack_wheels(wheel, tmp_path / "two")
    assert not (tmp_path / "two" / "other.py").exists()


@pytest.mark.parametrize(
    "members",
    [
        {"../evil.py": b"x"},
        {"/etc/evil": b"x"},
        {"a/../../evil.py": b"x"},
        {"a\\..\\evil.py": b"x"},
        {"bomb.py": b"\0" * (64 << 20)},
    ],
    ids=["parent", "absolute", "inside", "backslash", "bomb"],
)
def test_hostile_archives(tmp_path: Path, members: dict[str, bytes]) -> None:
    hostile = archive(tmp_path / "hostile.whl", {"edge_agent/__init__.py": b"", **members})
    (tmp_path / "into").mkdir()
    for unpack in (install.unpack_wheels, install.unpack_model):
        with pytest.raises(BadRelease):
            unpack(hostile, tmp_path / "into" / "made")
    assert not any((tmp_path / "into").iterdir())
    assert not (tmp_path / "evil.py").exists()


def test_links_and_rubbish(tmp_path: Path) -> None:
    linked = tmp_path / "linked.whl"
    with zipfile.ZipFile(linked, "w") as made:
        member = zipfile.ZipInfo("edge_agent/passwd")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(member, "/etc/passwd")
    with pytest.raises(BadRelease, match="no plain file"):
        install.unpack_wheels(linked, tmp_path / "made")
    rubbish = tmp_path / "rubbish.whl"
    rubbish.write_bytes(b"PK\x03\x04" + b"rubbish" * 100)
    with pytest.raises(BadRelease, match="no wheel"):
        install.unpack_wheels(rubbish, tmp_path / "made")
    cut = archive(
        tmp_path / "cut.whl", {"edge_agent/__init__.py": bytes(range(256)) * 100}, zipfile.ZIP_STORED
    )
    data = bytearray(cut.read_bytes())
    data[200] ^= 1
    cut.write_bytes(data)
    with pytest.raises(BadRelease, match="cannot be unpacked"):
        install.unpack_wheels(cut, tmp_path / "made")
    with pytest.raises(BadRelease, match=r"no card\.yaml"):
        install.unpack_model(archive(tmp_path / "m.zip", {"model.onnx": b"x"}), tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert not list(tmp_path.glob(".new-*"))


# Fetching


class Store:
    """A hub's object store as `fetch` asks it; the link breaks after `most` answers."""

    def __init__(self, data: bytes, chunk: int = 1000, most: int = 10_000) -> None:
        self.chunks = [data[at : at + chunk] for at in range(0, len(data), chunk)]
        self.asked: list[int] = []
        self.most = most

    async def request(self, subject: str, payload: bytes, **_: float) -> Any:
        wanted = json.loads(payload)
        assert subject == "$JS.API.DIRECT.GET.OBJ_ARTEFACTS"
        assert wanted["next_by_subj"] == "$O.ARTEFACTS.C.thing"
        if self.most <= 0:
            raise BusError("connection lost")
        self.most -= 1
        self.asked.append(wanted["seq"])
        # Every third message of the stream is of this object.
        index = max(0, -(-(wanted["seq"] - 2) // 3))
        if index >= len(self.chunks):
            return _Message(b"", {"Status": "404"})
        return _Message(self.chunks[index], {"Nats-Sequence": str(index * 3 + 2)})


class _Message:
    def __init__(self, data: bytes, headers: dict[str, str]) -> None:
        self.data, self.headers = data, headers


async def test_a_broken_link_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    store: Any = Store(data, most=4)
    digest = hashlib.sha256(data).hexdigest()
    path = tmp_path / "partial"
    with pytest.raises(BusError):
        await fetch(store, "thing", path, size=len(data), sha256=digest)
    store.most, seen = 10_000, []
    await fetch(store, "thing", path, size=len(data), sha256=digest, progress=seen.append)
    assert path.read_bytes() == data
    assert len(store.asked) == len(store.chunks)  # nothing twice
    assert seen[0] == 4000
    # What a power cut left half written is brought again.
    path.write_bytes(data[:1500])
    path.with_name("partial.note").write_text('{"object": "thing", "sequence": 5, "bytes": 2000}')
    await fetch(store, "thing", path, size=len(data), sha256=digest)
    assert path.read_bytes() == data


async def test_what_is_not_what_was_signed_is_not_kept(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    path = tmp_path / "partial"
    digest = hashlib.sha256(data).hexdigest()
    for size, sha256, why in (
        (len(data), "0" * 64, "digest"),
        (len(data) + 1, digest, "the hub has"),
        (len(data) - 1, digest, "more than"),
    ):
        store: Any = Store(data)
        with pytest.raises(BadRelease, match=why):
            await fetch(store, "thing", path, size=size, sha256=sha256)
        assert not list(tmp_path.iterdir())


# What is remembered


class PowerCut(Exception):
    """The device went dark."""


def play(state_dir: Path) -> UpdateState:
    """From taking a release up to its end, as agent and launcher do it."""
    UpdateState.load(state_dir).begin("agent", Slot(2, "2", "a" * 64, "agent-2"), ["gate"], 5)
    state = UpdateState.load(state_dir)
    assert state.trial is not None
    state.trial.boots += 1
    state.save()
    UpdateState.load(state_dir).confirm()
    return UpdateState.load(state_dir)


@pytest.mark.parametrize("step", range(12))
def test_power_cut_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before and after each write and rename: what is read afterwards is the old or the new state, whole."""
    first = UpdateState(tmp_path / launch_state.FOLDER)
    first.current["agent"] = Slot(1, "1", "b" * 64, "agent-1")
    first.save()
    calls = 0

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise PowerCut
            return real(*args, **kwargs)

        return wrapped

    for name in ("fsync", "fdopen"):
        monkeypatch.setattr(durable.os, name, cut(getattr(durable.os, name)))
    monkeypatch.setattr(Path, "replace", cut(Path.replace))
    with pytest.raises(PowerCut):
        play(tmp_path)
    monkeypatch.undo()
    state = UpdateState.load(tmp_path)
    assert state.in_force()["agent"].path in {"agent-1", "agent-2"}
    assert state.current["agent"].path == "agent-1" or state.trial is None
    # And it goes on from there.
    if state.trial is None and state.current["agent"].serial == 1:
        assert play(tmp_path).current["agent"].serial == 2
    elif state.trial is not None:
        state.roll_back("power was cut")
        assert UpdateState.load(tmp_path).in_force()["agent"].path == "agent-1"


def test_rolling_back_remembers_why_and_how_often(tmp_path: Path) -> None:
    state = UpdateState.load(tmp_path)
    for tries in (1, 2, 3):
        state.begin("config", Slot(5, "v5", "", "config-5"), [], 1)
        state.roll_back("no hub", again=True)
        assert (state.failed["config"].tries, state.failed["config"].again) == (tries, tries < 3)
    again = UpdateState.load(tmp_path)
    assert again.highest == {"config": 5}
    assert again.in_force() == {}
    (tmp_path / launch_state.FOLDER / "state.json").write_text("{}")
    assert UpdateState.load(tmp_path).highest == {}


# What the device does about it


async def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch_state.LAUNCHED, "1")
    settings = AgentSettings.model_validate(
        {**ME, "cameras": [{"name": "gate", "source": "pattern:64x64@1"}], "state_dir": tmp_path}
        | {"updates": {"key": KEY.public}}
    )
    data = zipped({"card.yaml": b"no card", "more": bytes(range(256)) * 40})
    signed = manifest(
        kind=release_pb2.RELEASE_KIND_MODEL,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        object="thing",
    )
    hub: Any = SimpleNamespace(planned_bytes=0.0)
    follower = Updates(hub, settings, Agent(Source(None, lambda _: settings), set, str))
    store: Any = Store(data)
    entry = releases.sign(signed, KEY)

    class Session:
        async def request(self, subject: str, payload: bytes = b"", **_: float) -> Any:
            if "OBJ_" in subject:
                return await store.request(subject, payload)
            mine = subject.endswith("model.device.yard.box1")
            return _Message(entry, {"Nats-Sequence": "1"}) if mine else _Message(b"", {"Status": "404"})

    session: Any = Session()
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1 << 20))
    await follower._round(session)
    (told,) = follower.status()
    assert (told.state, store.asked) == (device_pb2.RELEASE_STATE_FETCHING, [])
    assert told.message == "waits: it needs 64 MiB of disk, 1 are free"
    assert not UpdateState.load(tmp_path).failed
    # There is room again: it is fetched and looked at, without being released anew.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1 << 40))
    await follower._round(session)
    assert len(store.asked) == len(store.chunks)
    (told,) = follower.status()
    assert (told.state, "card.yaml" in told.message) == (device_pb2.RELEASE_STATE_FAILED, True)


def zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive_:
        for name, content in members.items():
            archive_.writestr(name, content)
    return made.getvalue()
