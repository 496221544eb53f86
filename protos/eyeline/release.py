"""The version of Eyeline that runs here."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Such as "0.1.0"; "unknown" when it runs from sources that were not installed."""
    try:
        return metadata.version("eyeline")
    except metadata.PackageNotFoundError:
        return "unknown"
