"""The hand-over from a camera's reading thread: bounded, losses told, and how far behind its reader is."""

from __future__ import annotations

import pytest

from edge_agent.frame import Frame
from edge_agent.handoff import CaptureTime, Dropped, Handoff
from tests.support.scenes import as_luma, background, picture

SHOWN = picture(as_luma(background(64, 48)))


def frame(sequence: int) -> Frame:
    return Frame(sequence, sequence, sequence, SHOWN)


def test_a_live_source_loses_its_oldest_frames_and_tells_how_many_wait() -> None:
    handoff = Handoff(3, lossy=True)
    for sequence in range(1, 6):
        assert handoff.put(frame(sequence))
    assert handoff.get(0) == Dropped(1, 2, CaptureTime(1, 1), CaptureTime(2, 2), "overload")
    left = [handoff.get(0) for _ in range(3)]
    assert [(it.sequence, it.behind) for it in left if isinstance(it, Frame)] == [(3, 2), (4, 1), (5, 0)]
    assert handoff.get(0) is None


def test_a_file_waits_for_its_reader_so_nothing_is_behind() -> None:
    handoff = Handoff(3, lossy=False)
    for sequence in range(1, 4):
        handoff.put(frame(sequence))
    handoff.close()
    assert not handoff.put(frame(4))
    left = [handoff.get(0) for _ in range(3)]
    assert [(it.sequence, it.behind) for it in left if isinstance(it, Frame)] == [(1, 0), (2, 0), (3, 0)]
    assert handoff.is_drained


@pytest.mark.parametrize("lossy", [True, False])
def test_what_waits_when_it_closes_is_still_read(lossy: bool) -> None:
    handoff = Handoff(2, lossy=lossy)
    handoff.put(frame(1))
    handoff.close()
    assert isinstance(handoff.get(0), Frame)
    assert handoff.get(0) is None
