"""The gRPC end of the participants' streams: a thin shell around session.py.

One coroutine per participant reads; instructions are written by a short-lived task. Messages pass through as
opaque bytes: only the first message (a hello) is parsed, and chunks. What happens is told to a ``Sink``: in
a worker the link to the coordinator (worker.py), in a single process the dispatcher (server.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from manager.listen import Address
from manager.session import Action, BreachError, Session, State
from protos import link_pb2, stream_pb2
from protos.envelope import (
    CHUNK_SIZE,
    MAX_FRAME_SIZE,
    Assembler,
    Kind,
    MalformedMessageError,
    kind_of,
    split,
)

log = logging.getLogger("muster.servicer")

SERVICE = "muster.stream.v1.ParticipantManager"

EndReason = link_pb2.EndReason

_CANCEL = stream_pb2.ServerMessage(cancel=stream_pb2.Cancel()).SerializeToString()


class Sink(Protocol):
    """Who is told of what participants do. None of these may block or raise."""

    def joined(self, stream: Stream, hello: stream_pb2.Hello) -> None: ...

    def answered(self, stream: Stream, answer: bytes) -> None: ...

    def ended(self, stream: Stream, reason: EndReason.ValueType) -> None: ...


class Stream:
    """One participant's stream as the rest of the manager sees it."""

    __slots__ = (
        "_context",
        "_outbox",
        "_task",
        "_verdict",
        "_writer",
        "hello",
        "id",
        "peer",
        "session",
        "tag",
    )

    def __init__(self, id: int, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self.id = id
        self.session = Session()
        self.hello: stream_pb2.Hello | None = None
        self.peer = context.peer()
        self.tag = 0  # of the instruction in flight
        self._context = context
        self._task = asyncio.current_task()
        self._outbox: deque[bytes] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._verdict: tuple[EndReason.ValueType, grpc.StatusCode, str] | None = None

    @property
    def busy(self) -> bool:
        return self.session.state is State.BUSY

    def instruct(self, tag: int, pieces: list[bytes]) -> bool:
        """Sends an instruction (whole, or in chunks). False if the participant isn't idle."""
        if not self.session.instructed():
            return False
        self.tag = tag
        self._write(pieces)
        return True

    def cancel(self, tag: int) -> None:
        """Asks the participant to stop, if it still works on the instruction with this tag."""
        if self.busy and self.tag == tag and self.hello is not None and self.hello.accepts_cancel:
            self._write([_CANCEL])

    def reconnect(self, delay: float) -> None:
        """Tells an idle participant to come back after ``delay`` seconds. Its session is over."""
        self.session.ended()
        message = stream_pb2.ServerMessage(reconnect=stream_pb2.Reconnect(delay_seconds=delay))
        self._write([message.SerializeToString()])

    def end(self, reason: EndReason.ValueType, code: grpc.StatusCode, text: str) -> None:
        """Ends the stream from this side with a gRPC status."""
        if self._verdict is None and self._task is not None and self.session.state is not State.ENDED:
            self._verdict = (reason, code, text)
            self._task.cancel()

    def end_replaced(self) -> None:
        """Ends the stream because the same participant has connected again."""
        self.end(
            EndReason.REPLACED,
            grpc.StatusCode.ALREADY_EXISTS,
            "a newer connection with the same participant id has taken the place of this one",
        )

    def _write(self, pieces: list[bytes]) -> None:
        self._outbox.extend(pieces)
        if self._writer is None:
            self._writer = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._outbox:
                await self._context.write(self._outbox.popleft())
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError):
            self._outbox.clear()  # the stream is over; its reader sees that too
        finally:
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.cancel()


@dataclass(slots=True)
class Counters:
    streams: int = 0  # open, whether or not they have said anything
    violations: int = 0


class Servicer:
    """Serves ParticipantManager.Connect."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ids = itertools.count(1)
        self._last: tuple[bytes, list[bytes]] = (b"", [b""])
        self.streams: dict[int, Stream] = {}  # those that have said their first message
        self.counters = Counters()

    def pieces(self, payload: bytes) -> list[bytes]:
        """What to write for this instruction; splits the same payload once, not per participant."""
        if len(payload) <= CHUNK_SIZE:
            return [payload]
        if self._last[0] is not payload:
            self._last = (payload, split(payload, stream_pb2.ServerMessage))
        return self._last[1]

    def handler(self) -> grpc.GenericRpcHandler:
        # Identity serialisers: bytes in, bytes out.
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Connect": grpc.stream_stream_rpc_method_handler(self.connect)}
        )

    async def connect(
        self, _requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        """The life of one stream."""
        stream = Stream(next(self._ids), context)
        reason = EndReason.LOST
        self.counters.streams += 1
        status: tuple[grpc.StatusCode, str] | None = None
        try:
            if await self._converse(stream, context):
                reason = EndReason.LEFT
        except BreachError as breach:
            reason, status = EndReason.VIOLATION, (grpc.StatusCode.FAILED_PRECONDITION, str(breach))
        except MalformedMessageError as malformed:
            reason, status = EndReason.VIOLATION, (grpc.StatusCode.INVALID_ARGUMENT, str(malformed))
        except asyncio.CancelledError:
            if stream._verdict is None:
                raise
            reason, *status = stream._verdict  # type: ignore[assignment]
        finally:
            self.counters.streams -= 1
            stream.close()
            self.streams.pop(stream.id, None)
            if stream.session.ended():
                self._sink.ended(stream, reason)
        if status is not None:
            code, text = status
            if reason == EndReason.VIOLATION:
                self.counters.violations += 1
                log.warning("ended the stream of %s: %s", _name(stream), text)
            await context.abort(code, text)

    async def _converse(self, stream: Stream, context: grpc.aio.ServicerContext[bytes, bytes]) -> bool:
        """Reads until the end; returns whether the participant took its leave."""
        session, sink, read = stream.session, self._sink, context.read
        assembler: Assembler | None = None
        left = False
        while True:
            data: Any = await read()
            if data is grpc.aio.EOF:
                return left
            kind = kind_of(data)
            if kind is Kind.CHUNK:
                if session.state is not State.BUSY:
                    raise BreachError("unexpected chunk: only an answer may be so large")
                assembler = assembler or Assembler()
                whole = assembler.add(_parse(data).chunk)
                if whole is None:
                    continue
                data, assembler = whole, None
                kind = kind_of(data)
            elif assembler is not None:
                raise BreachError(
                    f"unexpected {kind.name.lower()} message: a chunked message isn't whole yet"
                )
            action = session.received(kind)
            if action is Action.ANSWER:
                sink.answered(stream, data)
            elif action is Action.JOIN:
                stream.hello = _parse(data).hello
                self.streams[stream.id] = stream
                sink.joined(stream, stream.hello)
            else:
                left = True
                if self.streams.pop(stream.id, None) is not None:
                    sink.ended(stream, EndReason.LEFT)


def _parse(data: bytes) -> stream_pb2.ParticipantMessage:
    try:
        return stream_pb2.ParticipantMessage.FromString(data)
    except DecodeError:
        raise MalformedMessageError(f"a message of {len(data)} bytes that is no ParticipantMessage") from None


def _name(stream: Stream) -> str:
    if stream.hello is not None and stream.hello.participant_id:
        return f"participant {stream.hello.participant_id} ({stream.peer})"
    return f"a participant at {stream.peer}"


SERVER_OPTIONS: Mapping[str, int] = {
    # One connection's share of a storm must not make gRPC drop streams: its defaults (1,000 and 3,000
    # pending requests) end the rest with CANCELLED.
    "grpc.server.max_pending_requests": 1_000_000,
    "grpc.server.max_pending_requests_hard_limit": 1_000_000,
    # A peer that is gone without a FIN is found in 10 + 5 seconds; ping_timeout is what makes it so.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.http2.ping_timeout_ms": 5_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    # Clients may ping as often, and somewhat jittered.
    "grpc.http2.min_ping_interval_without_data_ms": 5_000,
    "grpc.max_receive_message_length": MAX_FRAME_SIZE,
}


async def start_server(
    servicer: Servicer, address: Address, *, share_port: bool
) -> tuple[grpc.aio.Server, int]:
    """Serves on the address. Returns the server and its port; raises OSError if it can't be bound."""
    options = [*SERVER_OPTIONS.items(), ("grpc.so_reuseport", int(share_port))]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((servicer.handler(),))
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise OSError(f"can't listen on {address}") from error
    await server.start()
    return server, port
