"""A message is told by its first bytes, and comes out of its chunks as it went in."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protos import stream_pb2
from protos.envelope import (
    CHUNK_SIZE,
    MAX_FRAME_SIZE,
    Assembler,
    Kind,
    MalformedMessageError,
    kind_of,
    split,
)
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


def assemble(frames: Iterable[bytes]) -> bytes:
    assembler = Assembler()
    whole = None
    for frame in frames:
        assert whole is None
        assert len(frame) <= MAX_FRAME_SIZE
        assert kind_of(frame) is Kind.CHUNK
        whole = assembler.add(Message.FromString(frame).chunk)
        assert assembler.partial == (whole is None)
    assert whole is not None
    return whole


@pytest.mark.parametrize("around", [1, 2, 3])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_chunks_join_to_what_was_split(around: int, offset: int) -> None:
    data = (bytes(range(251)) * (around * CHUNK_SIZE // 251 + 2))[: around * CHUNK_SIZE + offset]
    frames = split(data, Message)
    if len(data) <= CHUNK_SIZE:
        assert frames == [data]
    else:
        assert len(frames) == around + (offset > 0)
        assert assemble(frames) == data


@pytest.mark.parametrize("size", [0, 1])
def test_small_messages_stay_whole(size: int) -> None:
    assert split(b"x" * size, Message) == [b"x" * size]


def test_server_messages_are_split_into_server_messages() -> None:
    frames = split(b"x" * (CHUNK_SIZE + 1), stream_pb2.ServerMessage)
    assert all(stream_pb2.ServerMessage.FromString(frame).HasField("chunk") for frame in frames)


def chunk(data: bytes, total: int = 0) -> stream_pb2.Chunk:
    return stream_pb2.Chunk(total_size=total, data=data)


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([chunk(b"a")], "must state its total size"),
        ([chunk(b"", 2)], "without data"),
        ([chunk(b"a", 2), chunk(b"")], "without data"),
        ([chunk(b"a", 2), chunk(b"b", 2)], "before the last one was whole"),
        ([chunk(b"abc", 2)], "exceed its stated 2 bytes"),
        ([chunk(b"a", 2), chunk(b"bc")], "exceed its stated 2 bytes"),
        ([chunk(b"a", 11)], "over the limit of 10 bytes"),
        ([chunk(b"a", 2**64 - 1)], "over the limit"),
    ],
)
def test_chunks_that_do_not_add_up_are_malformed(chunks: list[stream_pb2.Chunk], text: str) -> None:
    assembler = Assembler(max_size=10)
    for piece in chunks[:-1]:
        assert assembler.add(piece) is None
    with pytest.raises(MalformedMessageError, match=text):
        assembler.add(chunks[-1])


@given(st.lists(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=5), max_size=5))
@example([[b"a"], [b"b", b"c"]])
def test_one_message_after_another_is_joined(messages: list[list[bytes]]) -> None:
    assembler = Assembler()
    for pieces in messages:
        total = sum(map(len, pieces))
        joined = [assembler.add(chunk(piece, 0 if i else total)) for i, piece in enumerate(pieces)]
        assert joined == [None] * (len(pieces) - 1) + [b"".join(pieces)]
        assert not assembler.partial
