"""`edge-agent init --join FILE`: what it takes from the file, and what it says about others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_inference.trust import Trust
from edge_agent import setup
from edge_agent.config import AgentSettings, load
from eyeline import creds
from eyeline.errors import ConfigError


@pytest.fixture
def made(tmp_path: Path) -> creds.Creds:
    trust = Trust(tmp_path / "trust")
    trust.add_tenant("acme")
    return trust.enroll("acme", "yard", "box1", names={"hub": "wss://hub.example:443"})


def write(tmp_path: Path, join: setup.Join, hub: str) -> AgentSettings:
    config = tmp_path / "edge" / "agent.yaml"
    setup.write(
        config,
        tenant=join.tenant,
        site=join.site,
        device=join.device,
        hub=hub,
        state_dir=tmp_path / "state",
        cameras=[setup.parse_camera("gate=pattern:64x48@5")],
        credentials=join.text,
        force=True,
    )
    return load(config)


def test_the_file_says_everything(made: creds.Creds, tmp_path: Path) -> None:
    path = tmp_path / "box1.creds"
    creds.write_private(path, made.text())
    join = setup.read_join(path)
    assert made.key.seed not in repr(join)
    settings = write(tmp_path, join, join.hub)
    assert (settings.tenant, settings.site, settings.device) == ("acme", "yard", "box1")
    assert settings.hub.url == "wss://hub.example:443"
    kept = settings.hub.creds_file
    assert kept is not None
    assert kept.stat().st_mode & 0o777 == 0o600
    assert creds.read(kept).key.seed == made.key.seed
    with pytest.raises(ConfigError, match="give one of them"):
        write(tmp_path, join, "nats://user:pass@hub.example")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no NATS credentials"),
        (b"\xff\xfe", "holds no NATS credentials"),
        (b"hub: nats://x", "holds no NATS credentials"),
        (None, "cannot be read"),
    ],
)
def test_other_files(content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        setup.read_join(path)
    assert "\n" not in str(caught.value)


def test_credentials_of_somebody_who_is_no_device(made: creds.Creds, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(creds.Creds(made.jwt, made.key).text())
    with pytest.raises(ConfigError, match="does not say its 'tenant'"):
        setup.read_join(path)


def test_credentials_or_a_password(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(
        "device: box1\nhub: {user: me, creds_file: x}\ncameras: [{name: a, source: 'pattern:64x48@5'}]\n"
    )
    with pytest.raises(ConfigError, match="creds_file, or user and password, not both"):
        load(config)
