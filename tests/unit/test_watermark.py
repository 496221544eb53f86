"""The checkpoint never says more than what is answered, though one lane overtakes the other."""

from __future__ import annotations

import random

from cloud_inference.watermark import Watermark


def test_without_a_backlog_it_follows_the_live_reader() -> None:
    mark = Watermark(10)
    mark.took(12, late=False)
    mark.took(15, late=False)
    assert mark.answered_to == 10
    mark.answered(12, late=False)
    assert mark.answered_to == 12
    mark.answered(15, late=False)
    assert (mark.answered_to, mark.overtaken) == (15, False)


def test_what_was_put_off_holds_it_back_until_it_is_answered() -> None:
    mark = Watermark(0)
    mark.took(1, late=False)
    mark.answered(1, late=False)
    for sequence in (2, 3):
        mark.put_off(sequence)
    mark.took(4, late=False)
    mark.answered(4, late=False)
    assert (mark.answered_to, mark.late_from, mark.late_behind) == (1, 2, True)
    mark.took(2, late=True)
    mark.took(3, late=True)
    assert (mark.answered_to, mark.late_behind, mark.overtaken) == (1, False, True)
    mark.answered(2, late=True)
    assert mark.answered_to == 2
    mark.answered(3, late=True)
    assert (mark.answered_to, mark.overtaken) == (4, False)


def test_a_message_in_two_parts_is_answered_when_both_are() -> None:
    for first_late in (True, False):
        mark = Watermark(0)
        mark.put_off(1)
        mark.put_off(2)
        mark.took(2, late=False)
        mark.took(1, late=True)
        mark.took(2, late=True)
        mark.answered(1, late=True)
        assert mark.answered_to < 2
        mark.answered(2, late=first_late)
        assert mark.answered_to < 2
        mark.answered(2, late=not first_late)
        assert (mark.answered_to, mark.overtaken) == (2, False)


def test_it_never_passes_an_unanswered_message() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        lanes = {sequence: chance.random() < 0.5 for sequence in range(1, 41)}
        open_, mark = set(lanes), Watermark(0)
        live_at, queues = 1, {False: [], True: []}  # type: ignore[var-annotated]
        while open_:
            move = chance.random()
            if move < 0.4 and live_at <= 40:
                if lanes[live_at]:
                    mark.put_off(live_at)
                else:
                    mark.took(live_at, late=False)
                    queues[False].append(live_at)
                live_at += 1
            elif move < 0.7 and (mark.late_behind or (mark.overtaken and mark.late_from <= 40)):
                # It reads in batches, and so gets ahead of the live reader.
                at = mark.late_from
                if lanes[at]:
                    mark.took(at, late=True)
                    queues[True].append(at)
                else:
                    mark.passed(at)
            elif queues[late := chance.random() < 0.5]:
                done = queues[late].pop(0)
                mark.answered(done, late=late)
                open_.discard(done)
            assert all(sequence > mark.answered_to for sequence in open_), seed
        while live_at <= 40:
            mark.put_off(live_at)
            live_at += 1
        assert not mark.overtaken
        assert mark.answered_to >= max(sequence for sequence in lanes if not lanes[sequence])
