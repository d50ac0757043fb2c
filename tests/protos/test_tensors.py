"""NumPy arrays survive the wire, bit for bit, and what can't be sent or read says why."""

from __future__ import annotations

import copy
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protos import stream_pb2
from protos.tensors import TensorError, to_array, to_arrays, to_tensor, to_tensors

DTYPES = {
    stream_pb2.FLOAT64: "f8",
    stream_pb2.FLOAT32: "f4",
    stream_pb2.FLOAT16: "f2",
    stream_pb2.INT64: "i8",
    stream_pb2.INT32: "i4",
    stream_pb2.INT16: "i2",
    stream_pb2.INT8: "i1",
    stream_pb2.UINT64: "u8",
    stream_pb2.UINT32: "u4",
    stream_pb2.UINT16: "u2",
    stream_pb2.UINT8: "u1",
    stream_pb2.BOOL: "?",
}

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def same(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Equal in dtype, shape and bytes, so that NaNs and signed zeros count."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize(("code", "dtype"), DTYPES.items(), ids=DTYPES.values())
@given(data=st.data())
def test_every_dtype_makes_the_round_trip(code: int, dtype: str, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(dtype, shapes))
    tensor = stream_pb2.Tensor.FromString(to_tensor("x", array).SerializeToString())
    assert (tensor.name, tensor.dtype, tuple(tensor.shape)) == ("x", code, array.shape)
    assert same(to_array(tensor), array)


def test_every_dtype_of_the_contract_is_covered() -> None:
    assert set(DTYPES) | {stream_pb2.BFLOAT16, stream_pb2.DTYPE_UNSPECIFIED} == set(stream_pb2.DType.values())


@given(hnp.arrays("f4", hnp.array_shapes(min_dims=2, max_dims=3, max_side=4)))
def test_layout_and_byte_order_make_no_difference(array: npt.NDArray[np.float32]) -> None:
    for variant in (array.T, array[::-1], array[..., ::2], np.asfortranarray(array), array.astype(">f4")):
        assert same(to_array(to_tensor("x", variant)), np.ascontiguousarray(variant).astype("<f4"))


def test_the_bytes_are_little_endian_in_c_order() -> None:
    tensor = to_tensor("x", np.array([[1, 2], [3, 4]], ">u2").T)
    assert tensor.data == b"\x01\x00\x03\x00\x02\x00\x04\x00"


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (1.5, "float64", ()),
        (True, "bool", ()),
        (7, "int64", ()),
        (np.float16(2), "float16", ()),
        ([], "float64", (0,)),
        ([[1, 2], [3, 4]], "int64", (2, 2)),
    ],
)
def test_python_numbers_and_lists_are_arrays(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    array = to_array(to_tensor("x", value))
    assert (array.dtype.name, array.shape) == (dtype, shape)
    assert array.tolist() == (value if isinstance(value, list) else np.asarray(value).item())


def test_decoding_copies_nothing_and_gives_read_only_arrays() -> None:
    array = to_array(to_tensor("x", np.arange(3)))
    assert not array.flags.writeable
    assert not array.flags.owndata


class FakeTorchTensor:
    """Has what a torch tensor has, as far as it matters here."""

    def __init__(self, array: npt.NDArray[Any], dtype: str, *, detached: bool = False) -> None:
        self.array, self.dtype, self.detached = array, dtype, detached

    def detach(self) -> FakeTorchTensor:
        return FakeTorchTensor(self.array, self.dtype, detached=True)

    def cpu(self) -> FakeTorchTensor:
        return self

    def float(self) -> FakeTorchTensor:
        return FakeTorchTensor(self.array.astype(np.float32), "torch.float32", detached=self.detached)

    def numpy(self) -> npt.NDArray[Any]:
        assert self.detached, "would raise: requires grad"
        assert self.dtype != "torch.bfloat16", "would raise: unsupported ScalarType"
        return self.array


def test_torch_tensors_are_taken_off_their_graph_and_device() -> None:
    array = np.arange(4, dtype=np.float32)
    assert same(to_array(to_tensor("x", FakeTorchTensor(array, "torch.float32"))), array)


def test_torch_bfloat16_stays_bfloat16() -> None:
    tensor = to_tensor("x", FakeTorchTensor(np.array([1.5, -2.0], "f4"), "torch.bfloat16"))
    assert tensor.dtype == stream_pb2.BFLOAT16
    assert to_array(tensor).tolist() == [1.5, -2.0]


@given(hnp.arrays("u4", shapes).map(lambda bits: bits.view("f4")))
def test_narrowing_to_bfloat16_rounds_as_ml_dtypes_does(array: npt.NDArray[np.float32]) -> None:
    tensor = to_tensor("x", array, "bfloat16")
    assert tensor.dtype == stream_pb2.BFLOAT16
    with np.errstate(all="ignore"):
        expected = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    decoded = to_array(tensor)
    assert (decoded.dtype.name, decoded.shape) == ("float32", array.shape)
    np.testing.assert_array_equal(decoded, expected)


@given(st.integers(0, 0xFFFF))
def test_every_bfloat16_but_a_signalling_nan_survives_unchanged(bits: int) -> None:
    array = np.array(bits, "u2").view(ml_dtypes.bfloat16)
    tensor = to_tensor("x", array)
    assert tensor.dtype == stream_pb2.BFLOAT16
    wide = to_array(tensor)
    if np.isnan(wide):
        assert np.isnan(array.astype(np.float32))
    else:
        assert tensor.data == bits.to_bytes(2, "little")
        assert wide == array.astype(np.float32)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 2**-8, 1.0),  # a tie: to even, down
        (1 + 3 * 2**-8, 1 + 2**-6),  # a tie: to even, up
        (1 + 2**-8 + 2**-40, 1 + 2**-7),  # float32 would make a tie of it, and round it down
        (1 + 3 * 2**-8 - 2**-40, 1 + 2**-7),  # the same from above
        (1e-60, 0.0),
        (1e308, np.inf),
    ],
)
def test_narrowing_float64_rounds_once(value: float, expected: float, sign: int) -> None:
    assert to_array(to_tensor("x", sign * value, "bfloat16")) == sign * expected


def test_nan_stays_nan_whatever_its_bits() -> None:
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0xFF800001], "u4")
    assert np.isnan(to_array(to_tensor("x", bits.view("f4"), "bfloat16"))).all()
    assert np.isnan(to_array(to_tensor("x", float("nan"), "bfloat16")))


def test_a_dtype_converts() -> None:
    assert to_tensor("x", [1.5], "float16").dtype == stream_pb2.FLOAT16
    assert to_tensor("x", [1], np.float32).dtype == stream_pb2.FLOAT32
    assert to_array(to_tensor("x", [1, 2], "bfloat16")).tolist() == [1.0, 2.0]
    assert to_array(to_tensor("x", [True], "bfloat16")).tolist() == [1.0]
    assert to_tensor("x", np.ones(2, ml_dtypes.bfloat16), "float64").dtype == stream_pb2.FLOAT64
    assert to_tensor("x", [1.0], ml_dtypes.bfloat16).dtype == stream_pb2.BFLOAT16


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["a"], "dtype <U1 can't be sent"),
        ([object()], "dtype object can't be sent"),
        (None, "dtype object can't be sent"),
        ([2**70], "dtype object can't be sent"),
        (1j, "dtype complex128 can't be sent"),
        (np.array("2020", "M8[D]"), "can't be sent"),
        (np.zeros(1, [("a", "f4")]), "can't be sent"),
        ([[1], [1, 2]], "NumPy makes no array of it"),
    ],
)
def test_what_has_no_dtype_on_the_wire_is_refused(value: Any, text: str) -> None:
    with pytest.raises(TensorError, match="tensor 'weights': ") as caught:
        to_tensor("weights", value)
    assert text in str(caught.value)
    assert caught.value.name == "weights"


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        ([1.5], "int32", "float64 can't become int32"),
        ([1.0], "complex64", "dtype complex64 can't be sent"),
        ([1.0], "nonsense", "is no dtype"),
        ([1.0], object, "dtype object can't be sent"),
    ],
)
def test_a_conversion_that_changes_the_meaning_is_refused(value: Any, dtype: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        to_tensor("x", value, dtype)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"dtype": 99, "shape": [1], "data": b"1234"}, "dtype number 99 is unknown"),
        ({"shape": [], "data": b""}, "dtype number 0 is unknown"),
        ({"dtype": 2, "shape": [-1], "data": b"1234"}, "negative"),
        ({"dtype": 2, "shape": [-1, -1], "data": b"1234"}, "negative"),
        ({"dtype": 2, "shape": [2], "data": b"1234"}, "takes 8 bytes, but there are 4"),
        ({"dtype": 2, "shape": [], "data": b""}, "takes 4 bytes, but there are 0"),
        ({"dtype": 4, "shape": [2], "data": b"123"}, "of bfloat16 takes 4 bytes"),
        ({"dtype": 2, "shape": [2**62, 2**62], "data": b"1234"}, "takes "),
        ({"dtype": 2, "shape": [2**62, 2**62, 0], "data": b""}, "is no NumPy shape"),
        ({"dtype": 2, "shape": [1] * 100, "data": b"1234"}, "is no NumPy shape"),
        ({"dtype": 13, "shape": [2], "data": b"\x01\x02"}, "bytes other than 0 and 1"),
    ],
)
def test_a_malformed_tensor_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(TensorError, match="tensor 'w': ") as caught:
        to_array(stream_pb2.Tensor(name="w", **fields))
    assert text in str(caught.value)


@given(
    st.builds(
        stream_pb2.Tensor,
        dtype=st.integers(-1, 20),
        shape=st.lists(st.integers(-2, 5) | st.integers(-(2**63), 2**63 - 1), max_size=5),
        data=st.binary(max_size=64),
    )
)
def test_any_tensor_becomes_an_array_or_a_tensor_error(tensor: stream_pb2.Tensor) -> None:
    try:
        array = to_array(tensor)
    except TensorError:
        return
    assert array.shape == tuple(tensor.shape)


def test_names_and_order_are_kept() -> None:
    arrays = {"z": np.zeros(2), "a": np.ones(3), "": np.array(1)}
    assert [tensor.name for tensor in to_tensors(arrays)] == ["z", "a", ""]
    decoded = to_arrays(to_tensors(arrays))
    assert list(decoded) == ["z", "a", ""]
    assert all(same(decoded[name], arrays[name]) for name in arrays)


def test_two_tensors_of_one_name_are_an_error() -> None:
    with pytest.raises(TensorError, match="tensor 'w': there are two"):
        to_arrays([to_tensor("w", 1), to_tensor("w", 2)])


def test_a_name_is_text() -> None:
    with pytest.raises(TensorError, match="must be a str"):
        to_tensor(3, [1])  # type: ignore[arg-type]


def test_the_error_can_be_copied_between_processes() -> None:
    error = copy.copy(TensorError("w", "bad"))
    assert (str(error), error.name, error.problem) == ("tensor 'w': bad", "w", "bad")
