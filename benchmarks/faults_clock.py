"""The edge agent with a wall clock of ours: `python -m benchmarks.faults_clock FILE run --config ...`.

FILE holds the seconds by which its clock is wrong, as a native double; the running agent follows a change of
it at once. The monotonic clock is left as it is, as a set clock leaves it.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

_FORMAT = "=d"


def write(path: Path, seconds: float) -> None:
    """Set the error of the clock that follows `path`."""
    if not path.exists():
        path.write_bytes(struct.pack(_FORMAT, 0.0))
    with path.open("r+b") as file:
        file.write(struct.pack(_FORMAT, seconds))


def _follow(path: Path) -> None:
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    real, real_ns = time.time, time.time_ns

    def error_s() -> float:
        return float(struct.unpack_from(_FORMAT, shared)[0])

    time.time = lambda: real() + error_s()
    time.time_ns = lambda: real_ns() + round(error_s() * 1e9)


if __name__ == "__main__":
    _follow(Path(sys.argv[1]))
    del sys.argv[1]
    from edge_agent.cli import main

    sys.exit(main())
