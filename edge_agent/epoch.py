"""The boot epoch: a counter kept on the device's disk, and a random id.

Wall clocks jump, so runs of an agent are ordered by the counter; the random id tells two devices that share a
disk image apart. The counter stands in two files, so that one torn or damaged file does not set it back.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

import structlog

from eyeline.envelope import RANDOM_ID_BYTES
from eyeline.errors import ConfigError
from eyeline.values import Epoch

_log = structlog.get_logger()

_NAMES: Final = ("epoch.json", "epoch.backup.json")
_LARGEST: Final = 2**62


def next_epoch(state_dir: Path, *, at_least: int = 0) -> Epoch:
    """Start a new epoch and persist it before returning.

    at_least: the highest counter seen elsewhere (in the spool, say); the new one is higher. Raises
    `ConfigError` when the folder cannot be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        counters = {name: _read(state_dir / name) for name in _NAMES}
        known = [counter for counter in counters.values() if counter is not None]
        damaged = [
            name for name, counter in counters.items() if counter is None and (state_dir / name).exists()
        ]
        epoch = Epoch(max([0, at_least, *known]) + 1, secrets.token_bytes(RANDOM_ID_BYTES))
        if damaged:
            _log.warning("epoch_file_damaged", files=damaged, recovered_counter=epoch.counter)
        for name in _NAMES:
            write_atomically(state_dir / name, {"counter": epoch.counter})
    except OSError as problem:
        raise ConfigError(
            f"state_dir {state_dir} cannot be written ({problem.strerror}): give the agent a folder it owns"
        ) from None
    return epoch


def write_atomically(path: Path, value: Any) -> None:
    """Write JSON so that a power cut leaves the old or the new file, never a mixture; raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path) -> Any:
    """The file's value, None when it is missing or damaged; raises OSError when it cannot be read."""
    try:
        return json.loads(path.read_bytes()[: 1 << 20])
    except FileNotFoundError:
        return None
    except ValueError:
        return None


def _read(path: Path) -> int | None:
    value = read_json(path)
    counter = value.get("counter") if isinstance(value, dict) else None
    return counter if isinstance(counter, int) and 0 < counter < _LARGEST else None
