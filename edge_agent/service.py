"""`edge-agent service install`: a hardened systemd unit that keeps the agent running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from eyeline.errors import ConfigError

NAME = "eyeline-edge-agent.service"
UNIT = Path("/etc/systemd/system") / NAME
ENVIRONMENT = Path("/etc/eyeline/edge-agent.env")


def unit_text(
    config: Path, state_dir: Path, *, user: str | None = None, executable: str = sys.executable
) -> str:
    """The unit. user: None lets systemd make one that exists only while the agent runs."""
    account = f"User={user}" if user is not None else "DynamicUser=yes"
    # systemd makes and owns folders below /var/lib; others have to be there.
    below = state_dir.is_relative_to("/var/lib")
    state = (
        f"StateDirectory={state_dir.relative_to('/var/lib')}" if below else f"ReadWritePaths={_q(state_dir)}"
    )
    return f"""[Unit]
Description=Eyeline edge agent
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=exec
# Runs the newest agent that works, and falls back by itself.
ExecStart={_q(executable)} -m edge_agent.launch --state-dir {_q(state_dir)} -- run --config {_q(config)}
# Passwords and other settings, as EYELINE_EDGE__... lines; readable by root only.
EnvironmentFile=-{ENVIRONMENT}
{account}
{state}
SupplementaryGroups=video render
Restart=always
RestartSec=2
TimeoutStopSec=60
KillMode=mixed
MemoryMax=1G
TasksMax=256
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallFilter=@system-service
SystemCallArchitectures=native
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
"""


def install(text: str) -> None:
    """Write the unit, enable and start it; raises `ConfigError` with one line."""
    if os.geteuid() != 0:
        raise ConfigError(
            "service install needs root: run it with sudo, or use --print and install the unit yourself"
        )
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        raise ConfigError(
            "no systemd runs here: use --print to see the unit, and let your init system run `edge-agent run`"
        )
    try:
        UNIT.write_text(text, encoding="utf-8")
        ENVIRONMENT.parent.mkdir(parents=True, exist_ok=True)
        if not ENVIRONMENT.exists():
            descriptor = os.open(ENVIRONMENT, os.O_WRONLY | os.O_CREAT, 0o600)
            os.close(descriptor)
    except OSError as problem:
        raise ConfigError(f"{problem.filename} cannot be written: {problem.strerror}") from None
    for command in (["daemon-reload"], ["enable", "--now", NAME]):
        done = subprocess.run(["systemctl", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"systemctl {' '.join(command)} failed: {done.stderr.strip().splitlines()[:1]}")


def _q(value: str | Path) -> str:
    """A word of a unit's command line; systemd expands % and $ otherwise."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(letter in text for letter in " \"'\\;") else text
