"""Whatever a handler returns or raises, there is one answer, and it says what happened."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
from typing import Any

import numpy as np
import pytest

from participant_sdk import Instruction, Participant, Result, client
from participant_sdk.handlers import Handler, Handlers, answer, answer_async, is_async
from protos import stream_pb2
from protos.messages import failure, instruction, result
from protos.sliced import ReceivedMessage
from protos.tensors import to_arrays, to_tensor

Failure = stream_pb2.Failure
TRAIN = instruction("train", config={"epochs": 3}, tensors={"w": np.arange(3.0)}, payload=b"p")


def answer_of(
    handler: Handler, message: stream_pb2.ServerMessage = TRAIN, *, cancelled: bool = False
) -> stream_pb2.ParticipantMessage:
    flag = threading.Event()
    if cancelled:
        flag.set()
    if is_async(handler):
        data = asyncio.run(answer_async(handler, ReceivedMessage(message), flag))
    else:
        data = answer(handler, ReceivedMessage(message), flag)
    return stream_pb2.ParticipantMessage.FromString(bytes(data))


def as_handler(function: Any, *, asynchronous: bool) -> Handler:
    async def asynchronously(instruction: Instruction) -> Any:
        return function(instruction)

    return asynchronously if asynchronous else function


def raise_(error: BaseException) -> None:
    raise error


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
def test_a_handler_sees_plain_values_and_arrays(asynchronous: bool) -> None:
    seen: list[Instruction] = []
    answer_of(as_handler(seen.append, asynchronous=asynchronous))
    (view,) = seen
    assert (view.name, view.config, view.payload) == ("train", {"epochs": 3}, b"p")
    assert view.tensors["w"].tolist() == [0, 1, 2]
    assert not view.cancelled.is_set()


@both
@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, stream_pb2.ParticipantMessage()),
        (Result(), result()),
        (
            Result(metrics={"loss": 1.5}, weight=3, payload=b"p", status="early"),
            result(metrics={"loss": 1.5}, weight=3, payload=b"p", status="early"),
        ),
        ({"w": np.ones(2)}, result(tensors={"w": np.ones(2)})),
        (Result(tensors={"w": [1.0]}), result(tensors={"w": [1.0]})),
        (
            Result(tensors=[to_tensor("w", [1.0], "bfloat16")]),
            result(tensors=[to_tensor("w", [1.0], "bfloat16")]),
        ),
        (result(weight=1), result(weight=1)),
        (failure(Failure.RESOURCE_EXHAUSTED, "flat"), failure(Failure.RESOURCE_EXHAUSTED, "flat")),
        (stream_pb2.ParticipantMessage(), stream_pb2.ParticipantMessage()),
    ],
)
def test_what_may_be_returned(
    returned: Any, expected: stream_pb2.ParticipantMessage, asynchronous: bool
) -> None:
    assert answer_of(as_handler(lambda _: returned, asynchronous=asynchronous)) == expected


@both
@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (3, "TypeError: a handler returned int; return a Result, a dict of arrays"),
        ({"w": object()}, "TensorError: tensor 'w': dtype object can't be sent"),
        (Result(metrics={"loss": [1]}), "ScalarError: entry 'loss': a list can't be sent"),
        (
            stream_pb2.ParticipantMessage(leave=stream_pb2.Leave()),
            "TypeError: a handler may return a result or a failure, not a leave message",
        ),
    ],
)
def test_what_may_not_be_returned_is_the_handlers_error(
    returned: Any, text: str, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    message = answer_of(as_handler(lambda _: returned, asynchronous=asynchronous))
    assert message.failure.code == Failure.HANDLER_ERROR
    assert message.failure.text.startswith(text)
    (record,) = caplog.records
    assert (
        record.getMessage() == f"the handler of 'train' returned what can't be sent ({message.failure.text})"
    )
    assert record.exc_info is None, "it would have no line of the handler's"


@both
@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("bad data"), Failure.HANDLER_ERROR, "ValueError: bad data"),
        (KeyError("w"), Failure.HANDLER_ERROR, "KeyError: 'w'"),
        (MemoryError("8 GiB"), Failure.RESOURCE_EXHAUSTED, "MemoryError: 8 GiB"),
        (SystemExit(3), Failure.HANDLER_ERROR, "SystemExit: 3"),
        (KeyboardInterrupt(), Failure.HANDLER_ERROR, "KeyboardInterrupt: "),
        (asyncio.CancelledError(), Failure.HANDLER_ERROR, "CancelledError: "),
        (ValueError("\ud800"), Failure.HANDLER_ERROR, "ValueError: \\ud800"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_handler_raises_is_a_failure(
    error: BaseException, code: int, text: str, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    message = answer_of(as_handler(lambda _: raise_(error), asynchronous=asynchronous))
    assert (message.failure.code, message.failure.text) == (code, text)
    (record,) = caplog.records
    assert record.name == "muster.participant"
    assert "'train'" in record.getMessage()
    assert record.exc_info is not None


def test_a_long_text_is_cut() -> None:
    assert len(answer_of(lambda _: raise_(ValueError("x" * 10**6))).failure.text) == 4000


@both
def test_once_cancelled_an_error_is_a_cancellation_and_a_result_is_a_result(asynchronous: bool) -> None:
    fails = as_handler(lambda _: raise_(ValueError("stopped")), asynchronous=asynchronous)
    assert answer_of(fails, cancelled=True) == failure(Failure.CANCELLED, "ValueError: stopped")
    succeeds = as_handler(lambda _: Result(weight=1), asynchronous=asynchronous)
    assert answer_of(succeeds, cancelled=True) == result(weight=1)


@both
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"tensors": [stream_pb2.Tensor(name="w", dtype=stream_pb2.FLOAT32, shape=[2], data=b"1")]},
            "tensor 'w'",
        ),
        ({"config": {"k": stream_pb2.Scalar()}}, "entry 'k'"),
    ],
)
def test_what_can_not_be_decoded_never_reaches_a_handler(
    fields: dict[str, Any], text: str, asynchronous: bool
) -> None:
    message = stream_pb2.ServerMessage(instruction=stream_pb2.Instruction(name="train", **fields))
    reply = answer_of(as_handler(lambda _: pytest.fail("reached"), asynchronous=asynchronous), message)
    assert reply.failure.code == Failure.INVALID_INSTRUCTION
    assert text in reply.failure.text


def test_a_plain_function_that_returns_a_coroutine_is_told_apart() -> None:
    async def inner() -> None: ...

    assert "returned coroutine" in answer_of(lambda _: inner()).failure.text


def test_callable_objects_and_partials_are_told_apart_too() -> None:
    class Plain:
        def __call__(self, instruction: Instruction) -> None: ...

    class Asynchronous:
        async def __call__(self, instruction: Instruction) -> None: ...

    async def function(extra: int, instruction: Instruction) -> None: ...

    assert not is_async(Plain())
    assert is_async(Asynchronous())
    assert is_async(functools.partial(function, 1))


def reply_without_handler(
    handlers: Handlers, message: stream_pb2.ServerMessage
) -> stream_pb2.ParticipantMessage:
    found = handlers.find(message)
    assert isinstance(found, bytes)
    return stream_pb2.ParticipantMessage.FromString(found)


def test_an_unknown_name_is_told_which_there_are() -> None:
    handlers = Handlers()
    assert reply_without_handler(handlers, TRAIN).failure == Failure(
        code=Failure.UNKNOWN_INSTRUCTION,
        text="no handler for 'train'; this participant handles none at all",
    )
    handlers.add("fit", print)
    handlers.add("evaluate", print)
    assert reply_without_handler(handlers, TRAIN).failure.text.endswith("handles 'evaluate', 'fit'")


def test_an_empty_message_gets_an_empty_answer() -> None:
    assert reply_without_handler(Handlers(), stream_pb2.ServerMessage()) == stream_pb2.ParticipantMessage()


def test_a_message_of_the_future_is_not_guessed_at() -> None:
    message = stream_pb2.ServerMessage.FromString(b"\x7a\x00")  # field 15
    assert reply_without_handler(Handlers(), message).failure.code == Failure.INVALID_INSTRUCTION


def test_the_default_handler_takes_every_other_name() -> None:
    def train(instruction: Instruction) -> None: ...

    def anything(instruction: Instruction) -> None: ...

    handlers = Handlers()
    handlers.add("train", train)
    handlers.add(None, anything)
    assert handlers.find(TRAIN) == train
    assert handlers.find(instruction("other")) == anything
    assert handlers.find(stream_pb2.ServerMessage()) == anything


def test_mistakes_in_registering_are_told_at_once() -> None:
    participant = Participant()

    @participant.on("train")
    def train(instruction: Instruction) -> None: ...

    assert callable(train)
    with pytest.raises(ValueError, match="a handler for 'train' already"):
        participant.on("train")(train)
    participant.on()(train)
    with pytest.raises(ValueError, match="a handler for any name already"):
        participant.on()(train)
    with pytest.raises(TypeError, match=r'write @participant\.on\("train"\)'):
        participant.on(train)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not int"):
        participant.on("other")(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="attribute 'cores'=4"):
        Participant("a", {"cores": 4})  # type: ignore[dict-item]
    for attributes in (["x"], "x", 7):
        with pytest.raises(TypeError, match="attributes must map names to values, not "):
            Participant("a", attributes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an id is text, not 7"):
        Participant(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an id is text, not 0"):
        client.connection("host:1", participant_id=0)  # type: ignore[arg-type]


def add_in_place(instruction: Instruction) -> None:
    w = instruction.tensors["w"]
    w += 1


def set_an_item(instruction: Instruction) -> None:
    instruction.tensors["w"][0] = 1


def sort_in_place(instruction: Instruction) -> None:
    instruction.tensors["w"].sort()


def fill(instruction: Instruction) -> None:
    instruction.tensors["w"].fill(1)


@pytest.mark.parametrize("handler", [add_in_place, set_an_item, sort_in_place, fill])
def test_arrays_of_an_instruction_are_read_only(handler: Handler, caplog: pytest.LogCaptureFixture) -> None:
    text = answer_of(handler).failure.text
    hint = "the arrays of an instruction are shared: .copy() what you change in place"
    assert re.fullmatch(f"ValueError: .* is read-only; {re.escape(hint)}", text)
    (record,) = caplog.records
    assert record.getMessage() == f"the handler of 'train' failed; {hint}"
    assert to_arrays(TRAIN.instruction.tensors)["w"].tolist() == [0, 1, 2]
