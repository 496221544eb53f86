"""The boot epoch survives damage, and never goes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.epoch import next_epoch
from eyeline.errors import ConfigError


def test_counts_up_with_new_random_ids(tmp_path: Path) -> None:
    epochs = [next_epoch(tmp_path / "state") for _ in range(3)]
    assert [epoch.counter for epoch in epochs] == [1, 2, 3]
    assert len({epoch.random_id for epoch in epochs}) == 3
    assert all(len(epoch.random_id) == 8 for epoch in epochs)
    assert not list((tmp_path / "state").glob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b'{"counter": "7"}', b'{"counter": -1}', b"[]"])
@pytest.mark.parametrize("name", ["epoch.json", "epoch.backup.json"])
def test_a_damaged_file_does_not_set_it_back(tmp_path: Path, name: str, damage: bytes) -> None:
    for _ in range(4):
        next_epoch(tmp_path)
    (tmp_path / name).write_bytes(damage)
    assert next_epoch(tmp_path).counter == 5
    assert json.loads((tmp_path / name).read_text()) == {"counter": 5}


def test_both_damaged_goes_on_from_what_the_spool_holds(tmp_path: Path) -> None:
    next_epoch(tmp_path)
    (tmp_path / "epoch.json").write_bytes(b"?")
    (tmp_path / "epoch.backup.json").unlink()
    assert next_epoch(tmp_path, at_least=41).counter == 42


def test_an_old_file_of_a_torn_write_loses(tmp_path: Path) -> None:
    for _ in range(3):
        next_epoch(tmp_path)
    (tmp_path / "epoch.backup.json").write_text('{"counter": 2}')
    assert next_epoch(tmp_path).counter == 4


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"state_dir .*file/state cannot be written"):
        next_epoch(tmp_path / "file" / "state")
