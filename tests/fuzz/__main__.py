"""`python -m tests.fuzz TARGET --seconds 60`: coverage-guided fuzzing with atheris (libFuzzer).

It follows the coverage of our own Python code; the native libraries below it are not instrumented. New inputs
that reach new code go to `--corpus`; one that shows a bug is written beside it, and the status is not 0.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

SEEDS = Path(__file__).with_name("seeds")


def main() -> None:
    """Fuzz one target until the time is over or it fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0 takes another way each time.")
    parser.add_argument(
        "--corpus", type=Path, help="Folder that keeps what was found; the seeds go there too."
    )
    given = parser.parse_args()
    with atheris.instrument_imports(include=["eyeline", "cloud_inference", "edge_agent"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415  # instrumented while it is imported
    target = TARGETS[given.target]
    corpus = given.corpus or Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in (SEEDS / given.target).iterdir():
        shutil.copy(seed, corpus / seed.name)
    options = [
        f"-max_total_time={given.seconds}",
        f"-seed={given.seed}",
        "-max_len=65536",
        "-timeout=20",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
