"""A message comes out of its chunks as it went in, and chunks that don't add up are refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protos import stream_pb2
from protos.chunks import (
    CHUNK_SIZE,
    FIRST_SIZE,
    MAX_FRAME_SIZE,
    WHOLE_SIZE,
    Assembler,
    Pieces,
    Store,
    in_memory,
    in_one_buffer,
    read_chunk,
)
from protos.envelope import Kind, MalformedMessageError, kind_of

Message = stream_pb2.ParticipantMessage


Begin = Callable[[int], Store[bytes | memoryview]]

stores = pytest.mark.parametrize("begin", [in_memory, in_one_buffer])


def assemble(frames: Iterable[bytes], begin: Begin) -> bytes | memoryview:
    assembler = Assembler(begin)
    whole = None
    for frame in frames:
        assert whole is None
        assert len(frame) <= MAX_FRAME_SIZE
        assert kind_of(frame) is Kind.CHUNK
        chunk = Message.FromString(frame).chunk
        total, data = read_chunk(frame)
        assert (total, bytes(data)) == (chunk.total_size, chunk.data)
        whole = assembler.add(total, data)
        assert assembler.partial == (whole is None)
    assert whole is not None
    return whole


@stores
@pytest.mark.parametrize(
    "size",
    [
        WHOLE_SIZE + 1,
        *(FIRST_SIZE + around * CHUNK_SIZE + offset for around in (5, 6, 17) for offset in (-1, 0, 1)),
    ],
)
def test_chunks_join_to_what_was_split(size: int, begin: Begin) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    pieces = Pieces(data, Message)
    sizes = [len(Message.FromString(piece).chunk.data) for piece in pieces]
    assert sizes[:-1] == [FIRST_SIZE, *[CHUNK_SIZE] * (len(pieces) - 2)]
    assert 0 < sizes[-1] <= CHUNK_SIZE
    assert assemble(pieces, begin) == data
    assert assemble((pieces[index] for index in range(len(pieces))), begin) == data  # they can be read again
    assert list(Pieces(memoryview(data), Message)) == list(pieces)
    with pytest.raises(IndexError):
        pieces[len(pieces)]


@pytest.mark.parametrize("size", [0, 1, WHOLE_SIZE - 1, WHOLE_SIZE])
def test_messages_that_are_not_large_stay_whole(size: int) -> None:
    assert list(Pieces(b"x" * size, Message)) == [b"x" * size]


def test_server_messages_are_split_into_server_messages() -> None:
    frames = Pieces(b"x" * (WHOLE_SIZE + 1), stream_pb2.ServerMessage)
    chunks = [stream_pb2.ServerMessage.FromString(frame).chunk for frame in frames]
    assert chunks[0].total_size == WHOLE_SIZE + 1
    assert sum(len(chunk.data) for chunk in chunks) == WHOLE_SIZE + 1
    read = [read_chunk(frame, stream_pb2.ServerMessage) for frame in frames]
    assert [(total, bytes(data)) for total, data in read] == [(c.total_size, c.data) for c in chunks]


def traced_peak(action: Callable[[], object]) -> int:
    """The most bytes that it allocates."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_message_is_split_without_a_copy_of_all_of_it() -> None:
    pieces = Pieces(memoryview(bytes(64 * 1024 * 1024)), Message)
    assert traced_peak(lambda: [len(piece) for piece in pieces]) < 8 * 1024 * 1024


def test_a_large_message_is_joined_in_little_more_memory_than_it_has() -> None:
    assembler = Assembler(in_one_buffer)
    size, chunk = 64 * 1024 * 1024, bytes(CHUNK_SIZE)

    def join() -> None:
        for position in range(0, size, len(chunk)):
            assembler.add(0 if position else size, chunk)

    assert traced_peak(join) < 1.2 * size


def test_a_buffer_grows_with_what_comes_not_with_what_was_announced() -> None:
    assembler = Assembler(in_one_buffer)
    chunk = bytes(CHUNK_SIZE)
    assert traced_peak(lambda: assembler.add(2**31 - 1, b"x")) < 2 * 1024 * 1024
    assert traced_peak(lambda: [assembler.add(0, chunk) for _ in range(20)]) < 10 * 20 * CHUNK_SIZE


Piece = tuple[int, bytes]


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([(0, b"a")], "must state its total size"),
        ([(2, b"")], "without data"),
        ([(2, b"a"), (0, b"")], "without data"),
        ([(2, b"a"), (2, b"b")], "before the last one was whole"),
        ([(2, b"abc")], "exceed its stated 2 bytes"),
        ([(2, b"a"), (0, b"bc")], "exceed its stated 2 bytes"),
        ([(11, b"a")], "over the limit of 10 bytes"),
        ([(2**64 - 1, b"a")], "over the limit"),
    ],
)
def test_chunks_that_do_not_add_up_are_malformed(chunks: list[Piece], text: str) -> None:
    assembler = Assembler(in_memory, max_size=10)
    for total, data in chunks[:-1]:
        assert assembler.add(total, data) is None
    with pytest.raises(MalformedMessageError, match=text):
        assembler.add(*chunks[-1])


@stores
@given(messages=st.lists(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=5), max_size=5))
@example(messages=[[b"a"], [b"b", b"c"]])
def test_one_message_after_another_is_joined(messages: list[list[bytes]], begin: Begin) -> None:
    assembler = Assembler(begin)
    for pieces in messages:
        total = sum(map(len, pieces))
        joined = [assembler.add(0 if i else total, piece) for i, piece in enumerate(pieces)]
        assert joined == [None] * (len(pieces) - 1) + [b"".join(pieces)]
        assert not assembler.partial


@given(
    st.integers(0, 2**64 - 1),
    st.binary(max_size=40),
    st.sampled_from(["as usual", "unknown field", "data twice", "cut off"]),
)
def test_a_chunk_is_read_as_protobuf_reads_it(total: int, data: bytes, form: str) -> None:
    message = Message(chunk=stream_pb2.Chunk(total_size=total, data=data))
    content = message.chunk.SerializeToString()
    match form:
        case "unknown field":
            content += b"\x18\x05"
        case "data twice":
            content += stream_pb2.Chunk(data=b"again").SerializeToString()
        case "cut off":
            content += b"\x12\x05abc"
    encoded = b"\x2a" + bytes([len(content)]) + content
    if form == "cut off":
        with pytest.raises(MalformedMessageError, match="can't be read"):
            read_chunk(encoded)
    else:
        chunk = Message.FromString(encoded).chunk
        total_size, read = read_chunk(encoded)
        assert (total_size, bytes(read)) == (chunk.total_size, chunk.data)
