"""The hub's configuration text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cloud_inference import nats_jwt
from cloud_inference.hub import HubConfig, LocalHub, config_text
from cloud_inference.permissions import device_imports, device_permissions, tenant_exports
from cloud_inference.pki import Files
from cloud_inference.trust import Trust
from eyeline.creds import parse
from eyeline.errors import ConfigError, InvalidName
from eyeline.nkey import Kind, NKey

CONFIG = HubConfig(
    operator_jwt="operator.jwt",
    system_account="ASYS",
    system_jwt="system.jwt",
    store_dir=Path("/var/lib/hub"),
    accounts_dir=Path("/var/lib/accounts"),
)


def section(text: str, name: str) -> object:
    """The value of a top-level key, which is JSON."""
    value, _ = json.JSONDecoder().raw_decode(text[text.index(f"\n{name}: ") + len(name) + 3 :])
    return value


def test_only_the_system_account_is_preloaded() -> None:
    text = config_text(CONFIG)
    assert section(text, "operator") == "operator.jwt"
    assert section(text, "system_account") == "ASYS"
    # Others come from the folder: preloaded ones would bring revoked devices back.
    assert section(text, "resolver_preload") == {"ASYS": "system.jwt"}
    assert "tls" not in text


def test_storage_and_limits() -> None:
    text = config_text(CONFIG)
    assert section(text, "jetstream") == {
        "store_dir": "/var/lib/hub",
        "domain": "hub",
        "sync_interval": "2s",
    }
    assert section(text, "max_payload") == 1_048_576
    assert "http" not in text
    always = config_text(replace(CONFIG, sync_interval_s=0, monitor_port=-1, max_store_bytes=5))
    jetstream = section(always, "jetstream")
    assert isinstance(jetstream, dict)
    assert (jetstream["sync_interval"], jetstream["max_file_store"]) == ("always", 5)
    assert section(always, "http") == "127.0.0.1:-1"


def test_one_certificate_for_every_port() -> None:
    files = Files(Path("server.pem"), Path("server.key"), Path("ca.pem"))
    text = config_text(replace(CONFIG, tls=files, websocket_port=443))
    main, websocket = section(text, "tls"), section(text, "websocket")
    assert isinstance(main, dict)
    assert isinstance(websocket, dict)
    assert main["handshake_first"] == "auto"
    assert main["cert_file"] == websocket["tls"]["cert_file"] == "server.pem"
    assert "no_tls" not in websocket
    plain = section(config_text(replace(CONFIG, websocket_port=80)), "websocket")
    assert plain == {"host": "127.0.0.1", "port": 80, "no_tls": True}


def test_a_device_is_allowed_its_own_subjects_only() -> None:
    permissions = device_permissions("yard", "box1")
    assert permissions["subscribe"]["allow"] == ["eyeline.v1.control.yard.box1", "_INBOX_yard.box1.>"]
    for subject in permissions["publish"]["allow"]:
        assert not subject.startswith((">", "*"))
        assert "DELETE" not in subject
        assert "PURGE" not in subject


def test_a_device_s_account_has_no_more_of_its_tenant_s() -> None:
    shared = {(share.subject, share.kind) for share in tenant_exports()}
    asked = device_permissions("yard", "box1")["publish"]["allow"]
    imports = device_imports("AT", "yard", "box1")
    # The server wants the account itself to have that one; the device may not ask it.
    assert "$JS.API.INFO" not in asked
    assert [share.subject for share in imports if share.kind == "service"] == ["$JS.API.INFO", *asked]
    assert [share.subject for share in imports if share.kind == "stream"] == ["eyeline.v1.control.yard.box1"]
    for share in imports:
        assert share.account == "AT"
        assert any(kind == share.kind and covers(whole, share.subject) for whole, kind in shared)


def covers(whole: str, subject: str) -> bool:
    pattern = re.escape(whole).replace(r"\*", "[^.]+").replace(">", ".+")
    return re.fullmatch(pattern, subject) is not None


def test_names_that_look_alike_have_different_inboxes() -> None:
    one, other = device_permissions("a_b", "c"), device_permissions("a", "b_c")
    assert one["subscribe"]["allow"][1] != other["subscribe"]["allow"][1]


@pytest.mark.parametrize("name", ["", "a.b", "*", "a b"])
def test_names_that_cannot_be_subjects_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        LocalHub({name: []}, tmp_path)
    with pytest.raises(InvalidName):
        LocalHub({"acme": [("yard", name)]}, tmp_path)


@pytest.mark.parametrize("content", ["not json", "[1]", '{"account": 1}'])
def test_a_damaged_folder_is_one_line(content: str, tmp_path: Path) -> None:
    trust = Trust(tmp_path)
    trust.add_tenant("acme")
    (tmp_path / "tenants" / "acme.json").write_text(content)
    with pytest.raises(ConfigError, match=r"acme\.json .*restore it from a backup"):
        trust.account_jwts()
    (tmp_path / "operator.seed").write_text("SO" + content)
    with pytest.raises(ConfigError, match=r"operator\.seed"):
        Trust(tmp_path)


def test_keys_are_kept_private_and_a_device_s_is_not_kept(tmp_path: Path) -> None:
    trust = Trust(tmp_path / "trust")
    assert trust.add_tenant("acme")
    assert not trust.add_tenant("acme")
    device = trust.enroll("acme", "yard", "box1", names={"hub": "nats://h:1"}, ca=CERTIFICATE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert not any(device.key.seed in path.read_text() for path in files)
    again = Trust(tmp_path / "trust")
    assert (again.operator_jwt.split(".")[0], again.system_account) == (
        trust.operator_jwt.split(".")[0],
        trust.system_account,
    )
    for said in (repr(device), repr(device.key), str(device)):
        assert device.key.seed not in said
        assert device.jwt not in said


def test_a_credentials_file_holds_everything(tmp_path: Path) -> None:
    trust = Trust(tmp_path)
    trust.add_tenant("acme")
    made = trust.enroll("acme", "Yard", "box_1", names={"hub": "tls://h:1"}, ca=CERTIFICATE)
    read = parse(made.text(), "file")
    assert (read.jwt, read.key.seed, read.ca) == (made.jwt, made.key.seed, CERTIFICATE)
    named = {"tenant": "acme", "site": "Yard", "device": "box_1", "hub": "tls://h:1"}
    assert read.names == {**named, "release-key": trust.release_key().public}
    seed = made.key.seed
    other = seed[:20] + ("B" if seed[20] == "A" else "A") + seed[21:]
    for damaged in (made.text().replace(seed, other), "", "-----BEGIN NATS"):
        with pytest.raises(ConfigError, match=r"^file"):
            parse(damaged, "file")


def test_revoking_and_rotating(tmp_path: Path) -> None:
    trust = Trust(tmp_path)
    trust.add_tenant("acme")
    first, second = (trust.enroll("acme", "yard", "box1").key.public for _ in range(2))
    assert trust.valid("acme", "yard", "box1") == [first, second]
    assert trust.revoke("acme", "yard", "box1", keep_newest=True) == 1
    assert trust.valid("acme", "yard", "box1") == [second]
    assert trust.revoke("acme", "yard", "box1") == 1
    assert trust.revoke("acme", "yard", "box1") == 0
    for unknown in (("acme", "yard", "box2"), ("globex", "yard", "box1")):
        with pytest.raises(ConfigError, match="known: "):
            trust.revoke(*unknown)


def test_keys_have_the_form_of_nats() -> None:
    for kind, letter in ((Kind.OPERATOR, "O"), (Kind.ACCOUNT, "A"), (Kind.USER, "U")):
        key = NKey.generate(kind)
        assert (key.public[0], len(key.public), key.seed[:2], len(key.seed)) == (letter, 56, f"S{letter}", 58)
        assert NKey.from_seed(key.seed).public == key.public
    # Of the documentation of nats-io/nkeys: a seed, and the public key that belongs to it.
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    assert NKey.from_seed(seed).public == "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
    for damaged in ("", "S", seed[:-2], seed.replace("CSS", "CSX"), key.public, "0" * 58):
        with pytest.raises(ConfigError):
            NKey.from_seed(damaged)
    with pytest.raises(AssertionError):
        nats_jwt.user("U", "x", signed_by=NKey.generate(Kind.ACCOUNT), account_key="A")


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
