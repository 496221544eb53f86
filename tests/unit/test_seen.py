"""What a killed run had captured and not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from edge_agent.batch import CameraIdentity
from edge_agent.frame import Frame
from edge_agent.seen import NOT_KEPT, Progress, Seen, boot_id, forget, left_behind, report
from eyeline.envelope import check_envelope
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

EPOCH = Epoch(7, bytes(range(8)))
SECOND = 1_000_000_000


def shown(seen: Seen, last: int) -> None:
    for sequence in range(1, last + 1):
        seen.captured(Frame(sequence, sequence * SECOND, 5_000 + sequence, cast("Any", None)))


def killed(folder: Path, *, captured: int, kept: int, at_hub: int) -> Progress:
    """A run that is not closed, as its successor finds it."""
    seen = Seen(folder, "gate", EPOCH)
    shown(seen, captured)
    seen.kept(kept, kept * SECOND, pb.ClockEstimate(offset_ns=-3, uncertainty_ns=9))
    seen.at_hub(at_hub + 1)
    return left_behind(folder)["gate"]


def test_a_killed_run_is_found_as_it_stood(tmp_path: Path) -> None:
    progress = killed(tmp_path, captured=12, kept=9, at_hub=4)
    assert (progress.epoch, progress.seen, progress.kept, progress.at_hub) == (EPOCH, 12, 9, 4)
    assert (progress.offset_ns, progress.uncertainty_ns) == (-3, 9)
    forget(tmp_path, "gate")
    assert left_behind(tmp_path) == {}


@pytest.mark.parametrize(
    ("spooled", "durable", "same_boot", "gap"),
    [
        (9, True, True, (10, 12)),
        # Everything kept is at the hub: the spool has none of it.
        (0, True, True, (10, 12)),
        # Stored just before the kill, and not noted any more.
        (11, True, True, (12, 12)),
        (12, True, True, None),
        # A power cut took the end of the spool; or all that was not at the hub yet.
        (8, True, False, (9, 12)),
        (0, True, False, (5, 12)),
        # A spool in memory is gone with the broker.
        (0, False, True, (5, 12)),
    ],
)
def test_what_nobody_has(
    tmp_path: Path, spooled: int, durable: bool, same_boot: bool, gap: tuple[int, int] | None
) -> None:
    progress = killed(tmp_path, captured=12, kept=9, at_hub=4)
    boot = boot_id() if same_boot else b"another"
    assert progress.gap(spooled, durable=durable, boot_id=boot) == gap


def test_the_report_names_the_frames_and_when_they_were(tmp_path: Path) -> None:
    progress = killed(tmp_path, captured=12, kept=9, at_hub=4)
    identity = CameraIdentity("acme", "yard", "box1", "gate", progress.epoch)
    envelope = report(identity, progress, 10, 12)
    check_envelope(envelope)
    item = envelope.items[0].range
    assert (item.first_sequence, item.last_sequence, item.reason) == (10, 12, NOT_KEPT)
    assert (item.first_capture.monotonic_ns, item.last_capture.monotonic_ns) == (10 * SECOND, 12 * SECOND)
    assert (envelope.published.monotonic_ns, envelope.published.wall_ns) == (12 * SECOND, 5_012)
    assert report(identity, progress, 3, 12).items[0].range.first_capture.monotonic_ns == 3 * SECOND


def test_a_run_that_kept_everything_leaves_nothing(tmp_path: Path) -> None:
    seen = Seen(tmp_path, "gate", EPOCH)
    shown(seen, 3)
    seen.kept(3, 3 * SECOND, pb.ClockEstimate())
    seen.close()
    assert left_behind(tmp_path) == {}


def test_a_torn_record_is_said_and_ignored(tmp_path: Path) -> None:
    killed(tmp_path, captured=2, kept=1, at_hub=0)
    path = tmp_path / "seen" / "gate"
    path.write_bytes(path.read_bytes()[:-7] + b"torn..!")
    assert left_behind(tmp_path) == {}
