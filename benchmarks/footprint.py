"""What an agent costs its device: memory, processor and disk, with one 720p camera and the bundled model.

    python -m benchmarks.footprint [--source pattern:1280x720@10] [--seconds 30] [--install]

Runs the agent as a process against a hub of its own. --install also measures what `pip install eyeline[edge]`
puts into a fresh environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from eyeline import bus
from eyeline.errors import EyelineError, ServerFailed
from eyeline.process import Child

_ROOT = Path(__file__).parents[1]
_WARM_UP_S = 5.0


async def measure(source: str, seconds: float, state: Path) -> dict[str, Any]:
    """Memory (bytes) and processor (cores) of the agent and its broker, sampled every half second."""
    hub = LocalHub({"default": [("local", "edge")]}, state)
    await hub.start()
    try:
        tenant = hub.tenant("default")
        cloud = await bus.connect(hub.url, name="footprint", creds_file=tenant.cloud)
        await streams.ensure(cloud.jetstream(), StreamSettings())
        device = tenant.device("local", "edge")
        config = state / "agent.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "site": "local",
                    "device": "edge",
                    "state_dir": str(state / "agent"),
                    "hub": {"url": hub.url, "creds_file": str(device.creds)},
                    "http": {"port": 0},
                    "cameras": [{"name": "camera", "source": source}],
                }
            )
        )
        agent = Child(
            [sys.executable, "-m", "edge_agent", "run", "--config", str(config)],
            name="edge agent",
            log=state / "agent.log",
        )
        process = psutil.Process(await agent.start())
        await asyncio.sleep(_WARM_UP_S)
        began, cpu = time.monotonic(), _cpu(process)
        resident = []
        while time.monotonic() - began < seconds:
            if agent.returncode is not None:
                raise ServerFailed(f"the edge agent ended: {agent.last_words(1)}")
            resident.append(_resident(process))
            await asyncio.sleep(0.5)
        used = (_cpu(process) - cpu) / (time.monotonic() - began)
        await agent.stop()
        await cloud.close()
    finally:
        await hub.stop()
    return {
        "source": source,
        "resident_bytes_max": max(sum(sample.values()) for sample in resident),
        "resident_bytes_by_process": resident[-1],
        "cores": round(used, 3),
    }


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _resident(process: psutil.Process) -> dict[str, int]:
    return {member.name(): member.memory_info().rss for member in _family(process)}


def _cpu(process: psutil.Process) -> float:
    return sum(sum(member.cpu_times()[:2]) for member in _family(process))


def installed_bytes(folder: Path) -> int:
    """Size of a fresh environment with the `edge` extra, without pip itself."""
    python = folder / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "-c",
            str(_ROOT / ".ci/constraints.txt"),
            f"{_ROOT}[edge]",
        ],
        [str(python), "-m", "pip", "uninstall", "-q", "-y", "pip", "setuptools"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; `--out` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--source", default="pattern:1280x720@10")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--install", action="store_true", help="also measure a fresh installation")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="eyeline-footprint-") as folder:
            figures = asyncio.run(measure(options.source, options.seconds, Path(folder)))
            if options.install:
                figures["installed_bytes"] = installed_bytes(Path(folder) / "venv")
    except EyelineError as problem:
        print(f"footprint: {problem}", file=sys.stderr)
        return 2
    table = Table("figure", "value", title=f"edge agent, {figures['source']}")
    table.add_row("resident memory, broker included", f"{figures['resident_bytes_max'] / 1e6:.0f} MB")
    for name, size in figures["resident_bytes_by_process"].items():
        table.add_row(f"  {name}", f"{size / 1e6:.0f} MB")
    table.add_row("processor", f"{figures['cores']:.2f} cores")
    if "installed_bytes" in figures:
        table.add_row("installed", f"{figures['installed_bytes'] / 1e6:.0f} MB")
    Console().print(table)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
