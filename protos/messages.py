"""Stream messages built from plain Python values, and read into them.

Decides how Python numbers, text and bytes become stream.proto's Scalars. What the messages mean, and when
they may be sent, is PROTOCOL.md's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, Final, TypeAlias

from protos import stream_pb2

__all__ = [
    "Plain",
    "ScalarError",
    "Tensors",
    "failure",
    "from_scalars",
    "instruction",
    "refusal",
    "result",
    "to_scalars",
]

Plain: TypeAlias = bool | int | float | str | bytes
"""What a config or metrics entry is in Python."""

Tensors: TypeAlias = Mapping[str, Any] | Iterable[stream_pb2.Tensor]
"""Arrays by name (whatever tensors.to_tensor takes), or ready Tensors."""

_INT64: Final = range(-(2**63), 2**63)


class ScalarError(ValueError):
    """A value that can't be a config or metrics entry. The text names the entry and says why."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"entry {name!r}: {problem}")
        self.name = name
        self.problem = problem

    def __reduce__(self) -> tuple[type[ScalarError], tuple[str, str]]:
        return ScalarError, (self.name, self.problem)


def instruction(
    name: str,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Tensors | None = None,
    payload: bytes = b"",
) -> stream_pb2.ServerMessage:
    """The message that asks a participant to do ``name``.

    Raises ScalarError for a ``config`` value and tensors.TensorError for an array that can't be sent.
    """
    if not isinstance(name, str):
        raise TypeError(f"an instruction's name is a str, such as 'train', not {name!r}")
    message = stream_pb2.ServerMessage(
        instruction=stream_pb2.Instruction(name=name, config=to_scalars(config or {}))
    )
    _fill(message.instruction, tensors, payload)
    return message


def result(
    *,
    tensors: Tensors | None = None,
    metrics: Mapping[str, Any] | None = None,
    weight: float = 0.0,
    payload: bytes = b"",
    status: str = "",
) -> stream_pb2.ParticipantMessage:
    """The message that answers an instruction.

    ``weight`` is the result's weight in a weighted mean, most often the number of examples behind it;
    ``status`` a word for people, empty when all went well.

    Raises ScalarError for a ``metrics`` value and tensors.TensorError for an array that can't be sent.
    """
    number: object = weight
    if not isinstance(number, Real):
        raise TypeError(f"a result's weight is a number, not {weight!r}")
    message = stream_pb2.ParticipantMessage(
        result=stream_pb2.Result(status=status, metrics=to_scalars(metrics or {}), weight=weight)
    )
    _fill(message.result, tensors, payload)
    return message


def failure(code: stream_pb2.Failure.Code.ValueType, text: str) -> stream_pb2.ParticipantMessage:
    """The message that answers an instruction which can't be carried out; ``text`` says why."""
    return stream_pb2.ParticipantMessage(failure=stream_pb2.Failure(code=code, text=text))


def refusal(text: str) -> bytes:
    """What stands, serialised, in the place of an answer that a manager or coordinator doesn't let pass."""
    return failure(stream_pb2.Failure.UNSPECIFIED, text).SerializeToString()


def to_scalars(values: Mapping[str, Any]) -> dict[str, stream_pb2.Scalar]:
    """A Scalar for each value: bool, int of 64 bits, float, str or bytes.

    NumPy scalars, and arrays and tensors without dimensions, count as the Python value they hold.
    Raises ScalarError for all else.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"config and metrics map names to values; got {values!r}")
    for name in values:
        if not isinstance(name, str):
            raise TypeError(f"the names in config and metrics are str, not {name!r}")
    return {name: _to_scalar(name, value) for name, value in values.items()}


def from_scalars(scalars: Mapping[str, stream_pb2.Scalar]) -> dict[str, Plain]:
    """The plain values. Raises ScalarError for a Scalar without a value."""
    values: dict[str, Plain] = {}
    for name, scalar in scalars.items():
        field = scalar.WhichOneof("value")
        if field is None:
            raise ScalarError(name, "has no value, or one of a type unknown to this version")
        values[name] = getattr(scalar, field)
    return values


def _to_scalar(name: str, value: Any) -> stream_pb2.Scalar:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    match value:
        case bool():  # first: a bool is an int, too
            return stream_pb2.Scalar(bool_value=value)
        case int():
            if value not in _INT64:
                raise ScalarError(name, f"{value} needs more than 64 bits; send it as text or bytes")
            return stream_pb2.Scalar(int_value=value)
        case float():
            return stream_pb2.Scalar(float_value=value)
        case str():
            try:
                return stream_pb2.Scalar(string_value=value)
            except UnicodeEncodeError as error:
                raise ScalarError(name, f"is no Unicode text ({error})") from None
        case bytes() | bytearray() | memoryview():
            return stream_pb2.Scalar(bytes_value=bytes(value))
        case _:
            kind = type(value).__name__
            raise ScalarError(name, f"a {kind} can't be sent; use bool, int, float, str or bytes")


def _fill(part: stream_pb2.Instruction | stream_pb2.Result, tensors: Tensors | None, payload: bytes) -> None:
    """Sets what may be large in its place in the message; passed to a constructor it would be copied."""
    part.payload = payload
    if isinstance(tensors, Mapping):
        from protos.tensors import fill_tensor  # with NumPy, which who only passes messages on can spare

        for name, array in tensors.items():
            fill_tensor(part.tensors.add(), name, array)
    elif tensors is not None:
        part.tensors.extend(checked(tensors))


def checked(tensors: Iterable[object]) -> Iterator[stream_pb2.Tensor]:
    """These, which must be Tensors. Raises TypeError."""
    for tensor in tensors:
        if not isinstance(tensor, stream_pb2.Tensor):
            raise TypeError(
                f"tensors must be a dict of names to arrays, or a sequence of Tensors; "
                f"this {type(tensors).__name__} has a {type(tensor).__name__} in it"
            )
        yield tensor
