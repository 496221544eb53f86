"""Settings from file, environment and flags: passwords as they are, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.config import AgentSettings
from eyeline.errors import ConfigError
from eyeline.settings import load, secret

PREFIX = "EYELINE_EDGE__"
CAMERAS = "cameras: [{name: gate, source: 'pattern:64x48@5'}]\n"


def agent(tmp_path: Path, text: str = "", **environ: str) -> AgentSettings:
    path = tmp_path / "agent.yaml"
    path.write_text(f"device: box\n{CAMERAS}{text}")
    named = {f"{PREFIX}{name}": value for name, value in environ.items()}
    return load(AgentSettings, path, env_prefix=PREFIX, environ=named)


@pytest.mark.parametrize(
    ("given", "password"),
    [
        ("plain", "plain"),
        ('"in quotes"', "in quotes"),
        ("0123", "0123"),
        ("true", "true"),
        ("2026-01-01", "2026-01-01"),
        ("[a, b]", "[a, b]"),
        ("@not yaml", "@not yaml"),
        ("a: {", "a: {"),
    ],
)
def test_a_password_in_the_environment_is_taken_as_it_is(tmp_path: Path, given: str, password: str) -> None:
    assert agent(tmp_path, HUB__PASSWORD=given).hub.secret_password() == password


def test_other_variables_are_yaml(tmp_path: Path) -> None:
    found = agent(tmp_path, HUB__URL="[nats://a:1, nats://b:2]", HTTP__PORT="0", HUB__USER="7")
    assert found.hub.url == ("nats://a:1", "nats://b:2")
    assert (found.http.port, found.hub.user) == (0, "7")
    with pytest.raises(ConfigError, match="EYELINE_EDGE__HTTP__PORT is not a YAML value"):
        agent(tmp_path, HTTP__PORT="{")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub: {password: 12345}\n", "hub.password must be text: put it in quotes"),
        ("hub: {pasword: x}\n", "unknown key 'hub.pasword'; did you mean 'password'?"),
        ("tenat: x\n", "unknown key 'tenat'; did you mean 'tenant'?"),
        ("cameras: [{name: a}]\n", "cameras.0.source is missing"),
        ("cameras: []\n", "cameras must have 1 or more"),
        ("cameras: {a: {source: x}}\n", "cameras must be a list: each entry begins with a dash"),
        ("encode: fast\n", "encode must be a section: its keys are indented below it"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        agent(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'agent.yaml'}: {expected}"


def test_a_password_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("right\n")
    assert secret(None, path, "hub") == "right"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^hub: \S+ is not text in UTF-8$"):
        secret(None, path, "hub")
    with pytest.raises(ConfigError, match=r"^hub: \S+ cannot be read: No such file or directory$"):
        secret(None, tmp_path / "none", "hub")
