"""Addresses of sources: what kind they are, their credentials, and how they are shown to people."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from edge_agent.errors import SourceInvalid

_KINDS = "an rtsp:// address, /dev/videoN, a video file, a folder of images or pattern:WxH@FPS"


class SourceKind(Enum):
    """What stands behind an address."""

    RTSP = "rtsp"
    V4L2 = "v4l2"
    FILE = "file"
    FOLDER = "folder"
    PATTERN = "pattern"

    @property
    def is_live(self) -> bool:
        """Whether the source itself gives the pace."""
        return self in {SourceKind.RTSP, SourceKind.V4L2}


def kind_of(source: str) -> SourceKind:
    """What an address stands for; raises `SourceInvalid` for a scheme that nothing here can open."""
    if source.startswith("pattern:"):
        return SourceKind.PATTERN
    if "://" in source:
        scheme = source.split("://", 1)[0].lower()
        if scheme in {"rtsp", "rtsps"}:
            return SourceKind.RTSP
        raise SourceInvalid(f"{without_credentials(source)}: {scheme}:// cannot be opened; give {_KINDS}")
    if source.startswith("/dev/"):
        return SourceKind.V4L2
    return SourceKind.FOLDER if Path(source).is_dir() else SourceKind.FILE


def without_credentials(source: str) -> str:
    """The address as it may be shown: no user, no password, no query (cameras take passwords there too)."""
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
    except ValueError:
        return source.split("://", 1)[0] + "://…"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def with_credentials(source: str, user: str | None, password: str | None) -> str:
    """The address with `user` and `password` in it, quoted; given ones replace those in it.

    Raises `SourceInvalid` for an address without a host or with a port that is not one.
    """
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        shown = without_credentials(source)
        raise SourceInvalid(f"{shown} is not an address: give rtsp://HOST[:PORT]/PATH")
    account, at, place = parts.netloc.rpartition("@")
    old_user, colon, old_password = account.partition(":")
    name = user if user is not None else (unquote(old_user) if at else None)
    secret = password if password is not None else (unquote(old_password) if colon else None)
    if name is None and secret is None:
        return source
    login = quote(name or "", safe="") + ("" if secret is None else ":" + quote(secret, safe=""))
    return urlunsplit((parts.scheme, f"{login}@{place}", parts.path, parts.query, ""))
