"""Results and instructions, read without copying their bulk, and results written copying it once.

Decides how a message's tensors become arrays that share its memory. Whether the bytes are such a message is
parsing.py's to say, what a tensor's fields must look like tensors.py's; what it means is the reader's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protos import stream_pb2
from protos.chunks import MAX_MESSAGE_SIZE, WHOLE_SIZE, varint
from protos.envelope import MalformedMessageError
from protos.messages import Tensors, checked, result
from protos.parsing import parse, without_result_bulk
from protos.tensors import TensorError, array_of, outline_tensor, to_arrays
from protos.walk import (
    DATA,
    INSTRUCTION_FORM,
    MOST_TENSORS,
    PAYLOAD,
    RESULT,
    TENSOR,
    Sliced,
    without_bulk,
)

__all__ = ["ReceivedMessage", "encode_result", "read_result"]

_ALIGNMENT: Final = 8
"""The size of the largest dtype's elements."""


def read_result(data: bytes | memoryview) -> tuple[stream_pb2.Result, dict[str, npt.NDArray[Any]]]:
    """The Result in a serialised ParticipantMessage, without its bulk, and its tensors' arrays by name.

    Bulk is each ``Tensor.data`` and the ``payload``: they are empty in the Result. The arrays are read-only.
    Those of a large message share the memory of ``data``, at whatever offset they are there (so NumPy may
    call them unaligned); a bfloat16 one is widened to float32 in memory of its own. A message without a
    Result reads as an empty one.

    Raises MalformedMessageError for what isn't a ParticipantMessage, and TensorError as tensors.to_arrays
    does.
    """
    message, sliced = without_result_bulk(data)
    read = message.result
    view = data if sliced is None else memoryview(data).toreadonly()
    if len(read.tensors) > MOST_TENSORS:
        raise MalformedMessageError(f"a result with {len(read.tensors)} tensors, more than {MOST_TENSORS}")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for index, tensor in enumerate(read.tensors):
        name = tensor.name
        if name in arrays:
            raise _twice(name)
        if sliced is None:
            bulk: bytes | memoryview = tensor.data
            tensor.ClearField("data")
        else:
            start, stop = sliced.tensors[index]
            bulk = view[start:stop]
        arrays[name] = array_of(name, tensor.dtype, tuple(tensor.shape), bulk)
    if sliced is None:
        read.ClearField("payload")
    return read, arrays


class ReceivedMessage:
    """A ServerMessage, and the bulk of its instruction if that has been left out of it.

    ``message`` is all of it but, where it was sliced, each ``Tensor.data`` and the ``payload``.
    """

    __slots__ = ("_payload", "_tensors", "message")

    def __init__(self, message: stream_pb2.ServerMessage) -> None:
        self.message = message
        self._tensors: list[memoryview] | None = None
        self._payload = memoryview(b"")

    @classmethod
    def sliced(cls, data: memoryview) -> ReceivedMessage:
        """Reads a serialised ServerMessage from memory that is its own from now on: aligned to 8 bytes, and
        writable, because the data of a tensor is moved by a few bytes where it isn't aligned.

        Raises MalformedMessageError for what isn't a ServerMessage.
        """
        sliced = without_bulk(data, INSTRUCTION_FORM)
        if sliced is None:
            return cls(parse(data, stream_pb2.ServerMessage))
        received = cls(parse(sliced.rest, stream_pb2.ServerMessage))
        bulk = data.toreadonly()
        received._tensors = [bulk[start:stop] for start, stop in _align(data, sliced)]
        start, stop = sliced.payload
        received._payload = bulk[start:stop]
        return received

    def take_bulk(self) -> tuple[dict[str, npt.NDArray[Any]], bytes]:
        """The instruction's arrays by name, and its payload. To be called once: bulk that was left out of the
        message isn't kept here.

        The arrays are read-only. They share the memory that the message was received in, which lives as long
        as any of them; the payload is copied out of it. bfloat16 is widened to float32.

        Raises TensorError as tensors.to_arrays does.
        """
        instruction = self.message.instruction
        tensors, payload = self._tensors, self._payload
        if tensors is None:
            return to_arrays(instruction.tensors), instruction.payload
        self._tensors, self._payload = None, memoryview(b"")
        arrays: dict[str, npt.NDArray[Any]] = {}
        for tensor, data in zip(instruction.tensors, tensors, strict=True):
            if tensor.name in arrays:
                raise _twice(tensor.name)
            arrays[tensor.name] = array_of(tensor.name, tensor.dtype, tuple(tensor.shape), data)
        return arrays, bytes(payload)


def encode_result(
    *,
    tensors: Tensors | None = None,
    metrics: Mapping[str, Any] | None = None,
    weight: float = 0.0,
    payload: bytes = b"",
    status: str = "",
) -> bytes | memoryview:
    """The serialised ParticipantMessage that messages.result would make of the same arguments.

    Each array of a large one is copied once, whatever its layout. The order of the fields isn't protobuf's.
    Raises what messages.result does, and ValueError for more than 2 GiB.
    """
    size, parts = _lay_out(tensors, metrics, weight, payload, status)
    if size <= WHOLE_SIZE:
        return b"".join(map(_plain, parts))
    if size > MAX_MESSAGE_SIZE:
        raise ValueError(f"a result of {size} bytes is over the limit of {MAX_MESSAGE_SIZE} bytes")
    buffer = np.empty(size, np.uint8)
    encoded = buffer.data
    position = 0
    parts.reverse()
    while parts:
        part = parts.pop()  # so that what had to be converted lives no longer than it must
        if isinstance(part, tuple):
            source, dtype = part
            stop = position + source.size * dtype.itemsize
            buffer[position:stop].view(dtype).reshape(source.shape)[...] = source
        elif isinstance(part, stream_pb2.Tensor):
            stop = position + part.ByteSize()
            encoded[position:stop] = part.SerializeToString()
        else:
            stop = position + len(part)
            encoded[position:stop] = part
        position = stop
    return encoded.toreadonly()


_Array: TypeAlias = tuple[npt.NDArray[Any], np.dtype[Any]]
_Part: TypeAlias = bytes | stream_pb2.Tensor | _Array


def _lay_out(
    tensors: Tensors | None, metrics: Mapping[str, Any] | None, weight: float, payload: bytes, status: str
) -> tuple[int, list[_Part]]:
    """The size of the message, and what it consists of, in order; an array is what its elements in this dtype
    are in memory."""
    is_bulk = isinstance(payload, bytes)  # what it may be otherwise is protobuf's to say
    small = result(metrics=metrics, weight=weight, payload=b"" if is_bulk else payload, status=status)
    head = small.result.SerializeToString()
    parts: list[_Part] = [head]
    size = len(head)
    if isinstance(tensors, Mapping):
        for name, array in tensors.items():
            tensor = stream_pb2.Tensor()
            source, dtype = outline_tensor(tensor, name, array)
            data_size = source.size * dtype.itemsize
            fields = tensor.SerializeToString() + bytes([DATA]) + varint(data_size)
            fields = bytes([TENSOR]) + varint(len(fields) + data_size) + fields
            parts += (fields, (source, dtype))
            size += len(fields) + data_size
    elif tensors is not None:
        for tensor in checked(tensors):
            tensor_size = tensor.ByteSize()
            prefix = bytes([TENSOR]) + varint(tensor_size)
            parts += (prefix, tensor)
            size += len(prefix) + tensor_size
    if is_bulk and payload:
        prefix = bytes([PAYLOAD]) + varint(len(payload))
        parts += (prefix, payload)
        size += len(prefix) + len(payload)
    prefix = bytes([RESULT]) + varint(size)
    return len(prefix) + size, [prefix, *parts]


def _plain(part: _Part) -> bytes | memoryview:
    if isinstance(part, tuple):
        return np.ascontiguousarray(*part).reshape(-1).view(np.uint8).data
    return part.SerializeToString() if isinstance(part, stream_pb2.Tensor) else part


def _align(data: memoryview, sliced: Sliced) -> list[tuple[int, int]]:
    """Moves each tensor's data down to a multiple of _ALIGNMENT, over what has been read; returns where it is
    then.

    It stays where it is if other bulk would be hurt: between the two of them may be as few as 4 bytes.
    """
    aligned: list[tuple[int, int]] = []
    taken = 0
    for start, stop in sliced.tensors:
        if sliced.payload[1] <= start:
            taken = max(taken, sliced.payload[1])
        shift = start % _ALIGNMENT
        if start - shift < taken:
            shift = 0
        if shift and stop > start:
            data[start - shift : stop - shift] = data[start:stop]
        aligned.append((start - shift, stop - shift))
        taken = stop - shift
    return aligned


def _twice(name: str) -> TensorError:
    return TensorError(name, "there are two of this name in one message")
