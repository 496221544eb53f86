"""The overlay `dev` as processes, with the Secrets that an operator would make."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from cloud_inference import access, cluster, hub_admin
from cloud_inference.local import PRIVATE_KEY
from tests.support import pods
from tests.support.manifests import overlay


def secrets(state: Path) -> dict[str, dict[str, str]]:
    """By name, as `cloud-inference secrets` and `enroll` make them."""
    cluster.secrets(state, ["default"], hub="nats://eyeline-nats:4222")
    device, _ = asyncio.run(
        hub_admin.enroll(
            state, hub_admin.Device("default", "dev", "edge"), hub="nats://eyeline-nats.eyeline:4222"
        )
    )
    made = cluster.secrets(state, ["default"], hub="nats://eyeline-nats:4222")  # with the device's account
    files = {it["metadata"]["name"]: dict(it["stringData"]) for it in made}
    return files | {"eyeline-edge-creds": {"device.creds": device.read_text(encoding="utf-8")}}


def token(state: Path) -> str:
    """For the API."""
    return access.mint(
        state / PRIVATE_KEY, tenant="default", cameras=["*/*"], methods=["read", "detect"], expires_s=3600
    )


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[pods.Cluster, str]]:
    """The cluster, ready, and a token for its API."""
    state = folder / "state"
    with pods.running(overlay("dev"), folder / "cluster", secrets(state)) as started:
        yield started, token(state)
