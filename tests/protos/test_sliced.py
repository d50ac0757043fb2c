"""Reading a message around its bulk gives exactly what parsing all of it would, errors included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protos import parsing, stream_pb2
from protos.chunks import WHOLE_SIZE
from protos.envelope import MalformedMessageError
from protos.messages import ScalarError, instruction, result
from protos.parsing import check_result
from protos.sliced import ReceivedMessage, encode_result, read_result
from protos.tensors import TensorError, to_arrays, to_tensor
from tests.protos.test_tensors import FakeTorchTensor

# So that Hypothesis's small messages are walked like large ones.
walking = mock.patch.object(parsing, "_SMALL", -1)

scalars = st.one_of(
    st.builds(stream_pb2.Scalar, float_value=st.floats()),
    st.builds(stream_pb2.Scalar, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(stream_pb2.Scalar, string_value=st.text(max_size=5)),
)


@st.composite
def tensors(draw: st.DrawFn) -> stream_pb2.Tensor:
    """Mostly tensors that are right, of any dtype; sometimes of a size, dtype or shape that is wrong."""
    code, width = draw(st.sampled_from([(1, 8), (2, 4), (3, 2), (4, 2), (5, 8), (8, 1), (13, 1)]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = int(np.prod(shape, dtype=int)) * width
    data = draw(st.binary(min_size=size, max_size=size))
    tensor = stream_pb2.Tensor(
        name=draw(st.sampled_from(["", "w", "b", "ä" * 100])),
        dtype=stream_pb2.DType.ValueType(code),
        shape=shape,
        data=bytes(byte & 1 for byte in data) if code == 13 else data,
    )
    match draw(st.integers(0, 15)):
        case 0:
            tensor.data += b"\2"
        case 1:
            tensor.dtype = stream_pb2.DType.ValueType(draw(st.integers(-1, 300)))
        case 2:
            tensor.shape.append(draw(st.integers(-(2**63), 2**63 - 1)))
    return tensor


results = st.builds(
    lambda **fields: stream_pb2.ParticipantMessage(result=stream_pb2.Result(**fields)),
    status=st.text(max_size=3),
    metrics=st.dictionaries(st.text(max_size=3), scalars, max_size=3),
    tensors=st.lists(tensors(), max_size=3),
    weight=st.floats(),
    payload=st.binary(max_size=300),
).map(lambda message: message.SerializeToString(deterministic=True))


def varint(number: int, padding: int = 0) -> bytes:
    """As protobuf writes it, or longer than it need be."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F)
    digits += [0] * padding
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])


paddings = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 3, 4, 9])


@st.composite
def fields(draw: st.DrawFn, level: int = 0) -> bytes:
    """Fields as no serialiser would write them: in any order, repeated, unknown, of the wrong wire type."""
    written = b""
    for _ in range(draw(st.integers(0, 4))):
        number = draw(st.sampled_from([1, 2, 3, 4, 5, 15, 16]))
        wire = draw(st.sampled_from([0, 1, 2, 2, 2, 2, 3, 4, 5]))
        written += varint(number << 3 | wire, draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1])))
        if wire == 0:
            written += varint(draw(st.integers(0, 2**64 - 1) | st.integers(0, 20)), draw(paddings))
        elif wire == 2:
            inner = (
                draw(fields(level + 1)) if level < 3 and draw(st.booleans()) else draw(st.binary(max_size=9))
            )
            written += varint(len(inner), draw(paddings)) + inner
        else:
            written += draw(st.binary(min_size=8, max_size=8))[: {1: 8, 5: 4}.get(wire, 0)]
    return written


instructions = st.builds(
    lambda **fields: stream_pb2.ServerMessage(instruction=stream_pb2.Instruction(**fields)),
    name=st.text(max_size=3),
    config=st.dictionaries(st.text(max_size=3), scalars, max_size=3),
    tensors=st.lists(tensors(), max_size=3),
    payload=st.binary(max_size=300),
).map(lambda message: message.SerializeToString(deterministic=True))

odd_instructions = fields(1).map(lambda content: b"\x0a" + varint(len(content)) + content)
odd_results = fields(1).map(lambda content: b"\x12" + varint(len(content)) + content)


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    """A message with some bytes replaced, inserted or cut."""
    data = bytearray(draw(messages))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


anything = st.one_of(results, odd_results, fields(), damaged(results), st.binary())


def described(arrays: dict[str, npt.NDArray[Any]]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(name, array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()]


def parsed(data: bytes) -> stream_pb2.ParticipantMessage | None:
    try:
        return stream_pb2.ParticipantMessage.FromString(data)
    except Exception:
        return None


def refused(read: Callable[[], object]) -> str | None:
    try:
        read()
    except TensorError as error:
        return str(error)
    return None


def agrees(data: bytes) -> None:
    """Checks what is read of ``data`` against what parsing it gives."""
    message = parsed(data)
    if message is None:
        with pytest.raises(MalformedMessageError):
            check_result(data)
        with pytest.raises(MalformedMessageError):
            read_result(data)
        return
    check_result(data)
    check_result(memoryview(data))
    refusal = refused(lambda: to_arrays(message.result.tensors))
    assert refused(lambda: read_result(data)) == refusal
    if refusal is not None:
        return
    expected = to_arrays(message.result.tensors)
    whole = message.result
    whole.ClearField("payload")
    for tensor in whole.tensors:
        tensor.ClearField("data")
    for view in (data, memoryview(data), memoryview(bytearray(data))):
        read, arrays = read_result(view)
        assert read.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
        assert described(arrays) == described(expected)


@given(anything)
def test_whatever_the_bytes_the_walk_agrees_with_protobuf(data: bytes) -> None:
    with walking:
        agrees(data)


@given(anything)
def test_whatever_the_bytes_a_small_message_agrees_with_protobuf(data: bytes) -> None:
    agrees(data)


@given(st.lists(st.tuples(st.sampled_from("nwsdx"), st.booleans()), max_size=7))
def test_a_tensors_fields_may_come_in_any_order_and_number(order: list[tuple[str, bool]]) -> None:
    written = {
        "n": (b"\x0a\x01w", b"\x0a\x02\xc3\xa4"),
        "w": (b"\x10\x02", b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        "s": (b"\x1a\x02\x01\x02", b"\x18\x01"),
        "d": (b"\x22\x08" + bytes(8), b"\x22\x04" + bytes(4)),
        "x": (b"\x7a\x01z", b"\x3b\x3c"),
    }
    tensor = b"".join(written[field][variant] for field, variant in order)
    content = b"\x1a" + varint(len(tensor)) + tensor + b"\x21" + bytes(8)
    with walking:
        agrees(b"\x12" + varint(len(content)) + content)


ONE_MB = {f"layer{index}": np.full((256, 256), index, np.float32) for index in range(4)}


@pytest.mark.parametrize("payload", [b"", b"p" * 100_000])
def test_a_large_message_is_read_without_parsing_its_bulk(payload: bytes) -> None:
    data = result(tensors=ONE_MB, metrics={"loss": 0.5}, weight=7, payload=payload).SerializeToString()
    with mock.patch.object(parsing, "parse", wraps=parsing.parse) as parse:
        check_result(data)
        read, arrays = read_result(data)
    assert [len(call.args[0]) < 200 for call in parse.call_args_list] == [True, True]
    assert (read.weight, read.metrics["loss"].float_value) == (7, 0.5)
    assert described(arrays) == described(ONE_MB)


def test_the_arrays_are_read_only_and_share_the_messages_memory() -> None:
    data = bytearray(result(tensors=ONE_MB).SerializeToString())
    _, arrays = read_result(memoryview(data))
    for array in arrays.values():
        assert not array.flags.writeable
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_large_bfloat16_is_widened() -> None:
    message = stream_pb2.ParticipantMessage()
    message.result.tensors.add(name="w", dtype=stream_pb2.BFLOAT16, shape=[20_000], data=b"\x80\x3f" * 20_000)
    _, arrays = read_result(message.SerializeToString())
    assert arrays["w"].dtype == np.float32
    assert (arrays["w"] == 1).all()


@given(
    st.dictionaries(
        st.text(max_size=3),
        hnp.arrays(
            st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?", ">f4", ml_dtypes.bfloat16]),
            hnp.array_shapes(min_dims=0, min_side=0, max_side=9),
            elements=st.integers(0, 1),
        ),
        max_size=3,
    ),
    st.floats(allow_nan=False),
)
def test_what_is_written_is_what_protobuf_would_write(arrays: dict[str, Any], weight: float) -> None:
    written = parsed(bytes(encode_result(tensors=arrays, metrics={"loss": 0.5}, weight=weight)))
    assert written == result(tensors=arrays, metrics={"loss": 0.5}, weight=weight)


def test_a_transposed_array_is_written_in_c_order() -> None:
    array = np.arange(6.0).reshape(2, 3).T
    assert parsed(bytes(encode_result(tensors={"x": array}, metrics={}, weight=1))) == result(
        tensors={"x": array}, weight=1
    )


def test_what_cannot_be_sent_cannot_be_written() -> None:
    with pytest.raises(TensorError, match="tensor 'x': dtype complex128 can't be sent"):
        encode_result(tensors={"x": np.ones(2, complex)}, metrics={}, weight=1)


@pytest.mark.parametrize("cut", [1, 5, 1_000, 200_000])
def test_a_large_message_that_was_cut_is_refused(cut: int) -> None:
    data = result(tensors=ONE_MB).SerializeToString()[:-cut]
    agrees(data)


def test_a_large_message_of_another_kind_reads_as_an_empty_result() -> None:
    hello = stream_pb2.ParticipantMessage(hello=stream_pb2.Hello(participant_id="x" * 20_000))
    agrees(hello.SerializeToString())


@given(st.binary(min_size=1, max_size=30), st.integers(0, 60), st.integers(0, 2))
def test_a_large_message_with_damage_at_either_end_agrees_with_protobuf(
    garbage: bytes, position: int, removed: int
) -> None:
    message = result(tensors={"w": np.zeros(5_000, np.float32)}, metrics={"a": 1, "b": "x"}, weight=1)
    for place in (position, -1 - position):
        data = bytearray(message.SerializeToString(deterministic=True))
        data[place : place + removed] = garbage
        agrees(bytes(data))


def buffer_of(data: bytes) -> memoryview:
    """A copy of it as the chunks of a message leave it: writable and aligned."""
    buffer = np.empty(len(data), np.uint8)
    buffer[:] = np.frombuffer(data, np.uint8)
    return buffer.data


@given(st.one_of(instructions, odd_instructions, fields(), damaged(instructions), st.binary()))
def test_a_sliced_instruction_is_what_protobuf_parses(data: bytes) -> None:
    try:
        expected = stream_pb2.ServerMessage.FromString(data)
    except Exception:
        with pytest.raises(MalformedMessageError, match="not a ServerMessage"):
            ReceivedMessage.sliced(buffer_of(data))
        return
    received, whole = ReceivedMessage.sliced(buffer_of(data)), ReceivedMessage(expected)
    refusal = refused(whole.take_bulk)
    if refusal is not None:
        assert refused(received.take_bulk) == refusal
        return
    arrays, payload = received.take_bulk()
    expected_arrays, expected_payload = whole.take_bulk()
    assert payload == expected_payload
    assert described(arrays) == described(expected_arrays)
    assert not any(array.flags.writeable for array in arrays.values() if array.dtype != np.float32)
    for message in (received.message, expected):
        message.instruction.ClearField("payload")
        for tensor in message.instruction.tensors:
            tensor.ClearField("data")
    kept = received.message.SerializeToString(deterministic=True)
    assert kept == expected.SerializeToString(deterministic=True)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=20)), max_size=6))
def test_aligning_tensors_hurts_no_other_bulk(bulk: list[tuple[bool, bytes]]) -> None:
    """Tensors and payloads in any order, with as little between them as the wire allows."""
    content = b""
    for is_tensor, data in bulk:
        tensor = b"\x22" + varint(len(data)) + data
        content += b"\x1a" + varint(len(tensor)) + tensor if is_tensor else b"\x22" + varint(len(data)) + data
    buffer = buffer_of(b"\x0a" + varint(len(content)) + content)
    received = ReceivedMessage.sliced(buffer)
    assert list(map(bytes, received._tensors or [])) == [data for is_tensor, data in bulk if is_tensor]
    assert received._payload == ([b""] + [data for is_tensor, data in bulk if not is_tensor])[-1]


def test_the_arrays_of_a_large_instruction_lie_in_its_memory_aligned_and_read_only() -> None:
    tensors = {name: np.full((64, 1024), len(name), np.float64) for name in ("a", "bb", "cccc", "dddddd")}
    message = instruction("train", tensors=tensors, payload=b"p" * 10_000)
    buffer = buffer_of(message.SerializeToString())
    received = ReceivedMessage.sliced(buffer)
    assert received.message.ByteSize() < 200
    arrays, payload = received.take_bulk()
    assert payload == b"p" * 10_000
    assert described(arrays) == described(tensors)
    for array in arrays.values():
        assert np.shares_memory(array, np.frombuffer(buffer, np.uint8))
        assert array.flags.aligned
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


LAYOUTS: list[Callable[[npt.NDArray[Any]], Any]] = [
    lambda array: array,
    lambda array: array.T,
    lambda array: array[..., ::-1] if array.ndim else array,
    lambda array: array[::2] if array.ndim else array,
    np.asfortranarray,
    lambda array: np.broadcast_to(array, (2, *array.shape)),
    lambda array: array.tolist() if array.dtype.name != "bfloat16" else array,
    lambda array: (
        FakeTorchTensor(array, f"torch.{array.dtype.name}")
        if array.dtype.name != "bfloat16"
        else FakeTorchTensor(array.astype(np.float32), "torch.bfloat16")
    ),
]

sendable = st.builds(
    lambda layout, array: layout(array),
    st.sampled_from(LAYOUTS),
    hnp.arrays(
        st.sampled_from(["f8", "f4", "f2", "i8", "i4", "u2", "u1", "?", ">f4", ">i8", ml_dtypes.bfloat16]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements=st.integers(0, 1),
    ),
)
to_send = st.fixed_dictionaries(
    {},
    optional={
        "tensors": st.none()
        | st.dictionaries(st.text(max_size=3), sendable, max_size=4)
        | st.lists(tensors(), max_size=3),
        "metrics": st.none() | st.dictionaries(st.text(max_size=3), st.integers(-9, 9) | st.text(max_size=3)),
        "weight": st.floats(allow_nan=False),
        "payload": st.binary(max_size=20),
        "status": st.text(max_size=3),
    },
)


@given(to_send, st.sampled_from([-1, WHOLE_SIZE]))
def test_an_encoded_result_is_the_message_of_the_same_arguments(
    arguments: dict[str, Any], whole: int
) -> None:
    with mock.patch("protos.sliced.WHOLE_SIZE", whole):
        encoded = encode_result(**arguments)
    assert isinstance(encoded, memoryview) == (whole < 0)
    assert stream_pb2.ParticipantMessage.FromString(bytes(encoded)) == result(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tensors": {"x": ...}},
        {"tensors": {"x": np.ones(2, complex)}},
        {"tensors": {3: np.ones(2)}},
        {"tensors": {"\ud800": np.ones(2)}},
        {"tensors": [np.ones(2)]},
        {"tensors": 3},
        {"metrics": {"loss": [1]}},
        {"weight": "heavy"},
        {"payload": "text"},
        {"payload": bytearray(b"x")},
        {"status": b"\xff"},
    ],
    ids=str,
)
def test_what_no_message_can_be_made_of_cannot_be_encoded(arguments: dict[str, Any]) -> None:
    with pytest.raises((TensorError, ScalarError, TypeError, ValueError)) as expected:
        result(**arguments)
    with pytest.raises(type(expected.value)) as error:
        encode_result(**arguments)
    assert str(error.value) == str(expected.value)


def test_a_result_over_2_gib_is_refused_before_it_is_copied() -> None:
    vast = np.broadcast_to(np.float32(0), (2**29,))
    with pytest.raises(ValueError, match="bytes is over the limit of 2147483647 bytes"):
        encode_result(tensors={"w": vast})


def test_an_encoded_result_shares_no_memory_with_what_it_was_made_of() -> None:
    array = np.zeros(500_000, np.float32)
    encoded = encode_result(tensors={"w": array}, payload=b"p" * 100_000, weight=2)
    array[:] = 1
    read, arrays = read_result(encoded)
    assert (read.weight, arrays["w"].max()) == (2, 0)


def test_ready_tensors_may_come_from_a_generator() -> None:
    ready = [to_tensor(name, [1.0], "bfloat16") for name in "ab"]
    assert parsed(bytes(encode_result(tensors=iter(ready)))) == result(tensors=ready)
