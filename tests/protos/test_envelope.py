"""A message is told by its first bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import stream_pb2
from protos.envelope import Kind, MalformedMessageError, kind_of
from protos.messages import failure, result

Message = stream_pb2.ParticipantMessage

MESSAGES = {
    Kind.EMPTY: Message(),
    Kind.HELLO: Message(hello=stream_pb2.Hello(participant_id="a", attributes={"k": "v"})),
    Kind.RESULT: result(payload=b"x" * 300, weight=1.0),
    Kind.FAILURE: failure(stream_pb2.Failure.CANCELLED, "why"),
    Kind.LEAVE: Message(leave=stream_pb2.Leave(reason="bye")),
    Kind.CHUNK: Message(chunk=stream_pb2.Chunk(total_size=2, data=b"a")),
}


@pytest.mark.parametrize(("kind", "message"), MESSAGES.items(), ids=lambda value: getattr(value, "name", ""))
def test_the_kind_is_the_field_that_is_set(kind: Kind, message: stream_pb2.ParticipantMessage) -> None:
    assert kind_of(message.SerializeToString()) is kind


def test_a_field_that_is_set_but_bare_has_its_kind() -> None:
    assert kind_of(result().SerializeToString()) is Kind.RESULT


@given(st.integers(0, 3 * 2**14))
def test_the_length_of_the_length_makes_no_difference(size: int) -> None:
    assert kind_of(result(payload=b"x" * size).SerializeToString()) is Kind.RESULT


@given(st.binary(max_size=40))
def test_any_bytes_have_a_kind_or_are_malformed(data: bytes) -> None:
    try:
        kind = kind_of(data)
    except MalformedMessageError:
        return
    assert (kind is Kind.EMPTY) == (not data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x32\x00",  # field 6
        b"\x10\x01",  # field 2, but a number
        b"\x12",  # a result without a length
        b"\x12\x80",  # a length without an end
        b"\x12\xff\xff\xff\xff\xff\xff\x01",  # a length over 32 bits
        b"\x12\x05abc",  # too short
        b"\x12\x01abc",  # too long
        MESSAGES[Kind.HELLO].SerializeToString() + MESSAGES[Kind.LEAVE].SerializeToString(),
    ],
)
def test_what_is_not_exactly_one_field_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        kind_of(data)


@given(st.integers(0, 3 * 2**14))
def test_the_first_bytes_and_the_size_are_enough(size: int) -> None:
    data = result(payload=b"x" * size).SerializeToString()
    assert kind_of(data[:6], len(data)) is Kind.RESULT
    with pytest.raises(MalformedMessageError, match="doesn't end where"):
        kind_of(data[:6], len(data) + 1)
