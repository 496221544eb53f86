"""One program at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from eyeline.errors import ConfigError


@contextlib.contextmanager
def held(folder: Path, what: str, mend: str) -> Iterator[None]:
    """Have a folder to ourselves until the context ends; raises `ConfigError` when another program has it.

    what: the kind of program, mend: what to do about it, both for the message. Nothing is written; the kernel
    lets go when we end in whatever way.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as problem:
        raise ConfigError(f"{folder} cannot be used: {problem.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another {what} runs in {folder}: {mend}") from None
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a program holds this file locked."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
