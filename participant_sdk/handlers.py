"""Which function carries out which instruction, and what becomes of what it returns or raises.

Decides the one answer to an instruction: its handler's result, or a failure that says why there is none. When
a handler runs, and where its answer goes, is runner.py's business.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from participant_sdk.instruction import Instruction, Result, Returned
from participant_sdk.logs import log_of
from protos import stream_pb2
from protos.messages import ScalarError, failure
from protos.sliced import ReceivedMessage
from protos.tensors import TensorError

Handler: TypeAlias = Callable[[Instruction], Returned | Awaitable[Returned]]
H = TypeVar("H", bound=Callable[[Any], Any])

_MAX_TEXT: Final = 4000
_READ_ONLY: Final = ("array is read-only", "destination is read-only")
"""How NumPy, and what is built on it, ends its words where an array can't be changed."""

_Code = stream_pb2.Failure


class Handlers:
    """The handlers of one participant, by the name of the instruction."""

    def __init__(self) -> None:
        self._by_name: dict[str | None, Handler] = {}

    def add(self, name: str | None, handler: Handler) -> None:
        """``name`` None stands for every name that has no handler of its own. Raises ValueError for a second
        handler of one name."""
        if not callable(handler):
            raise TypeError(f"a handler is a function of one instruction, not {type(handler).__name__}")
        if name in self._by_name:
            raise ValueError(f"there is a handler for {'any name' if name is None else repr(name)} already")
        self._by_name[name] = handler

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def find(self, message: stream_pb2.ServerMessage) -> Handler | bytes:
        """The handler of the message, or the answer to it where there is none. Bulk doesn't matter."""
        kind = message.WhichOneof("kind")
        if kind is None and message.ByteSize():
            return _failed(_Code.INVALID_INSTRUCTION, "a message of a kind that this participant can't read")
        handler = self._by_name.get(message.instruction.name) or self._by_name.get(None)
        if handler is not None:
            return handler
        if kind is None:  # an empty message means "continue"; so does an empty answer
            return b""
        known = ", ".join(sorted(repr(name) for name in self._by_name if name is not None)) or "none at all"
        return _failed(
            _Code.UNKNOWN_INSTRUCTION,
            f"no handler for {message.instruction.name!r}; this participant handles {known}",
        )


def is_async(handler: Handler) -> bool:
    """Whether the handler belongs in the event loop rather than in a thread."""
    call = getattr(handler, "__call__", None)  # noqa: B004 (of an object that is called like a function)
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def answer(
    handler: Handler, message: ReceivedMessage, cancelled: threading.Event, participant_id: str = ""
) -> bytes | memoryview:
    """Carries the message out with a plain function; returns the serialised answer. Never raises.

    Whatever is large in the message is the handler's alone: it is freed when that lets go of it.
    """
    try:
        returned = handler(_read(message, cancelled))
        if inspect.iscoroutine(returned):
            returned.close()
        return _sendable(returned)
    except BaseException as error:
        return _failure_of(error, message, cancelled, participant_id)


async def answer_async(
    handler: Handler, message: ReceivedMessage, cancelled: threading.Event, participant_id: str = ""
) -> bytes | memoryview:
    """The same with a coroutine function."""
    try:
        returned: Any = handler(_read(message, cancelled))
        return _sendable(await returned)
    except BaseException as error:
        return _failure_of(error, message, cancelled, participant_id)


def cancelled_before_it_began() -> bytes:
    """The answer to an instruction that no handler was given any more."""
    return _failed(_Code.CANCELLED, "cancelled before it began")


class _UndecodableError(Exception):
    pass


class _UnsendableError(Exception):
    """What a handler returned can't be an answer: ``error`` says why."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _read(message: ReceivedMessage, cancelled: threading.Event) -> Instruction:
    try:
        return Instruction.from_message(message, cancelled)
    except (TensorError, ScalarError) as error:
        raise _UndecodableError(str(error)) from error


def _sendable(returned: object) -> bytes | memoryview:
    try:
        return _serialised(returned)
    except Exception as error:
        raise _UnsendableError(error) from None


def _serialised(returned: object) -> bytes | memoryview:
    match returned:
        case None:
            return b""
        case Result():
            return returned.encode()
        case stream_pb2.ParticipantMessage():
            kind = returned.WhichOneof("kind")
            if kind not in (None, "result", "failure"):
                raise TypeError(f"a handler may return a result or a failure, not a {kind} message")
            return returned.SerializeToString()
        case Mapping():
            return Result(tensors=returned).encode()
        case _:
            raise TypeError(
                f"a handler returned {type(returned).__name__}; return a Result, a dict of arrays, "
                f"a ParticipantMessage or None"
            )


def _failure_of(
    error: BaseException, received: ReceivedMessage, cancelled: threading.Event, participant_id: str
) -> bytes:
    name = received.message.instruction.name
    trace: BaseException | None = error
    if isinstance(error, _UnsendableError):
        error, trace = error.error, None  # there is no line of the handler's in it
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, _UndecodableError):
        log_of(participant_id, logging.ERROR, f"can't decode instruction {name!r}: {error}")
        return _failed(_Code.INVALID_INSTRUCTION, str(error))
    if cancelled.is_set():
        log_of(participant_id, logging.INFO, f"the handler of {name!r} stopped as asked ({text})")
        return _failed(_Code.CANCELLED, text)
    did = "failed" if trace is not None else f"returned what can't be sent ({text})"
    if isinstance(error, ValueError) and str(error).endswith(_READ_ONLY):
        hint = "the arrays of an instruction are shared: .copy() what you change in place"
        did, text = f"{did}; {hint}", f"{text}; {hint}"
    log_of(participant_id, logging.ERROR, f"the handler of {name!r} {did}", trace)
    code = _Code.RESOURCE_EXHAUSTED if isinstance(error, MemoryError) else _Code.HANDLER_ERROR
    return _failed(code, text)


def _failed(code: stream_pb2.Failure.Code.ValueType, text: str) -> bytes:
    clean = text.encode("utf-8", "backslashreplace").decode()  # protobuf takes no lone surrogates
    return failure(code, clean[:_MAX_TEXT]).SerializeToString()
