"""The wire format against bytes that stay: whole, truncated, damaged, and from a newer schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from eyeline.envelope import MAX_ENVELOPE_BYTES, encode_envelope, message_id, parse_envelope
from eyeline.errors import BadEnvelope
from eyeline.v1 import frame_pb2, result_pb2
from eyeline.values import Provenance, Result
from tests.wire.make_golden import FOLDER, MESSAGES

WITH_SCHEMA = ("frame_envelope", "result_batch", "device_status")
REASONS = {"too_large", "corrupt", "newer_schema", "invalid"}


def golden(name: str) -> bytes:
    """The bytes of a golden file."""
    return (FOLDER / f"{name}.bin").read_bytes()


def fields(message: Message) -> Iterator[tuple[str, Any]]:
    """Every field that is set, with its path."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            yield descriptor.name, list(value) if descriptor.is_repeated else value
        elif descriptor.message_type.GetOptions().map_entry:
            yield descriptor.name, dict(value)
        else:
            for index, inner in enumerate(value if descriptor.is_repeated else [value]):
                yield f"{descriptor.name}[{index}]", type(inner).__name__
                for path, leaf in fields(inner):
                    yield f"{descriptor.name}[{index}].{path}", leaf


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_reads_as_it_was_written(name: str) -> None:
    expected = MESSAGES[name]()
    read = type(expected).FromString(golden(name))
    assert dict(fields(read)) == dict(fields(expected))
    assert len(dict(fields(read))) > 20


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_sets_every_field_of_its_message(name: str) -> None:
    """A field that is added later must be added here as well, or nothing guards it."""
    message = MESSAGES[name]()
    unset = {field.name for field in message.DESCRIPTOR.fields} - {
        field.name for field, _ in message.ListFields()
    }
    # Not set in what is not provisional, and no agent wrote anything else before there was such a field.
    assert unset <= {"reason", "provisional"}


@pytest.mark.parametrize("kind", ["", ".unknown_fields", ".schema2"])
@pytest.mark.parametrize("name", MESSAGES)
def test_written_again_it_is_the_same(name: str, kind: str) -> None:
    if kind == ".schema2" and name not in WITH_SCHEMA:
        assert not (FOLDER / f"{name}{kind}.bin").exists()
        return
    data = golden(name + kind)
    assert type(MESSAGES[name]()).FromString(data).SerializeToString(deterministic=True) == data


@pytest.mark.parametrize("name", MESSAGES)
def test_unknown_fields_change_nothing_that_is_known(name: str) -> None:
    read = type(MESSAGES[name]()).FromString(golden(f"{name}.unknown_fields"))
    assert MessageToDict(read) == MessageToDict(MESSAGES[name]())


def test_envelope_is_accepted() -> None:
    envelope = parse_envelope(golden("frame_envelope"))
    assert encode_envelope(envelope) == golden("frame_envelope")
    assert message_id(envelope) == "box1.gate.12.0102030405060708.100-141"
    assert parse_envelope(golden("frame_envelope.unknown_fields")).camera == "gate"


def test_envelope_of_a_newer_schema_is_set_aside() -> None:
    with pytest.raises(BadEnvelope, match="schema 2, this side reads up to 1") as caught:
        parse_envelope(golden("frame_envelope.schema2"))
    assert caught.value.reason == "newer_schema"


def test_result_as_a_value() -> None:
    value = Result.from_proto(result_pb2.Result.FromString(golden("result.unknown_fields")))
    assert (value.site, value.camera, value.device, value.sequence, value.frames) == (
        "yard",
        "gate",
        "box1",
        100,
        2,
    )
    assert value.provenance is Provenance.CLOUD
    assert value.detections.boxes.tolist() == [[10.5, 20.25, 60.75, 180], [300, 200, 420.5, 280]]
    assert value.detections.track_ids.tolist() == [41, 2**40]
    assert value.source_size == (768, 576)


def accepted_or_bad(data: bytes) -> frame_pb2.FrameEnvelope | None:
    """What `parse_envelope` makes of it; anything but `BadEnvelope` fails the test."""
    try:
        return parse_envelope(data)
    except BadEnvelope as problem:
        bad = problem
    assert bad.reason in REASONS
    assert len(str(bad).splitlines()) == 1
    return None


def test_envelope_truncated_at_every_length() -> None:
    data = golden("frame_envelope")
    whole = parse_envelope(data)
    read = [accepted_or_bad(data[:length]) for length in range(len(data))]
    # Cut between two fields it is a shorter message: then it is whole in what it holds, and not the same.
    assert all(envelope is None or envelope != whole for envelope in read)
    for envelope in filter(None, read):
        assert encode_envelope(envelope)
    assert sum(envelope is None for envelope in read) > len(data) // 2


@pytest.mark.parametrize("name", [name for name in MESSAGES if name != "frame_envelope"])
def test_other_messages_truncated_at_every_length(name: str) -> None:
    data, kind = golden(name), type(MESSAGES[name]())
    for length in range(len(data)):
        try:
            assert kind.FromString(data[:length]) != kind.FromString(data)
        except DecodeError:
            continue


def test_every_flipped_bit_is_read_or_refused() -> None:
    data = golden("frame_envelope")
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        envelope = accepted_or_bad(bytes(damaged))
        if envelope is not None:
            assert encode_envelope(envelope)
            message_id(envelope)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    accepted_or_bad(data)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_damage_to_a_real_envelope(data: st.DataObject) -> None:
    original = golden("frame_envelope")
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(len(original), start + 40)))
    accepted_or_bad(original[:start] + data.draw(st.binary(max_size=40)) + original[end:])


_NUMBERS = st.integers(0, 2**64 - 1)
_TEXTS = st.sampled_from(["", "gate", "ga te", "x" * 65, "ü", "*", ">", "a.b"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_NUMBERS, _NUMBERS, st.integers(0, 9)), max_size=5), _TEXTS, st.binary(max_size=9))
def test_any_values_in_the_fields(ranges: list[tuple[int, int, int]], name: str, random_id: bytes) -> None:
    envelope = frame_pb2.FrameEnvelope.FromString(golden("frame_envelope"))
    envelope.camera, envelope.epoch.random_id = name, random_id
    del envelope.items[:]
    for first, last, kind in ranges:
        made = envelope.items.add().range
        made.first_sequence, made.last_sequence, made.kind = first, last, kind  # type: ignore[assignment]
    accepted_or_bad(envelope.SerializeToString())


def test_oversize() -> None:
    with pytest.raises(
        BadEnvelope, match=f"{MAX_ENVELOPE_BYTES + 1} bytes, at most {MAX_ENVELOPE_BYTES}"
    ) as caught:
        parse_envelope(b"\x00" * (MAX_ENVELOPE_BYTES + 1))
    assert caught.value.reason == "too_large"


def test_deep_nesting_is_refused() -> None:
    data = b""
    for _ in range(200):  # an unknown group within a group
        data = b"\xf3\x01" + data + b"\xf4\x01"
    assert accepted_or_bad(golden("frame_envelope") + data) is None
