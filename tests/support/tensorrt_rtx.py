"""The real builder of TensorRT for RTX, which builds engines on a CPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cloud_inference.engines.tensorrt import HOME_VARIABLE

_ROOT = Path(__file__).parents[2]
HOME = _ROOT / ".cache" / "tensorrt-rtx"


def installed() -> Path:
    """Its folder, installed first where it is missing."""
    subprocess.run([str(_ROOT / ".ci" / "install-tensorrt-rtx")], check=True, timeout=600)
    return HOME


def environ() -> dict[str, str]:
    """What a program needs to find it."""
    return {**os.environ, HOME_VARIABLE: str(installed())}
