"""The hub's configuration text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloud_inference.hub import Device, HubConfig, Tenant, User, config_text, device_permissions, generate
from eyeline.errors import ConfigError, InvalidName

CONFIG = HubConfig(
    tenants=(
        Tenant("acme", User("acme.cloud", "p1"), (Device("yard", "box1", User("acme.yard.box1", 'p"2')),)),
        Tenant("SYS", User("SYS.cloud", "p3")),
    ),
    system=User("system", "p4"),
    store_dir=Path("/var/lib/hub"),
)


def section(text: str, name: str) -> object:
    """The value of a top-level key, which is JSON."""
    value, _ = json.JSONDecoder().raw_decode(text[text.index(f"\n{name}: ") + len(name) + 3 :])
    return value


def test_every_tenant_has_an_account_of_its_own() -> None:
    accounts = section(config_text(CONFIG), "accounts")
    assert isinstance(accounts, dict)
    # A tenant may be called SYS and still is not the system.
    assert set(accounts) == {"SYS", "tenant-acme", "tenant-SYS"}
    assert accounts["SYS"] == {"users": [{"user": "system", "password": "p4"}]}
    acme = accounts["tenant-acme"]
    assert acme["jetstream"] == "enabled"
    assert acme["users"][0] == {"user": "acme.cloud", "password": "p1"}
    assert acme["users"][1]["password"] == 'p"2'
    assert acme["users"][1]["permissions"] == device_permissions("yard", "box1")


def test_storage_and_limits() -> None:
    text = config_text(CONFIG)
    assert section(text, "jetstream") == {
        "store_dir": "/var/lib/hub",
        "domain": "hub",
        "sync_interval": "2s",
    }
    assert section(text, "max_payload") == 1_048_576
    assert section(text, "system_account") == "SYS"
    assert "http" not in text
    always = HubConfig((), User("s", "p"), Path("x"), sync_interval_s=0, monitor_port=-1, max_store_bytes=5)
    jetstream = section(config_text(always), "jetstream")
    assert isinstance(jetstream, dict)
    assert (jetstream["sync_interval"], jetstream["max_file_store"]) == ("always", 5)
    assert section(config_text(always), "http") == "127.0.0.1:-1"


def test_a_device_is_allowed_its_own_subjects_only() -> None:
    permissions = device_permissions("yard", "box1")
    assert permissions["subscribe"]["allow"] == ["eyeline.v1.control.yard.box1", "_INBOX_yard.box1.>"]
    for subject in permissions["publish"]["allow"]:
        assert not subject.startswith((">", "*"))
        assert "DELETE" not in subject
        assert "PURGE" not in subject


def test_names_that_look_alike_have_different_inboxes() -> None:
    one, other = device_permissions("a_b", "c"), device_permissions("a", "b_c")
    assert one["subscribe"]["allow"][1] != other["subscribe"]["allow"][1]


@pytest.mark.parametrize("name", ["", "a.b", "*", "a b"])
def test_names_that_cannot_be_subjects_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        generate({name: []}, tmp_path)
    with pytest.raises(InvalidName):
        generate({"acme": [("yard", name)]}, tmp_path)


@pytest.mark.parametrize("content", ["not json", "[1]", '{"system": 1}'])
def test_damaged_secrets_are_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "hub-secrets.json").write_text(content)
    with pytest.raises(ConfigError, match=r"hub-secrets\.json"):
        generate({"acme": []}, tmp_path)
