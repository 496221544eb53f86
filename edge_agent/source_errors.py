"""What went wrong with a source, in one line for a person, from what FFmpeg reports."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import av

from edge_agent.address import SourceKind
from edge_agent.errors import SourceError, SourceInvalid, SourceUnavailable


def explain(kind: SourceKind, shown: str, problem: Exception, timeout_s: float) -> SourceError:
    """The error to raise in place of FFmpeg's, whose own text holds the address with its password.

    shown: the address without credentials; timeout_s: how long was waited, for a message about it.
    """
    if isinstance(problem, (av.error.ExitError, av.error.TimeoutError)):
        return SourceUnavailable(f"{shown}: nothing came within {timeout_s:g} s")
    if kind is SourceKind.RTSP:
        return _rtsp(shown, problem)
    if kind is SourceKind.V4L2:
        return _v4l2(shown, problem)
    if isinstance(problem, (av.error.InvalidDataError, av.error.EOFError)):
        return SourceInvalid(f"{shown}: this is not a video file, or it is damaged")
    return SourceInvalid(f"{shown}: cannot be read as video ({_reason(problem)})")


def _rtsp(shown: str, problem: Exception) -> SourceError:
    if isinstance(problem, (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)):
        return SourceInvalid(
            f"{shown}: the camera refuses the user or the password; set `user` and `password` of this camera"
        )
    if isinstance(problem, av.error.HTTPNotFoundError):
        return SourceUnavailable(f"{shown}: the camera has no stream of this name; check the path")
    if isinstance(problem, av.error.ConnectionRefusedError):
        return SourceUnavailable(f"{shown}: connection refused; is the camera on, and the port right?")
    if isinstance(problem, (av.error.InvalidDataError, av.error.EOFError)):
        return SourceUnavailable(f"{shown}: what answers there does not send RTSP video")
    if _code(problem) == errno.EIO:
        return SourceUnavailable(f"{shown}: cannot be reached; check the host name and the network")
    return SourceUnavailable(f"{shown}: cannot be read ({_reason(problem)})")


def _v4l2(shown: str, problem: Exception) -> SourceError:
    code = _code(problem)
    if code in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        return SourceUnavailable(f"{shown}: no such camera; is it plugged in? Cameras here: {there}")
    if code == errno.EBUSY:
        return SourceUnavailable(f"{shown}: the camera is in use by another program")
    if code in {errno.EACCES, errno.EPERM}:
        return SourceInvalid(f"{shown}: permission denied; add the agent's user to the group `video`")
    if code in {errno.ENOTTY, errno.EINVAL}:
        return SourceInvalid(f"{shown}: this device is not a camera that captures video")
    return SourceUnavailable(f"{shown}: cannot be read ({_reason(problem)})")


def _code(problem: Exception) -> int | None:
    code = getattr(problem, "errno", None)
    return code if isinstance(code, int) else None


def _reason(problem: Exception) -> str:
    """A few words without any address in them."""
    code = _code(problem)
    if code is not None and code in errno.errorcode:
        return os.strerror(code)
    text = getattr(problem, "strerror", None)
    return text if isinstance(text, str) else type(problem).__name__
