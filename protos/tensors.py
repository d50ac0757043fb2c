"""NumPy arrays as stream tensors, and back.

Decides how an array is laid out on the wire (little-endian, C order, no padding: stream.proto, Tensor) and
what is refused. Which arrays are sent, and under which names, is the caller's business.

bfloat16 has no NumPy dtype. It is written from ml_dtypes or torch arrays as they are, or from other floats
with ``dtype="bfloat16"``; it is always read as float32, which holds every bfloat16 exactly.

Nothing is ever pickled: an array of objects is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protos import stream_pb2

__all__ = [
    "TensorError",
    "array_of",
    "fill_tensor",
    "outline_tensor",
    "to_array",
    "to_arrays",
    "to_tensor",
    "to_tensors",
]


class TensorError(ValueError):
    """An array that can't be a tensor, or a tensor that can't be an array. The text names it and says why."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"tensor {name!r}: {problem}")
        self.name = name
        self.problem = problem

    def __reduce__(self) -> tuple[type[TensorError], tuple[str, str]]:
        return TensorError, (self.name, self.problem)


_NUMPY: Final[Mapping[int, np.dtype[Any]]] = {
    stream_pb2.FLOAT64: np.dtype("<f8"),
    stream_pb2.FLOAT32: np.dtype("<f4"),
    stream_pb2.FLOAT16: np.dtype("<f2"),
    stream_pb2.INT64: np.dtype("<i8"),
    stream_pb2.INT32: np.dtype("<i4"),
    stream_pb2.INT16: np.dtype("<i2"),
    stream_pb2.INT8: np.dtype("<i1"),
    stream_pb2.UINT64: np.dtype("<u8"),
    stream_pb2.UINT32: np.dtype("<u4"),
    stream_pb2.UINT16: np.dtype("<u2"),
    stream_pb2.UINT8: np.dtype("<u1"),
    stream_pb2.BOOL: np.dtype("?"),
}
_MOST_DIMENSIONS: Final = 64
"""What NumPy takes. To multiply a hundred thousand lengths that somebody made up takes a minute."""

_BFLOAT16: Final = "bfloat16"
_BFLOAT16_BITS: Final = np.dtype("<u2")
_CODES: Final[Mapping[str, stream_pb2.DType.ValueType]] = {
    dtype.name: stream_pb2.DType.ValueType(code) for code, dtype in _NUMPY.items()
}


def to_tensor(name: str, array: Any, dtype: npt.DTypeLike | str | None = None) -> stream_pb2.Tensor:
    """The array as a Tensor, converted to ``dtype`` first if one is given.

    ``array`` is anything that NumPy makes an array of a number dtype or bool of: arrays of any layout and
    byte order, Python numbers and nested lists, torch tensors on any device (by ``.detach().cpu()``).
    ``dtype`` is a NumPy dtype or its name, or ``"bfloat16"``; a conversion may lose precision, but not the
    kind of number (floats don't become integers). Narrowing to bfloat16 rounds to the nearest, ties to even.

    Raises TensorError for what has no place in stream.proto's DType: objects, text, complex numbers, dates.
    """
    tensor = stream_pb2.Tensor()
    fill_tensor(tensor, name, array, dtype)
    return tensor


def fill_tensor(
    tensor: stream_pb2.Tensor, name: str, array: Any, dtype: npt.DTypeLike | str | None = None
) -> None:
    """Like to_tensor, into an empty Tensor that is part of a message already: ``message.tensors.add()``.

    A Tensor that is added to a message once it is filled is copied with all its data, at each level.
    """
    tensor.data = _bytes(*outline_tensor(tensor, name, array, dtype))


def outline_tensor(
    tensor: stream_pb2.Tensor, name: str, array: Any, dtype: npt.DTypeLike | str | None = None
) -> tuple[npt.NDArray[Any], np.dtype[Any]]:
    """Like fill_tensor, but leaves ``data`` empty: for who writes it elsewhere.

    Returns an array of the tensor's shape, where possible no copy, and the dtype that its elements have to be
    cast to. In C order, these are the data.
    """
    if not isinstance(name, str):
        raise TensorError(repr(name), f"its name must be a str, not {type(name).__name__}")
    source, is_bfloat16 = _as_array(name, array)
    if not is_bfloat16 and source.dtype.name not in _CODES:
        raise TensorError(name, f"dtype {source.dtype} can't be sent; convert it to one of {_SENDABLE}")
    if dtype is not None:
        wanted = _dtype_name(name, dtype)
    else:
        wanted = _BFLOAT16 if is_bfloat16 else source.dtype.name
    code = _CODES.get(wanted)
    if code is None and wanted != _BFLOAT16:
        raise TensorError(name, f"dtype {wanted} can't be sent; use one of {_SENDABLE}")
    target = np.dtype(np.float32) if code is None else _NUMPY[code]
    bits: npt.NDArray[np.uint16] | None = None
    if source.dtype.name == _BFLOAT16:
        bits = source.view(np.uint16)
        if code is not None:
            source, bits = _widen(bits), None
    if bits is None:
        if not np.can_cast(source.dtype, target, casting="same_kind"):
            raise TensorError(name, f"{source.dtype} can't become {wanted} and still mean the same numbers")
        if code is None:
            bits = _narrow(source)
    tensor.name = name
    tensor.dtype = stream_pb2.BFLOAT16 if code is None else code
    tensor.shape.extend(source.shape)
    return (source, target) if bits is None else (bits, _BFLOAT16_BITS)


def to_array(tensor: stream_pb2.Tensor) -> npt.NDArray[Any]:
    """The Tensor as an array of its shape and dtype; float32 for a BFLOAT16 tensor.

    The array is **read-only** and shares the memory of the message's bytes (``array.copy()`` to change it),
    but for BFLOAT16, which is widened into memory of its own.

    Raises TensorError for an unknown dtype, a shape that is none, or data of another size than
    shape × itemsize.
    """
    return array_of(tensor.name, tensor.dtype, tuple(tensor.shape), tensor.data)


def array_of(name: str, code: int, shape: tuple[int, ...], data: bytes | memoryview) -> npt.NDArray[Any]:
    """Like to_array, from a Tensor's fields: its name (for errors), dtype number, shape and data.

    The array is as read-only as ``data`` and shares its memory, but for BFLOAT16.
    """
    is_bfloat16 = code == stream_pb2.BFLOAT16
    dtype = _BFLOAT16_BITS if is_bfloat16 else _NUMPY.get(code)
    if dtype is None:
        raise TensorError(name, f"dtype number {code} is unknown to this version")
    if len(shape) > _MOST_DIMENSIONS:
        raise TensorError(
            name, f"a shape of {len(shape)} lengths is no NumPy shape: {_MOST_DIMENSIONS} are the most"
        )
    if shape and min(shape) < 0:
        raise TensorError(name, f"shape {shape} has a negative length")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise TensorError(
            name,
            f"shape {shape} of {_BFLOAT16 if is_bfloat16 else dtype.name} takes {expected} bytes, "
            f"but there are {len(data)}",
        )
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # more dimensions, or longer empty ones, than NumPy can hold
        raise TensorError(name, f"shape {shape} is no NumPy shape ({error})") from None
    if is_bfloat16:
        return _widen(array)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        # NumPy takes any byte for a bool, and then computes nonsense with it.
        raise TensorError(name, "bool data holds bytes other than 0 and 1")
    return array


def to_tensors(arrays: Mapping[str, Any]) -> list[stream_pb2.Tensor]:
    """A Tensor for each item, in the mapping's order. Raises TensorError as to_tensor does."""
    return [to_tensor(name, array) for name, array in arrays.items()]


def to_arrays(tensors: Iterable[stream_pb2.Tensor]) -> dict[str, npt.NDArray[Any]]:
    """The arrays by name, in the order of the tensors. Raises TensorError for a name that comes twice."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for tensor in tensors:
        if tensor.name in arrays:
            raise TensorError(tensor.name, "there are two of this name in one message")
        arrays[tensor.name] = to_array(tensor)
    return arrays


_SENDABLE: Final = ", ".join([*_CODES, _BFLOAT16])


def _bytes(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    with np.errstate(over="ignore"):  # too large for a narrower float is inf, as in every such format
        return array.astype(dtype, copy=False).tobytes()  # C order, whatever the layout


def _as_array(name: str, array: Any) -> tuple[npt.NDArray[Any], bool]:
    """The array, and whether it came as bfloat16; torch's is widened to float32 then."""
    if hasattr(array, "detach"):  # a torch tensor: NumPy takes it only off its graph and device
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            return np.asarray(array.float().numpy()), True
        array = array.numpy()
    try:
        array = np.asarray(array)
    except (TypeError, ValueError, OverflowError) as error:
        raise TensorError(name, f"NumPy makes no array of it ({error})") from None
    return array, array.dtype.name == _BFLOAT16  # of ml_dtypes, which needn't be imported to know its name


def _dtype_name(name: str, dtype: npt.DTypeLike | str) -> str:
    if dtype == _BFLOAT16:
        return _BFLOAT16
    try:
        return np.dtype(dtype).name
    except TypeError as error:
        raise TensorError(name, f"{dtype!r} is no dtype ({error})") from None


def _widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """float32 from the bit patterns of bfloat16: its upper half."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _narrow(array: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The bit patterns of the bfloat16 nearest to each number, ties to even."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = np.array(array, dtype="=f4", order="C")
        bits = single.view(np.uint32)
        if array.dtype.kind != "f" or array.dtype.itemsize > 4:
            # Rounding twice, to float32 and then on, may end on the wrong side. Rounding the first time to
            # the odd neighbour keeps the second one right (Boldo & Melquiond, "Emulation of a FMA and
            # correctly rounded sums: proved algorithms using rounding to odd", 2008).
            exact = np.asarray(array, dtype="=f8")
            rounded = single.astype(np.float64)
            bits -= (np.abs(rounded) > np.abs(exact)).astype(np.uint32)
            bits |= (rounded != exact).astype(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x0040  # else a NaN whose upper half has no fraction bits becomes inf
    return np.where(np.isnan(single), quiet_nan, nearest).astype(np.uint16)
