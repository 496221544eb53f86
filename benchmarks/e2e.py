"""How much serving adds, and how much it gets out of Triton.

    python -m benchmarks.e2e [--seconds 20] [--frames 400] [--repeats 3] [--out build/e2e]

Overhead: one camera at its own pace (open loop), every frame with pixels; from publishing at the edge to the
result at a gRPC subscriber, less the time of the request to Triton, hop by hop; beside it a bare client that
asks the same Triton about the same pictures. Throughput: a hub filled before the worker may start, Triton
pinned to one core; against a bare client with many requests in flight, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import e2e_overhead, e2e_throughput, machine
from eyeline.errors import EyelineError

CLIP = Path(__file__).with_name("clips") / "street.mp4"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write `e2e.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--video", type=Path, default=CLIP, help="any video file (default: the street clip)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of one turn of the overhead (default: 20)"
    )
    parser.add_argument(
        "--frames", type=int, default=400, help="of one turn of the throughput (default: 400)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of either side (default: 3)")
    parser.add_argument("--only", choices=("overhead", "throughput"), help="measure just this")
    parser.add_argument("--out", type=Path, default=Path("build/e2e"))
    options = parser.parse_args(argv)
    if options.seconds < 5 or options.frames < 40 or options.repeats < 1:
        parser.error("--seconds must be at least 5, --frames at least 40, --repeats at least 1")
    out: Path = options.out
    state = out / "state"
    shutil.rmtree(state, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    figures: dict[str, Any] = {"machine": machine.describe(), "clip": options.video.name}
    try:
        if options.only != "throughput":
            figures["overhead"] = asyncio.run(
                e2e_overhead.measure(state / "overhead", options.video, options.seconds, options.repeats)
            )
            console.print(_overhead_table(figures["overhead"]))
        if options.only != "overhead":
            figures["throughput"] = asyncio.run(
                e2e_throughput.measure(state / "throughput", options.video, options.frames, options.repeats)
            )
            console.print(_throughput_table(figures["throughput"]))
    except EyelineError as problem:
        print(f"e2e: {problem}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(state, ignore_errors=True)
    (out / "e2e.json").write_text(json.dumps(figures, indent=2) + "\n")
    console.print(str(out / "e2e.json"))
    return 0


def _overhead_table(found: dict[str, Any]) -> Table:
    counts = ", ".join(f"{count} {name}" for name, count in sorted(found["provenance"].items()))
    table = Table("", "p50", "p95", "p99", title=f"milliseconds, one camera: {counts}")
    rows = {
        **found["hops_ms"],
        "serving overhead (published to received, less the request)": found["overhead_ms"],
        "captured -> received": found["captured_to_received_ms"],
        "bare client (B4): due -> answered": found["direct_ms"],
        "bare client (B4): request alone": found["direct_request_ms"],
    }
    for name, spread in rows.items():
        table.add_row(name, *(f"{spread[key]:.2f}" for key in ("p50", "p95", "p99")))
    table.caption = (
        f"p50 of the overhead by turn {found['overhead_p50_ms_by_run']}; a request takes "
        f"{found['request_mean_ms']} ms on average, of which Triton counts {found['triton_own_mean_ms']}; "
        f"cores taken by others: {found['cores_taken_by_others']}"
    )
    return table


def _throughput_table(found: dict[str, Any]) -> Table:
    columns = ("answers a second", "by turn", "undisturbed", "mean batch", "Triton ready", "its CPU ms")
    table = Table("", *columns, title=f"{found['frames']} frames a turn, Triton on one core")
    for name, side in found["sides"].items():
        table.add_row(
            name,
            f"{side['per_s']:.2f}",
            str(side["per_s_by_turn"]),
            f"{side['undisturbed_per_s']:.2f}",
            f"{side['mean_batch']:.2f}",
            f"{side['triton_ready_share']:.1%}",
            f"{side['triton_cpu_ms_per_inference']:.1f}",
        )
    ratio, alone = found["ratio"], found["ratio_undisturbed"]
    table.caption = (
        f"{ratio['of_medians']:.1%} of {found['rival']} (by turn {ratio['by_turn']}), undisturbed "
        f"{alone['of_medians']:.1%} {alone['by_turn']}; CPU time a frame: "
        + ", ".join(f"{name} {ms} ms" for name, ms in found["cpu_ms_per_frame"].items())
        + f"; cores taken by others: {found['cores_taken_by_others']}"
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
