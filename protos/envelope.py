"""A stream message seen from outside: what kind it is.

Managers pass messages through as opaque bytes. What they must know of one, they learn here without
parsing it: both top-level messages of stream.proto hold at most one field, and all of their fields are
embedded messages, so the first byte tells the kind and the length that follows must reach exactly to the
end (PROTOCOL.md A.2).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


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


class CompressedMessageError(MalformedMessageError):
    """Bytes that look as if gRPC had compressed them."""


_INSTRUCTION_TAG: Final = 1 << 3 | 2

_COMPRESSED: Final = (0x1F, 0x78)
"""How gzip and zlib begin. Managers let gRPC decompress nothing, because little can become very much."""

_TAGS: Final = {kind << 3 | 2: kind for kind in Kind if kind}


def kind_of(data: bytes, size: int | None = None) -> Kind:
    """The kind of a serialised ParticipantMessage, without parsing its content.

    ``data`` is all of it, or its first bytes (6 are enough) if ``size`` is given. Raises
    MalformedMessageError when the message isn't exactly one known field.
    """
    if not data:
        return Kind.EMPTY
    if size is None:
        size = len(data)
    kind = _TAGS.get(data[0])
    if kind is None:
        text = f"a ParticipantMessage can't begin with byte 0x{data[0]:02x}"
        if data[0] in _COMPRESSED:
            raise CompressedMessageError(f"{text}; gRPC's compression must not be used")
        raise MalformedMessageError(text)
    length = shift = 0
    for position in range(1, min(len(data), 6)):
        byte = data[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            if position + 1 + length != size:
                break
            return kind
        shift += 7
    raise MalformedMessageError(
        f"a ParticipantMessage of {size} bytes holds a {kind.name.lower()} field that doesn't "
        f"end where the message ends"
    )


def is_instruction(data: bytes) -> bool:
    """Whether a serialised ServerMessage is one that a caller may send: an instruction, or empty."""
    return not data or data[0] == _INSTRUCTION_TAG
