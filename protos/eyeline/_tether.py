"""Run as a script: `_tether.py PARENT_PID COMMAND...` becomes COMMAND, which dies when PARENT_PID does.

The kernel's parent-death signal must be asked for by the child itself. Doing so between fork and exec
(`preexec_fn`) is unsafe in a program with threads, and ours have gRPC's; so a tiny program does it and then
becomes the command, keeping the process id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent = int(sys.argv[1])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit(1)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # no shell on purpose
    except OSError as problem:
        raise SystemExit(f"{sys.argv[2]}: {problem.strerror}") from None


if __name__ == "__main__":
    main()
