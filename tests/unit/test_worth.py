"""What asking the edge model costs and saves, in bytes: pictures that grow by what was left out count too."""

from __future__ import annotations

import pytest

from edge_agent.worth import Ledger

SECOND_NS = 1_000_000_000


class Books:
    """A ledger, a frame every half second."""

    def __init__(self) -> None:
        self.ledger, self.now_ns = Ledger(), 10**12

    def sent(self, size: int, *, keyframe: bool = False, compared: int | None = None) -> None:
        self.now_ns += SECOND_NS // 2
        self.ledger.sent(size, self.now_ns, keyframe=keyframe, compared_bytes=compared)

    def answered(self, size: int = 40) -> None:
        self.now_ns += SECOND_NS // 2
        self.ledger.answered(size, self.now_ns)


@pytest.fixture
def books() -> Books:
    made = Books()
    made.sent(8000, keyframe=True)
    for _ in range(50):
        made.sent(200)
    return made


def test_answers_in_place_of_pictures_save_their_difference(books: Books) -> None:
    before = books.ledger.balance_bytes
    for _ in range(10):
        for _ in range(9):
            books.answered(40)
        books.sent(200)
    saved = books.ledger.balance_bytes - before
    assert saved == pytest.approx(90 * (200 - 40 - 24), rel=0.05), (
        "the pictures between are of the usual size"
    )


def test_a_picture_that_grew_by_what_was_left_out_is_held_against_it(books: Books) -> None:
    before = books.ledger.balance_bytes
    for _ in range(10):
        books.answered(40)
        books.sent(400)
    assert books.ledger.balance_bytes < before - 500, "it only cost the answers"
    before = books.ledger.balance_bytes
    books.answered(40)
    books.sent(9000, keyframe=True)
    assert books.ledger.balance_bytes > before, "a keyframe is due to something else"


def test_comparing_is_an_investment_with_an_end(books: Books) -> None:
    compared = 0
    while books.ledger.pays:
        books.sent(200, compared=250)
        compared += 1
        assert compared < 200
    assert compared > 40
    again = 0
    for _ in range(1000):
        pays = books.ledger.pays
        again += pays
        books.sent(200, compared=250 if pays else None)
    assert 20 < again < 60, "3 % of what pictures take, and what is forgotten meanwhile"


def test_what_was_long_ago_is_forgotten(books: Books) -> None:
    for _ in range(200):
        books.sent(200, compared=250)
    assert not books.ledger.pays
    books.now_ns += 4 * 3600 * SECOND_NS
    books.sent(200)
    assert books.ledger.pays
