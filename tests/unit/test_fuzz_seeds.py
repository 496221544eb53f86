"""Every seed, and what fuzzing found before, once more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

SEEDS = Path(__file__).parents[1] / "fuzz" / "seeds"


@pytest.mark.parametrize(
    "seed", sorted(path for path in SEEDS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_seed(seed: Path) -> None:
    TARGETS[seed.parent.name](seed.read_bytes())


def test_every_target_has_seeds() -> None:
    assert {path.name for path in SEEDS.iterdir()} == set(TARGETS)
