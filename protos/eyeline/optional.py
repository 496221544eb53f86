"""Libraries that only some commands need: one clear line when they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from eyeline.errors import ConfigError


def needed(module: str, extra: str) -> Any:
    """The imported module; raises `ConfigError` with the line that installs it."""
    try:
        return import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise ConfigError(f"this needs {name}: pip install 'eyeline[{extra}]'") from None
