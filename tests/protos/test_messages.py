"""Plain values go into stream messages and come out the same, or say why they can't."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import stream_pb2
from protos.messages import Plain, ScalarError, failure, from_scalars, instruction, result, to_scalars
from protos.tensors import to_arrays, to_tensor

plain = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), plain))
def test_plain_values_make_the_round_trip_with_their_types(values: dict[str, Plain]) -> None:
    data = instruction("x", config=values).SerializeToString()
    decoded = from_scalars(stream_pb2.ServerMessage.FromString(data).instruction.config)
    assert decoded == values
    assert {name: type(value) for name, value in decoded.items()} == {
        name: type(value) for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.bool_(True), True),
        (np.int8(-3), -3),
        (np.uint64(7), 7),
        (np.float32(0.5), 0.5),
        (np.str_("a"), "a"),
        (np.array(2), 2),
        (np.array(True), True),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
    ],
)
def test_numpy_scalars_count_as_what_they_hold(value: Any, expected: Plain) -> None:
    decoded = from_scalars(to_scalars({"k": value}))["k"]
    assert decoded == expected
    assert type(decoded) is type(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**63, "needs more than 64 bits"),
        (-(2**63) - 1, "needs more than 64 bits"),
        (np.uint64(2**63), "needs more than 64 bits"),
        (None, "a NoneType can't be sent"),
        ([1], "a list can't be sent"),
        (np.zeros(2), "a ndarray can't be sent"),
        (1j, "a complex can't be sent"),
        ("\ud800", "is no Unicode text"),
    ],
)
def test_what_is_no_scalar_is_refused_by_name(value: Any, text: str) -> None:
    with pytest.raises(ScalarError, match="entry 'rate': ") as caught:
        to_scalars({"rate": value})
    assert text in str(caught.value)


def test_a_scalar_without_a_value_is_an_error() -> None:
    with pytest.raises(ScalarError, match="entry 'k': has no value"):
        from_scalars({"k": stream_pb2.Scalar()})


def test_an_instruction_has_what_it_was_given() -> None:
    message = instruction("train", config={"epochs": 3}, tensors={"w": [1.0]}, payload=b"p")
    assert message.WhichOneof("kind") == "instruction"
    assert message.instruction.name == "train"
    assert message.instruction.config["epochs"].int_value == 3
    assert to_arrays(message.instruction.tensors)["w"].tolist() == [1.0]
    assert message.instruction.payload == b"p"


def test_a_result_has_what_it_was_given() -> None:
    ready = to_tensor("w", [1.0], "bfloat16")
    message = result(tensors=[ready], metrics={"loss": 0.5}, weight=3, payload=b"p", status="early")
    assert message.result == stream_pb2.Result(
        status="early",
        metrics={"loss": stream_pb2.Scalar(float_value=0.5)},
        tensors=[ready],
        weight=3.0,
        payload=b"p",
    )


def test_without_arguments_they_are_set_but_bare() -> None:
    assert instruction("x").instruction == stream_pb2.Instruction(name="x")
    assert result().WhichOneof("kind") == "result"
    assert result().result == stream_pb2.Result()


def test_a_failure_has_a_code_and_a_text() -> None:
    message = failure(stream_pb2.Failure.HANDLER_ERROR, "boom")
    assert message.failure == stream_pb2.Failure(code=stream_pb2.Failure.HANDLER_ERROR, text="boom")


def test_the_error_can_be_copied_between_processes() -> None:
    error = copy.copy(ScalarError("k", "bad"))
    assert (str(error), error.name, error.problem) == ("entry 'k': bad", "k", "bad")


def test_tensors_may_come_from_a_generator() -> None:
    arrays = {"a": np.ones(2), "b": np.zeros(3)}
    made = instruction("train", tensors=(to_tensor(name, array) for name, array in arrays.items()))
    assert [tensor.name for tensor in made.instruction.tensors] == ["a", "b"]
    made_result = result(tensors=iter([to_tensor("c", 1.0)]))
    assert [tensor.name for tensor in made_result.result.tensors] == ["c"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: instruction(None), "an instruction's name is a str, such as 'train', not None"),  # type: ignore[arg-type]
        (lambda: instruction("train", config=[1]), r"map names to values; got \[1\]"),  # type: ignore[arg-type]
        (lambda: instruction("train", config={1: 1}), "names in config and metrics are str, not 1"),  # type: ignore[dict-item]
        (lambda: instruction("a", tensors=np.zeros(3)), "of Tensors; this ndarray has a float64 in it"),
        (lambda: result(tensors=[np.zeros(3)]), "this list has a ndarray in it"),  # type: ignore[list-item]
        (lambda: result(weight="3"), "a result's weight is a number, not '3'"),  # type: ignore[arg-type]
    ],
)
def test_slips_are_sentences(make: Callable[[], object], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make()
