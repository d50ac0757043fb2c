"""A stream message seen from outside: what kind it is, and how a large one travels in chunks.

Managers pass messages through as opaque bytes. What they must know of one, they learn here without
parsing it: both top-level messages of stream.proto hold at most one field, and all of their fields are
embedded messages, so the first byte tells the kind and the length that follows must reach exactly to the
end (PROTOCOL.md A.2).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from protos import stream_pb2

CHUNK_SIZE: Final = 1024 * 1024
"""Messages of more bytes than this are sent in chunks."""

MAX_FRAME_SIZE: Final = 4 * 1024 * 1024
"""The largest single gRPC message, in bytes, that a peer has to accept (gRPC's own default)."""

MAX_MESSAGE_SIZE: Final = 2**31 - 1
"""The largest whole message, in bytes (protobuf's own limit)."""


class Kind(IntEnum):
    """Which field of a ParticipantMessage is set. The values are the field numbers."""

    EMPTY = 0
    HELLO = 1
    RESULT = 2
    FAILURE = 3
    LEAVE = 4
    CHUNK = 5


class MalformedMessageError(ValueError):
    """Bytes that are no stream message, or chunks that don't add up. The text says why."""


_INSTRUCTION_TAG: Final = 1 << 3 | 2

_TAGS: Final = {kind << 3 | 2: kind for kind in Kind if kind}


def kind_of(data: bytes) -> Kind:
    """The kind of a serialised ParticipantMessage, without parsing its content.

    Raises MalformedMessageError when ``data`` isn't exactly one known field.
    """
    if not data:
        return Kind.EMPTY
    kind = _TAGS.get(data[0])
    if kind is None:
        raise MalformedMessageError(f"a ParticipantMessage can't begin with byte 0x{data[0]:02x}")
    length = shift = 0
    for position in range(1, min(len(data), 6)):
        byte = data[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            if position + 1 + length != len(data):
                break
            return kind
        shift += 7
    raise MalformedMessageError(
        f"a ParticipantMessage of {len(data)} bytes holds a {kind.name.lower()} field that doesn't "
        f"end where the message ends"
    )


def is_instruction(data: bytes) -> bool:
    """Whether a serialised ServerMessage is one that a caller may send: an instruction, or empty."""
    return not data or data[0] == _INSTRUCTION_TAG


def split(
    data: bytes, message: type[stream_pb2.ServerMessage | stream_pb2.ParticipantMessage]
) -> list[bytes]:
    """The serialised messages that carry ``data``, itself a serialised ``message``, over a stream.

    That is ``data`` alone where it is at most CHUNK_SIZE bytes, and messages with a chunk each otherwise.
    """
    if len(data) <= CHUNK_SIZE:
        return [data]
    view = memoryview(data)
    return [
        message(
            chunk=stream_pb2.Chunk(
                total_size=0 if offset else len(data), data=bytes(view[offset : offset + CHUNK_SIZE])
            )
        ).SerializeToString()
        for offset in range(0, len(data), CHUNK_SIZE)
    ]


class Assembler:
    """Joins the chunks of one direction of one stream back into messages.

    Between two messages it holds nothing. A first chunk that announces more than ``max_size`` bytes is
    refused before anything is stored.
    """

    __slots__ = ("_buffer", "_max_size", "_total")

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._max_size = max_size
        self._total = 0
        self._buffer: bytearray | None = None

    @property
    def partial(self) -> bool:
        """Whether a message has begun and isn't whole yet."""
        return self._buffer is not None

    def add(self, chunk: stream_pb2.Chunk) -> bytes | None:
        """Takes the next chunk; returns the whole message when this was its last, else None.

        Raises MalformedMessageError for a chunk that doesn't fit those before it or is too large.
        """
        if self._buffer is None:
            if chunk.total_size == 0:
                raise MalformedMessageError("the first chunk of a message must state its total size")
            if chunk.total_size > self._max_size:
                raise MalformedMessageError(
                    f"a message of {chunk.total_size} bytes is over the limit of {self._max_size} bytes"
                )
            self._total = chunk.total_size
            self._buffer = bytearray()
        elif chunk.total_size:
            raise MalformedMessageError("a new chunked message began before the last one was whole")
        if not chunk.data:
            raise MalformedMessageError("a chunk without data")
        if len(self._buffer) + len(chunk.data) > self._total:
            raise MalformedMessageError(f"the chunks of a message exceed its stated {self._total} bytes")
        self._buffer += chunk.data
        if len(self._buffer) < self._total:
            return None
        whole, self._buffer = bytes(self._buffer), None
        return whole
