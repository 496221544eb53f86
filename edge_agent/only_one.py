"""One agent for each state folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from eyeline.errors import ConfigError


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the state folder; raises `ConfigError` when another agent has it, or it cannot be written."""
    lock: IO[str] | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w", encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if lock is not None:
            lock.close()
        raise ConfigError(
            f"another agent runs with state_dir {folder}: stop it, or give this one a folder of its own"
        ) from None
    except OSError as problem:
        raise ConfigError(
            f"state_dir {folder} cannot be written ({problem.strerror}): give the agent a folder it owns"
        ) from None
    try:
        yield
    finally:
        lock.close()
