"""How a message that is too large for one gRPC message travels: in chunks (PROTOCOL.md A.8).

Decides when a message is split, what its pieces look like as bytes, and how they are joined again. Where the
bytes of a message that isn't whole yet are kept is up to a ``Store``: by default memory of this process; a
manager has another (manager/payloads/spool.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar, cast

from google.protobuf.message import DecodeError

from protos import stream_pb2
from protos.envelope import Kind, MalformedMessageError

WHOLE_SIZE: Final = 1024 * 1024
"""Messages of at most this many bytes are sent whole, larger ones in chunks."""

CHUNK_SIZE: Final = 256 * 1024
"""Bytes of the message in each chunk but the first and the last. Both ends hold about one chunk per stream
while a large message is on its way, which is why it is smaller than what may be sent whole."""

FIRST_SIZE: Final = 4 * 1024
"""Bytes in the first chunk: what a receiver has to hold that has no room yet for the others."""

MAX_FRAME_SIZE: Final = 4 * 1024 * 1024
"""The largest single gRPC message, in bytes, that a peer has to accept (gRPC's own default)."""

MAX_MESSAGE_SIZE: Final = 2**31 - 1
"""The largest whole message, in bytes (protobuf's own limit)."""

_SERVER_TAG: Final = 4 << 3 | 2
_PARTICIPANT_TAG: Final = Kind.CHUNK << 3 | 2
_TOTAL_TAG: Final = 1 << 3
_DATA_TAG: Final = 2 << 3 | 2

_BUFFER_GROWTH: Final = 8
"""A buffer that is full gets so many times its room; when it gets all it needs, an eighth has come."""

_LEAST_BUFFER: Final = 1024 * 1024
"""A buffer may have room for so many bytes before any of them has come."""

_CACHED: Final = 16
"""Pieces that are kept for the next stream: those that many streams write at about the same time."""

Whole = TypeVar("Whole", covariant=True)
"""What a Store makes of a message."""


class Pieces:
    """What to write to a stream to send ``data``, a serialised message: itself, or its chunks in order.

    Chunks are made when they are asked for, so a message of any size takes no more memory than itself. Any
    number of streams may go through the same pieces, each at its own pace.
    """

    __slots__ = ("_cache", "_data", "_tag")

    def __init__(
        self,
        data: bytes | memoryview,
        message: type[stream_pb2.ServerMessage | stream_pb2.ParticipantMessage],
    ) -> None:
        self._data = data
        self._tag = _SERVER_TAG if message is stream_pb2.ServerMessage else _PARTICIPANT_TAG
        self._cache: dict[int, bytes] = {}

    def __len__(self) -> int:
        size = len(self._data)
        return 1 if size <= WHOLE_SIZE else 1 + -(-(size - FIRST_SIZE) // CHUNK_SIZE)

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)  # which ends an iteration
        piece = self._cache.get(index)
        if piece is None:
            piece = self._make(index)
            if len(self._cache) >= _CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[index] = piece
        return piece

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def _make(self, index: int) -> bytes:
        size = len(self._data)
        if size <= WHOLE_SIZE:
            return bytes(self._data)
        begin = FIRST_SIZE + (index - 1) * CHUNK_SIZE if index else 0
        data = memoryview(self._data)[begin : begin + (CHUNK_SIZE if index else FIRST_SIZE)]
        # By hand, for protobuf would copy the data three times over.
        head = bytearray() if index else bytearray([_TOTAL_TAG, *varint(size)])
        head += bytes([_DATA_TAG, *varint(len(data))])
        return b"".join([bytes([self._tag, *varint(len(head) + len(data))]), head, data])


def read_chunk(
    message: bytes,
    kind: type[stream_pb2.ServerMessage | stream_pb2.ParticipantMessage] = stream_pb2.ParticipantMessage,
) -> tuple[int, memoryview]:
    """The total size (0: not stated) and the data of a serialised message that holds a chunk.

    The data is a view of ``message``. Raises MalformedMessageError if it can't be read.
    """
    # The form that everybody writes is read by hand, because protobuf would copy the data twice.
    try:
        position, total = 1, 0
        _, position = read_varint(message, position)
        if message[position] == _TOTAL_TAG:
            total, position = read_varint(message, position + 1)
        if message[position] == _DATA_TAG:
            length, position = read_varint(message, position + 1)
            if position + length == len(message):
                return total, memoryview(message)[position:]
    except IndexError:
        pass
    try:
        chunk = kind.FromString(message).chunk
    except DecodeError:
        raise MalformedMessageError(f"a chunk of {len(message)} bytes that can't be read") from None
    return chunk.total_size, memoryview(chunk.data)


class Store(Protocol[Whole]):
    """Takes the bytes of one message, in order."""

    def add(self, data: bytes | memoryview) -> None: ...

    def finish(self) -> Whole:
        """The whole message."""
        ...


class _Heap:
    """The Store that keeps a message in this process's memory."""

    def __init__(self, _size: int) -> None:
        self._parts: list[bytes] = []

    def add(self, data: bytes | memoryview) -> None:
        self._parts.append(bytes(data))

    def finish(self) -> bytes:
        return b"".join(self._parts)


class _Buffer:
    """The Store that keeps a message in one piece of memory, into which each chunk is copied once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._filled = 0
        self._buffer = memoryview(b"")

    def add(self, data: bytes | memoryview) -> None:
        end = self._filled + len(data)
        if end > len(self._buffer):
            room = self._size
            while room > _LEAST_BUFFER and (less := -(-room // _BUFFER_GROWTH)) >= end:
                room = less
            import numpy as np  # participants alone come here: managers have another Store

            grown = np.empty(room, np.uint8).data  # unlike a bytearray it isn't filled with zeros first
            grown[: self._filled] = self._buffer[: self._filled]
            self._buffer = grown
        self._buffer[self._filled : end] = data
        self._filled = end

    def finish(self) -> memoryview:
        return self._buffer


class Assembler(Generic[Whole]):
    """Joins the chunks of one direction of one stream back into messages.

    Between two messages it holds nothing. A first chunk that announces more than ``max_size`` bytes is
    refused before anything is stored.
    """

    __slots__ = ("_begin", "_max_size", "_missing", "_store", "_total")

    def __init__(self, begin: Callable[[int], Store[Whole]], max_size: int = MAX_MESSAGE_SIZE) -> None:
        """``begin`` gives a place for a message of so many bytes."""
        self._begin = begin
        self._max_size = max_size
        self._total = 0
        self._missing = 0
        self._store: Store[Whole] | None = None

    @property
    def partial(self) -> bool:
        """Whether a message has begun and isn't whole yet."""
        return self._store is not None

    def add(self, total_size: int, data: bytes | memoryview) -> Whole | None:
        """Takes the next chunk; returns the whole message when this was its last, else None.

        Raises MalformedMessageError for a chunk that doesn't fit those before it or is too large.
        """
        if self._store is None:
            if total_size == 0:
                raise MalformedMessageError("the first chunk of a message must state its total size")
            if total_size > self._max_size:
                raise MalformedMessageError(
                    f"a message of {total_size} bytes is over the limit of {self._max_size} bytes"
                )
        elif total_size:
            raise MalformedMessageError("a new chunked message began before the last one was whole")
        if not data:
            raise MalformedMessageError("a chunk without data")
        if len(data) > (total_size or self._missing):
            raise MalformedMessageError(
                f"the chunks of a message exceed its stated {total_size or self._total} bytes"
            )
        if self._store is None:
            self._store = self._begin(total_size)
            self._total = self._missing = total_size
        self._store.add(data)
        self._missing -= len(data)
        if self._missing:
            return None
        store, self._store = self._store, None
        return store.finish()


def in_memory(size: int) -> Store[bytes]:
    """Keeps a message in this process's memory: for an Assembler."""
    return cast(Store[bytes], _Heap(size))


def in_one_buffer(size: int) -> Store[memoryview]:
    """Keeps a message in one writable buffer that grows as the chunks come: for an Assembler."""
    return _Buffer(size)


def varint(number: int) -> bytes:
    """The number as protobuf writes tags, lengths and integers."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number that begins at ``position``, and where it ends. Raises IndexError if it doesn't."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise IndexError(position)
