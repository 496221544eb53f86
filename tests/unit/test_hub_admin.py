"""Telling a hub of devices: nobody is told that a device is out while its hub still lets it in."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_inference import cluster, hub_admin
from cloud_inference.hub import TRUST_FOLDER, LocalHub
from cloud_inference.trust import Trust
from eyeline.errors import BusError

BOX = hub_admin.Device.parse("acme/yard/box1")
# Nothing listens there.
NOWHERE = "nats://127.0.0.1:9"


async def test_a_hub_of_this_machine_hears_of_it_when_it_starts(tmp_path: Path) -> None:
    LocalHub({"acme": [("yard", "box1")]}, tmp_path).prepare()
    assert await hub_admin.revoke(tmp_path, BOX) == (1, False)


async def test_a_hub_in_a_cluster_has_to_be_told(tmp_path: Path) -> None:
    cluster.secrets(tmp_path, ["acme"], hub=NOWHERE)
    Trust(tmp_path / TRUST_FOLDER).enroll("acme", "yard", "box1")
    for hub in (None, NOWHERE):
        with pytest.raises(BusError, match=r"stays in until the hub is told: .*--hub.* cannot be reached"):
            await hub_admin.revoke(tmp_path, BOX, hub=hub)
