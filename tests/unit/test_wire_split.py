"""What the bytes of a connection are, read however they were cut."""

from __future__ import annotations

import pytest

from benchmarks.wire_split import Reader, added

UP = (
    b'CONNECT {"verbose": false}\r\nPING\r\nSUB _INBOX.a.* 1\r\n'
    b"PUB $JS.API.STREAM.INFO.FRAMES _INBOX.a.1 0\r\n\r\n"
    b"HPUB eyeline.v1.frame.yard.box1.gate _INBOX.a.2 12 21\r\nNATS/1.0\r\n\r\n\r\nPUB x\r\n\r\n"
    b"PUB eyeline.v1.status.yard.box1 3\r\nabc\r\n"
)
DOWN = (
    b"INFO {}\r\nPONG\r\nMSG _INBOX.a.1 1 4\r\n\r\n\r\n\r\nMSG _INBOX.a.2 1 2\r\nok\r\n"
    b"MSG eyeline.v1.control.yard.box1 2 1\r\nx\r\n"
)


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_every_byte_has_its_kind_and_an_answer_its_questions(piece: int) -> None:
    one = Reader()
    for data, up in ((UP, True), (DOWN, False)):
        for start in range(0, len(data), piece):
            one.feed(data[start : start + piece], up=up)
    assert sum(one.bytes.values()) == len(UP) + len(DOWN)
    assert set(one.bytes) == {"connection", "clock", "pictures", "status", "said by the cloud"}
    assert one.bytes["clock"] == 47 + len(b"MSG _INBOX.a.1 1 4\r\n\r\n\r\n\r\n")
    assert one.bytes["status"] == len(b"PUB eyeline.v1.status.yard.box1 3\r\nabc\r\n")
    assert added([one, one])["clock"] == 2 * one.bytes["clock"]
