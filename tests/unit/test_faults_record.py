"""The fault harness counts from what was shown: every kind of loss, doubling and disorder is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import pytest

from benchmarks.faults_record import NOT_KEPT, Answer, Counted, Recording, Run, count, record

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
SHOWN = Recording(Path("camera.mp4"), 100, 10)
PLAYED = Run(1, ("cam1",), SHOWN, START)


def answers(first: int = 1, last: int = 100, *, counter: int = 1, lane: int = 1) -> list[Answer]:
    """One answer a frame, 50 ms after it was captured."""
    found = []
    for number in range(first, last + 1):
        captured = START + (number - 1) * SECOND // 10
        received = captured + SECOND // 20
        found.append(
            Answer("cam1", counter, number, number, lane, "", captured, captured, received, has_pixels=True)
        )
    return found


def counted(
    heard: list[Answer], stored: list[Answer] | None = None, *, run: Run = PLAYED, policies: str = ""
) -> Counted:
    return count([run], heard, heard if stored is None else stored, frozenset(policies.split()))


def test_all_is_well() -> None:
    found = counted(answers())
    assert (found.captured, found.results, found.p95_ms) == (100, 100, 50.0)
    assert (found.lost, found.duplicates, found.out_of_order, found.dropped_by_policy) == (0, 0, 0, 0)
    assert found.off_schedule_ms == 0


@pytest.mark.parametrize("where", ["heard", "stored", "both", "end"])
def test_a_lost_answer(where: str) -> None:
    whole, less = answers(), [it for it in answers() if it.first != (100 if where == "end" else 40)]
    found = counted(whole if where == "stored" else less, whole if where == "heard" else less)
    assert (found.results, found.lost) == (99, 1)
    assert found.lost_frames == [f"cam1/1/{100 if where == 'end' else 40} unanswered"]


def test_a_camera_that_nobody_answers_is_all_lost() -> None:
    found = counted([])
    assert (found.captured, found.lost) == (100, 100)


def test_an_answer_that_comes_twice() -> None:
    twice = [*answers(1, 60), *answers(58, 100)]
    found = counted(twice, answers())
    assert (found.duplicates, found.lost, found.out_of_order) == (3, 0, 1)
    assert counted(answers(), twice).duplicates == 3


def test_an_answer_for_a_frame_that_never_was() -> None:
    assert counted(answers(1, 101)).duplicates == 1
    assert counted([*answers(), *answers(1, 2, counter=7)]).duplicates == 2


def test_order_counts_within_a_lane() -> None:
    mixed = [*answers(1, 40), *answers(71, 100), *answers(41, 70, lane=2)]
    assert (counted(mixed).out_of_order, counted(mixed).late) == (0, 30)
    swapped = [*answers(1, 40), *answers(71, 100), *answers(41, 70)]
    assert counted(swapped).out_of_order == 1


def test_degraded_is_lost_unless_a_policy_says_so() -> None:
    some = [replace(it, degraded="overload") if it.first > 90 else it for it in answers()]
    found = counted(some)
    assert (found.results, found.lost, found.dropped_by_policy) == (100, 10, 0)
    found = counted(some, policies="overload spool_full")
    assert (found.results, found.lost, found.dropped_by_policy) == (100, 0, 10)


def test_a_killed_agent_may_lose_what_it_had_not_kept_and_no_more() -> None:
    killed = replace(PLAYED, killed_ns=START + 5 * SECOND)
    found = counted(answers(1, 49), run=killed)
    assert (found.captured, found.results, found.dropped_by_policy, found.lost) == (51, 49, 2, 0)
    assert found.reasons == {NOT_KEPT: 2}
    found = counted(answers(1, 20), run=killed)
    assert (found.captured, found.dropped_by_policy, found.lost) == (51, 0, 31)
    hole = [it for it in answers(1, 51) if it.first != 50]
    assert counted(hole, run=killed).lost == 1


def test_capture_times_off_the_schedule_show() -> None:
    late = [
        replace(it, captured_ns=it.captured_ns + 3600 * SECOND) if it.first == 50 else it for it in answers()
    ]
    assert counted(late).off_schedule_ms == 3_600_000


@pytest.mark.parametrize("left_out", [None, 7])
def test_recordings_hold_what_they_say(tmp_path: Path, left_out: int | None) -> None:
    made = record(tmp_path / "camera.mp4", 25, 10, left_out=left_out)
    with av.open(str(made.path)) as container:
        pictures = sum(1 for _ in container.decode(video=0))
    assert made.frames == 25
    assert pictures == (25 if left_out is None else 24)
