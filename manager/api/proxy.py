"""Stands for one participant in the caller's code: ``run`` sends it an instruction and returns its answer.

Users subclass ``ParticipantProxy`` (blocking) or ``AsyncParticipantProxy`` and pass the class as
``participant_proxy_factory``; the same subclass serves in one process, over many workers, and attached to a
running coordinator.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from typing_extensions import TypeVar

from manager.api.arguments import check_timeout
from manager.api.outcome import decode_failure, decode_result
from manager.core.backend import Backend, finish, time_left
from manager.core.call import Answer, OutcomeKind
from manager.core.members import Member
from manager.errors import CallCancelled, CallTimeout, ParticipantFailed, ParticipantLost
from manager.loop import LoopThread
from manager.payloads.blobs import SHARE_SIZE, Payload
from protos import stream_pb2
from protos.envelope import is_instruction


@dataclass(frozen=True, slots=True)
class Handle:
    """What a proxy is made from. Subclasses that define ``__init__`` pass it on."""

    member: Member
    backend: Backend
    loop: LoopThread | None = None


class _Proxy:
    def __init__(self, handle: Handle) -> None:
        self._member = handle.member
        self._backend = handle.backend

    @property
    def id(self) -> str:
        """The participant's own stable id, or the one that its manager made up."""
        return self._member.participant_id

    @property
    def attributes(self) -> Mapping[str, str]:
        """What the participant said of itself when it connected."""
        return self._member.attributes

    @property
    def worker(self) -> int:
        """The index of the worker that holds its stream; to an attached script, as of its last cohort."""
        return self._member.worker

    @property
    def connected(self) -> bool:
        """Whether its session still lives. One that reconnects gets a new proxy."""
        return not self._member.gone

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} on worker {self.worker}>"


class AsyncParticipantProxy(_Proxy):
    """The asyncio twin of ParticipantProxy."""

    async def run(
        self, message: stream_pb2.ServerMessage, timeout: float | None = None
    ) -> stream_pb2.ParticipantMessage:
        """Like ParticipantProxy.run. Cancelling the task gives the call up."""
        check_timeout(timeout)
        began = time.monotonic()
        backend = self._backend
        payload = kept(message, backend)
        call = backend.start_call((self._member,), (payload,), time_left(timeout, began), None)
        try:  # as ``finish`` does, without one more coroutine: this is the busiest line of all
            await call.waiter
        except asyncio.CancelledError:
            backend.give_up_call(call)
            raise
        answer: Any = call.outcomes[0]
        return _result(self, answer, timeout)


class ParticipantProxy(_Proxy):
    """One participant, for blocking code. Safe to use from any thread but the event loop's own."""

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle)
        if handle.loop is None:
            raise TypeError(
                f"{type(self).__name__} is a blocking proxy; with the asyncio interface, "
                f"subclass AsyncParticipantProxy"
            )
        self._loop = handle.loop

    def run(
        self, message: stream_pb2.ServerMessage, timeout: float | None = None
    ) -> stream_pb2.ParticipantMessage:
        """Sends the message and blocks until the participant has answered it.

        Calls to one participant queue up in order; each gets its own answer. ``timeout`` is in seconds and
        includes the time in the queue; None waits for as long as the participant is connected.

        Raises:
            ParticipantFailed: it answered with a failure.
            ParticipantLost: its stream or its worker ended first.
            CallTimeout: no answer in time; a late one will be dropped.
            ValueError: the message is neither an instruction nor empty, or the timeout makes no sense.
        """
        check_timeout(timeout)
        began = time.monotonic()
        payload = kept(message, self._backend)

        async def run() -> Answer:
            left = time_left(timeout, began)
            call = self._backend.start_call((self._member,), (payload,), left, None)
            await finish(self._backend, call)
            return cast(Answer, call.outcomes[0])

        return _result(self, self._loop.run(run()), timeout)


def serialised(message: stream_pb2.ServerMessage) -> bytes:
    """The message's bytes. Raises ValueError for what only managers may send, such as a reconnect."""
    if not isinstance(message, stream_pb2.ServerMessage):
        raise TypeError(
            f"run() sends a ServerMessage, such as instruction('train', ...), not {type(message).__name__}"
        )
    data = message.SerializeToString()
    if not is_instruction(data):
        raise ValueError(
            f"only an instruction or an empty message can be sent to a participant, not a "
            f"{message.WhichOneof('kind')}"
        )
    return data


def kept(message: stream_pb2.ServerMessage, backend: Backend) -> Payload:
    """The message's bytes, as the backend likes them best. Raises ValueError as ``serialised`` does."""
    data = serialised(message)
    return data if len(data) < SHARE_SIZE else backend.keep(data)


A = TypeVar("A", bound=AsyncParticipantProxy, default=AsyncParticipantProxy)
B = TypeVar("B", bound=ParticipantProxy, default=ParticipantProxy)
"""The user's subclass, in asyncio (A) and blocking (B). Without a factory it is the class itself."""


def _result(proxy: _Proxy, answer: Answer, timeout: float | None) -> stream_pb2.ParticipantMessage:
    kind, payload = answer
    if kind is OutcomeKind.RESULT:
        return decode_result(payload)
    if kind is OutcomeKind.FAILURE:
        raise ParticipantFailed(proxy.id, decode_failure(payload))
    if kind is OutcomeKind.LOST:
        raise ParticipantLost(proxy.id)
    if kind is OutcomeKind.TIMED_OUT:
        raise CallTimeout(proxy.id, timeout)
    raise CallCancelled(proxy.id)
