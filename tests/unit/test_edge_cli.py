"""The agent's command line: one line for what is wrong, and no password anywhere."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edge_agent import service, setup
from edge_agent.config import load
from eyeline.errors import ConfigError

PASSWORD = "s3cr3t-p@ss"
QUOTED = "s3cr3t-p%40ss"


def agent(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


def write_config(path: Path, **more: object) -> Path:
    base = {
        "device": "box",
        "state_dir": str(path.parent / "state"),
        "hub": {"url": "nats://127.0.0.1:9"},
        "detect": {"enabled": False},
        "cameras": [{"name": "front", "source": str(path.parent / "missing.mp4")}],
    }
    path.write_text(yaml.safe_dump({**base, **more}))
    return path


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    done = agent("run", "--config", str(write_config(tmp_path / "c.yaml", spol={"max_bytes": 5})))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "unknown key 'spol'; did you mean 'spool'?" in done.stderr


def test_missing_configuration_is_one_line(tmp_path: Path) -> None:
    done = agent("check", "--config", str(tmp_path / "none.yaml"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "none.yaml cannot be read" in done.stderr


def test_check_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    done = agent("check", "--config", str(config), "--json")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    found = {finding["what"]: finding for finding in answer["findings"]}
    assert answer["ok"] is False
    assert found["state_dir"]["ok"]
    assert not found["camera front"]["ok"]
    assert "missing.mp4" in found["camera front"]["found"]
    assert not found["hub"]["ok"]
    assert all(finding["ok"] or finding["mend"] for finding in answer["findings"])
    table = agent("check", "--config", str(config))
    assert table.returncode == 1
    assert "what to do" in table.stdout
    assert table.stderr == ""


def test_check_measures_a_camera(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", cameras=[{"name": "p", "source": "pattern:64x48@10"}])
    answer = json.loads(agent("check", "--config", str(config), "--json").stdout)
    (camera,) = [finding for finding in answer["findings"] if finding["what"] == "camera p"]
    assert camera["ok"]
    assert "64x48" in camera["found"]
    assert "fps" in camera["found"]


def test_init_keeps_passwords_apart(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    done = agent(
        "init",
        "--config", str(config),
        "--camera", f"front=rtsp://viewer:{QUOTED}@127.0.0.1:9/live",
        "--hub", f"nats://box:{QUOTED}@127.0.0.1:9",
        "--device", "box",
        "--state-dir", str(tmp_path / "state"),
        "--no-test",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr, config.read_text()):
        assert PASSWORD not in text
        assert QUOTED not in text
    settings = load(config)
    camera = settings.cameras[0]
    assert (camera.source, camera.user) == ("rtsp://127.0.0.1:9/live", "viewer")
    assert camera.secret_password() == PASSWORD
    assert (settings.hub.url, settings.hub.user) == ("nats://127.0.0.1:9", "box")
    assert settings.hub.secret_password() == PASSWORD
    for file in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = agent("init", "--config", str(config), "--camera", "a=pattern:64x48@5", "--no-test")
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_passwords_are_in_no_output(tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "c.yaml",
        cameras=[{"name": "front", "source": f"rtsp://viewer:{QUOTED}@127.0.0.1:9/live"}],
    )
    env = {"EYELINE_EDGE__HUB__PASSWORD": PASSWORD, "EYELINE_EDGE__HUB__USER": "box"}
    for arguments in (("check", "--json"), ("check",)):
        done = agent(*arguments, "--config", str(config), "--seconds", "0.5", env=env)
        assert done.returncode == 1
        assert PASSWORD not in done.stdout + done.stderr
        assert QUOTED not in done.stdout + done.stderr


def test_init_tests_the_cameras(tmp_path: Path) -> None:
    done = agent(
        "init",
        "--config", str(tmp_path / "agent.yaml"),
        "--camera", "good=pattern:64x48@10",
        "--camera", f"bad={tmp_path / 'none.mp4'}",
        "--state-dir", str(tmp_path / "state"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "ok    camera good: 64x48" in done.stdout
    assert "wrong camera bad:" in done.stdout


def test_service_print_and_refusal(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", state_dir="/var/lib/eyeline")
    done = agent("service", "install", "--print", "--config", str(config))
    assert done.returncode == 0, done.stderr
    for line in (
        f"-m edge_agent.launch --state-dir /var/lib/eyeline -- run --config {config}",
        "Restart=always",
        "EnvironmentFile=-/etc/eyeline/edge-agent.env",
        "StateDirectory=eyeline",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
    ):
        assert line in done.stdout


def test_service_without_systemd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.os, "geteuid", lambda: 0)
    monkeypatch.setattr(service.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="no systemd runs here"):
        service.install("")
    monkeypatch.setattr(service.os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="needs root"):
        service.install("")


def test_unit_quotes_paths() -> None:
    text = service.unit_text(Path("/etc/my config%.yaml"), Path("/data/spool"), user="eyeline")
    assert '--config "/etc/my config%%.yaml"' in text
    assert "User=eyeline" in text
    assert "ReadWritePaths=/data/spool" in text


def test_camera_names_from_the_network() -> None:
    assert setup.camera_name("Front Door (HD)", []) == "front-door-hd"
    assert setup.camera_name("Front Door", ["front-door"]) == "front-door-2"
    with pytest.raises(ConfigError, match="NAME=ADDRESS"):
        setup.parse_camera("rtsp://10.0.0.1/live")


def test_second_agent_with_the_same_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = agent("run", "--config", str(config), "--http-port", "0")
    assert done.returncode == 2
    assert "another agent runs with state_dir" in done.stderr
