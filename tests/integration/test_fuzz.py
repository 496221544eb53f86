"""Fuzzing for some minutes: atheris follows the coverage of our own code, from the committed seeds on."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.support.programs import ROOT

# The same way each time, so that a change makes the difference; `python -m tests.fuzz TARGET` wanders.
SECONDS, SEED = 12, 1


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
async def test_nothing_new_is_found(target: str, tmp_path: Path) -> None:
    log = tmp_path / "fuzz.log"
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.fuzz",
            target,
            f"--seconds={SECONDS}",
            f"--seed={SEED}",
            f"--corpus={tmp_path / 'corpus'}",
            cwd=ROOT,
            env=dict(os.environ),
            stdout=said,
            stderr=said,
        )
        try:
            status = await asyncio.wait_for(process.wait(), 20 * SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    words = log.read_text(errors="replace")
    assert status == 0, words[-6000:]
    assert "Done " in words
