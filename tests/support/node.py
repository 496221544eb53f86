"""The Node client of `tests/node`, with its packages in a cache beside the repository's files."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support.debian import need

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "node"
CACHE = ROOT / ".cache" / "node"


@functools.cache
def environment() -> dict[str, str]:
    """Where the packages are; installs what is missing. Raises RuntimeError that says what to do."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        need("nodejs", "npm")
    wanted = (SOURCE / "package.json").read_text(encoding="utf-8")
    # Written last, so that an install that broke off is done again.
    stamp = CACHE / "installed.json"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "package.json").write_text(wanted, encoding="utf-8")
        done = subprocess.run(
            ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=CACHE,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"npm install in {CACHE} failed: {done.stderr.strip()[-500:]}")
        stamp.write_text(wanted, encoding="utf-8")
    return {**os.environ, "NODE_PATH": str(CACHE / "node_modules")}


class NodeClient:
    """A run of the Node client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, address: str, *arguments: str, token: str = "") -> NodeClient:
        """Start `node client.js` with only the .proto files of the contract."""
        installed = await asyncio.to_thread(environment)
        process = await asyncio.create_subprocess_exec(
            "node",
            str(SOURCE / "client.js"),
            str(ROOT / "protos"),
            address,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**installed, "EYELINE_TOKEN": token},
        )
        return cls(process)

    async def line(self) -> Any:
        """The next object that it prints."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            return json.loads(await self._process.stdout.readline())

    async def finish(self) -> tuple[int | None, list[Any]]:
        """Its exit status, and what else it printed; it must not complain."""
        async with asyncio.timeout(30):
            out, err = await self._process.communicate()
        assert err == b""
        return self._process.returncode, [json.loads(text) for text in out.splitlines()]
