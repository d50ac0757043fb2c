"""Protobuf messages taken apart into fields, changed in one of many ways, and put together again.

Decides what a mutation is. It knows the wire format but for what a descriptor says of it: which fields are
messages, and which are lists of numbers. All randomness is the caller's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from protos.chunks import read_varint, varint

RAW = -1
"""The wire type of a field that is put into the message as it is."""


@dataclass(slots=True)
class Field:
    """``value``: a number (wire type 0), bytes, the fields of a message, or a tuple of packed numbers."""

    number: int
    wire_type: int
    value: Any
    claims: int | None = None  # the length that is stated, if it isn't the true one


Fields: TypeAlias = list[Field]

HUGE = [2**7, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**69]
DOUBLES = [
    bytes.fromhex(text)
    for text in (
        "000000000000f87f",  # NaN
        "000000000000f07f",  # inf
        "000000000000f0ff",  # -inf
        "0000000000000080",  # -0.0
        "ffffffffffffefff",  # the lowest
        "0100000000000000",  # the smallest
    )
]
_INTEGERS = {
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_ENUM,
    FieldDescriptor.TYPE_BOOL,
}


def take_apart(data: bytes, descriptor: Any) -> Fields:
    """The fields of a valid message of this Descriptor."""
    fields: Fields = []
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value: Any
            value, position = read_varint(data, position)
        elif wire_type == 1:
            value, position = data[position : position + 8], position + 8
        else:
            assert wire_type == 2, "no valid message of ours has others"
            size, position = read_varint(data, position)
            value, position = data[position : position + size], position + size
            known = descriptor.fields_by_number[number]
            if known.message_type is not None:
                value = take_apart(value, known.message_type)
            elif known.type in _INTEGERS:
                value = _unpacked(value)
        fields.append(Field(number, wire_type, value))
    return fields


def put_together(fields: Fields) -> bytes:
    """The message with these fields."""
    parts: list[bytes] = []
    for field in fields:
        value = field.value
        if field.wire_type == RAW:
            parts.append(value)
            continue
        parts.append(varint(field.number << 3 | field.wire_type))
        if field.wire_type == 0:
            parts.append(varint(value))
        elif field.wire_type == 2:
            if isinstance(value, list):
                value = put_together(value)
            elif isinstance(value, tuple):
                value = b"".join(map(varint, value))
            parts += (varint(len(value) if field.claims is None else field.claims), value)
        else:
            parts.append(value)
    return b"".join(parts)


def mutated(rng: random.Random, fields: Fields, donors: Sequence[Fields]) -> bytes:
    """A message with one to three changes; parts of ``donors`` may appear in it."""
    changed = _copy(fields)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        homes = _lists(changed)
        home = rng.choice(homes)
        if not home:
            home = homes[0]
        if home:
            rng.choice(_MUTATIONS)(rng, home, rng.randrange(len(home)), donors)
        else:
            home.append(Field(0, RAW, rng.randbytes(rng.randrange(1, 12))))
    data = put_together(changed)
    if rng.random() < 0.25:
        data = mangled(rng, data)
    return data


def mangled(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a change that knows nothing of fields."""
    if not data:
        return rng.randbytes(rng.randrange(1, 40))
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
        case 3:
            return data[:at] + data[at + rng.randrange(1, 9) :]
        case 4:
            return data[:at] + bytes([rng.choice((0x00, 0x7F, 0x80, 0xFF))]) + data[at + 1 :]
        case _:
            return data + data[at:]


def _numbers(rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    """Another number, or another number of numbers."""
    field = home[at]
    if isinstance(field.value, tuple):
        numbers = list(field.value)
        match rng.randrange(4):
            case 0:
                numbers.append(rng.choice(HUGE))
            case 1 if numbers:
                numbers.pop(rng.randrange(len(numbers)))
            case 2 if numbers:
                numbers[rng.randrange(len(numbers))] = rng.choice((0, 1, 7, *HUGE))
            case _:
                numbers = numbers * 2 or [0]
        field.value = tuple(numbers)
    elif field.wire_type == 0:
        field.value = rng.choice((0, 1, field.value + 1, abs(field.value - 1), *HUGE))
    elif field.wire_type == 1:
        field.value = rng.choice(DOUBLES)
    else:
        _lie(rng, home, at, _donors)


def _lie(rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    """A length that isn't so."""
    field = home[at]
    if field.wire_type == 2:
        field.claims = rng.choice((0, 1, rng.randrange(300), *HUGE))


def _remove(_rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    del home[at]


def _repeat(rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    for _ in range(rng.choice((1, 1, 2, 30))):
        home.insert(rng.randrange(len(home) + 1), replace(home[at]))


def _swap(rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    other = rng.randrange(len(home))
    home[at], home[other] = home[other], home[at]


def _splice(rng: random.Random, home: Fields, at: int, donors: Sequence[Fields]) -> None:
    """A field of another message instead of this one, or beside it, or in its place by number."""
    donor = rng.choice(_lists(rng.choice(donors)))
    if donor:
        other = replace(rng.choice(donor))
        other.value = _copy(other.value) if isinstance(other.value, list) else other.value
        match rng.randrange(3):
            case 0:
                home[at] = other
            case 1:
                home.insert(at, other)
            case _:
                home[at].wire_type, home[at].value = other.wire_type, other.value


def _unknown(rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    """A field that no version has, in each of the ways in which a field can be written."""
    number = rng.choice((0, 6, 15, 16, 100, 2**29 - 1, 2**29))
    raw = varint(number << 3 | rng.randrange(8)) + rng.choice(
        (b"\x01", bytes(8), bytes(4), b"\x03abc", varint(rng.choice(HUGE)), b"\xff" * 10)
    )
    home.insert(at, Field(0, RAW, raw))


def _nest(rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    """Deeply: in itself, or in groups."""
    field, depth = home[at], rng.choice((3, 40, 99, 101, 400))
    if rng.random() < 0.5:
        inner = put_together([field])
        home[at] = Field(0, RAW, b"\x3b" * depth + inner + b"\x3c" * depth)
    elif field.wire_type == 2:
        value: Any = field.value
        for _ in range(depth):
            value = put_together([Field(field.number, 2, value)])
        home[at] = Field(field.number, 2, value)


def _bytes(rng: random.Random, home: Fields, at: int, _donors: Sequence[Fields]) -> None:
    """Content of its own: no UTF-8, other sizes, another wire type."""
    field = home[at]
    if field.wire_type == 2:
        field.value = rng.choice(
            (b"", b"\xff\xfe", b"\xed\xa0\x80", bytes(rng.randrange(70)), rng.randbytes(9))
        )
    else:
        field.wire_type, field.value = 2, rng.randbytes(rng.randrange(12))


_MUTATIONS: list[Callable[[random.Random, Fields, int, Sequence[Fields]], None]] = [
    *(_numbers, _numbers, _numbers, _lie, _lie, _remove, _repeat, _swap, _splice, _splice),
    *(_unknown, _nest, _bytes, _bytes),
]


def _copy(fields: Fields) -> Fields:
    return [
        Field(f.number, f.wire_type, _copy(f.value) if isinstance(f.value, list) else f.value, f.claims)
        for f in fields
    ]


def _lists(fields: Fields) -> list[Fields]:
    """All messages in the message, itself first."""
    found = [fields]
    for field in fields:
        if isinstance(field.value, list):
            found += _lists(field.value)
    return found


def _unpacked(data: bytes) -> tuple[int, ...]:
    numbers: list[int] = []
    position = 0
    while position < len(data):
        number, position = read_varint(data, position)
        numbers.append(number)
    return tuple(numbers)
