"""Debian packages that tests need: installed as root, asked for otherwise."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

RTSP_PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0",
    "gstreamer1.0-plugins-base",
    "gstreamer1.0-plugins-good",
    "gstreamer1.0-plugins-ugly",
    "python3-gi",
)


@functools.cache
def need(*packages: str) -> None:
    """Make sure that these packages are installed; raises RuntimeError with the line to run."""
    script = Path(__file__).parents[2] / ".ci" / "need"
    done = subprocess.run([script, *packages], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
