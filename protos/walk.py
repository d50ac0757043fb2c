"""A large result or instruction with its bulk left out: what makes sliced.py fast.

Decides where the bulk of a serialised message is (each ``Tensor.data``, and the ``payload``), by going
through its fields by hand, and what is too unusual for that. sliced.py says what becomes of either.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from protos.chunks import MAX_MESSAGE_SIZE, varint

MOST_TENSORS: Final = 65_536
"""A result with more is refused: it would hold up whoever reads it, and all others there, for seconds."""

_MOST_FIELDS: Final = 4 * MOST_TENSORS
"""The walk goes through so many fields at most, for each takes a microsecond. protobuf is faster there, but
makes a hundred bytes of two: what doesn't come in one piece isn't left to it (sliced.py)."""

# Tags as they are on the wire: field number << 3 | wire type. All are one byte.
RESULT: Final = 2 << 3 | 2
PAYLOAD: Final = 5 << 3 | 2
TENSOR: Final = 3 << 3 | 2
_NAME, _DTYPE, _PACKED_SHAPE, _LENGTH, DATA = 1 << 3 | 2, 2 << 3, 3 << 3 | 2, 3 << 3, 4 << 3 | 2
_LAST_NUMBER: Final = 5  # the highest of a field of a Result, an Instruction or a Tensor


class Form(NamedTuple):
    """Where the fields of a message's content are. Tensors are field 3 of both."""

    message: int
    small: tuple[int, ...]  # fields with a length that are no bulk
    fixed: int | None  # a field of eight bytes
    payload: int


RESULT_FORM: Final = Form(RESULT, small=(1 << 3 | 2, 2 << 3 | 2), fixed=4 << 3 | 1, payload=PAYLOAD)
INSTRUCTION_FORM: Final = Form(1 << 3 | 2, small=(1 << 3 | 2, 2 << 3 | 2), fixed=None, payload=4 << 3 | 2)


class Sliced(NamedTuple):
    rest: bytes  # the message without its bulk
    tensors: list[tuple[int, int]]  # from where to where each tensor's data is
    payload: tuple[int, int]


class _UnexpectedError(Exception):
    """What the walk leaves to protobuf: malformed, or merely unusual."""


def without_bulk(data: bytes | memoryview, form: Form) -> Sliced | None:
    """None where protobuf has to say what to make of it."""
    try:
        return _walk(data, form)
    except (_UnexpectedError, IndexError):  # IndexError: the bytes end amid a field
        return None


def _walk(data: bytes | memoryview, form: Form) -> Sliced:
    end = len(data)
    if data[0] != form.message or end > MAX_MESSAGE_SIZE:
        raise _UnexpectedError
    position, stop = _span(data, 1, end)
    if stop != end:
        raise _UnexpectedError
    parts: list[bytes | memoryview] = []
    spans: list[tuple[int, int]] = []
    payload = (end, end)
    taken = position  # what is before it is in the parts or left out
    left = _MOST_FIELDS
    while position < end:
        left -= 1
        if left < 0 or len(spans) > MOST_TENSORS:
            raise _UnexpectedError
        tag = data[position]
        if tag == TENSOR:
            start, stop = _span(data, position + 1, end)
            field, bulk, bulk_stop, left = _tensor_data(data, start, stop, left)
            spans.append((bulk, bulk_stop))
            size = varint(field - start + stop - bulk_stop)
            parts += (data[taken : position + 1], size, data[start:field], data[bulk_stop:stop])
            position = taken = stop
        elif tag == form.payload:
            parts.append(data[taken:position])
            payload = _span(data, position + 1, end)
            position = taken = payload[1]
        elif tag in form.small:
            _, position = _span(data, position + 1, end)
        elif tag == form.fixed and position + 9 <= end:
            position += 9
        else:
            position = _skip(data, position, end)
    parts.append(data[taken:])
    rest = b"".join(parts)
    return Sliced(b"".join((bytes([form.message]), varint(len(rest)), rest)), spans, payload)


def _tensor_data(data: bytes | memoryview, position: int, end: int, left: int) -> tuple[int, int, int, int]:
    """Where the data of the tensor at ``position`` is: its tag, its first byte and its end; and how many of
    the fields that may be ``left`` then are.
    """
    found: tuple[int, int, int] | None = None
    while position < end:
        left -= 1
        tag = data[position]
        if tag == DATA and found is None:
            start, stop = _span(data, position + 1, end)
            found = position, start, stop
            position = stop
        elif tag in (_NAME, _PACKED_SHAPE):
            _, position = _span(data, position + 1, end)
        elif tag in (_DTYPE, _LENGTH):
            position = _after_varint(data, position + 1, end)
        else:
            position = _skip(data, position, end)
        if left < 0:
            raise _UnexpectedError
    return *(found or (end, end, end)), left


def _after_varint(data: bytes | memoryview, position: int, end: int) -> int:
    last = position + 9
    while data[position] >= 0x80 and position < last:
        position += 1
    if data[position] >= 0x80 or position >= end:
        raise _UnexpectedError
    return position + 1


def _skip(data: bytes | memoryview, position: int, end: int) -> int:
    """Where the field at ``position`` ends, of a number that no message here has: it is a later version's."""
    tag = data[position]
    position += 1
    if tag >= 0x80:
        more = data[position]
        position += 1
        if not 0 < more < 0x80:  # numbers over 2,047, or written longer than they need be
            raise _UnexpectedError
        tag = tag & 0x7F | more << 7
    if tag >> 3 <= _LAST_NUMBER:
        raise _UnexpectedError
    match tag & 7:
        case 0:
            return _after_varint(data, position, end)
        case 1:
            position += 8
        case 2:
            position = _span(data, position, end)[1]
        case 5:
            position += 4
        case _:
            raise _UnexpectedError
    if position > end:
        raise _UnexpectedError
    return position


def _span(data: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """From where to where the content goes whose length is at ``position``."""
    length = data[position]
    position += 1
    if length >= 0x80:
        length &= 0x7F
        shift = 7
        while (byte := data[position]) >= 0x80 and shift < 28:
            length |= (byte & 0x7F) << shift
            shift += 7
            position += 1
        position += 1
        if byte == 0 or byte >= 0x80:  # whether a length may be longer than it need be is protobuf's to say
            raise _UnexpectedError
        length |= byte << shift
    stop = position + length
    if stop > end:
        raise _UnexpectedError
    return position, stop
