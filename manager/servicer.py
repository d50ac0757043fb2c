"""Reads the participants' streams: a thin gRPC shell around session.py, one coroutine per participant.

Messages pass through as opaque bytes: only the first message (a hello) is parsed, and chunks. What happens is
told to a ``Sink``: in a worker the link to the coordinator (worker.py), in a single process the dispatcher
(server.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from manager.blobs import Blob, Payload, view_of
from manager.session import Action, BreachError, Session, State
from manager.spool import NoRoomError, Spool
from manager.stream import EndReason, Stream, Verdict
from protos import stream_pb2
from protos.chunks import MAX_MESSAGE_SIZE, WHOLE_SIZE, Assembler, Pieces, in_memory, read_chunk
from protos.envelope import Kind, MalformedMessageError, kind_of
from protos.frames import OWN_FRAME
from protos.messages import failure, refusal
from protos.sliced import check_result

log = logging.getLogger("muster.servicer")

SERVICE = "muster.stream.v1.ParticipantManager"

ANONYMOUS = "anonymous-"
"""How the ids begin that managers make up. No participant may give itself such a one."""


class Sink(Protocol):
    """Who is told of what participants do. None of these may block or raise.

    ``ended`` follows ``joined`` exactly once; ``answered`` only comes between the two.
    """

    def joined(self, stream: Stream, hello: stream_pb2.Hello) -> None: ...

    def answered(self, stream: Stream, answer: Payload, kind: Kind) -> None: ...

    def ended(self, stream: Stream, reason: EndReason.ValueType) -> None: ...


class Servicer:
    """Serves ParticipantManager.Connect."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ids = itertools.count(1)
        self._spool = Spool()
        self.streams: dict[int, Stream] = {}  # those of pooled participants
        self.violations = 0
        self.draining = False
        self.drained = asyncio.Event()  # draining, and nobody is pooled any more

    def handler(self) -> grpc.GenericRpcHandler:
        # Identity serialisers: bytes in, bytes out.
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Connect": grpc.stream_stream_rpc_method_handler(self.connect)}
        )

    def drain(self) -> None:
        """Tells participants to reconnect: the idle ones now, those at work once they have answered.

        Those that have not said hello yet are told when they do.
        """
        self.draining = True
        for stream in list(self.streams.values()):
            if not stream.busy:
                self._move(stream)
        self._check_drained()

    async def connect(
        self, _requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        """The life of one stream."""
        stream = Stream(next(self._ids), context)
        reason, verdict, gone = EndReason.LOST, None, False
        try:
            if await self._converse(stream, context):
                reason = EndReason.LEFT
        except BreachError as breach:
            verdict = (EndReason.VIOLATION, grpc.StatusCode.FAILED_PRECONDITION, str(breach))
        except MalformedMessageError as malformed:
            verdict = (EndReason.VIOLATION, grpc.StatusCode.INVALID_ARGUMENT, str(malformed))
        except asyncio.CancelledError:
            verdict = stream.verdict
            gone = verdict is None
            if gone:
                raise
        finally:
            stream.session.ended()
            self._out(stream, verdict[0] if verdict is not None else reason)
            stream.close() if gone else await stream.settle()
        if verdict is not None:
            await self._abort(stream, context, verdict)

    async def _converse(self, stream: Stream, context: grpc.aio.ServicerContext[bytes, bytes]) -> bool:
        """Reads until the end; returns whether the participant took its leave."""
        session, sink, read = stream.session, self._sink, context.read
        data: Any = None
        assembler: Assembler[Payload] | None = None
        left = False
        while True:
            data = None  # not to be kept while this waits for the next one
            data = await read()
            if data is grpc.aio.EOF:
                return left
            kind = kind_of(data)
            if kind is Kind.CHUNK:
                if assembler is None:
                    assembler = await self._begin(data, session)
                whole = _add(data, assembler)
                if whole is None:
                    continue
                data, kind = whole
                assembler = None
            elif assembler is not None:
                raise BreachError(
                    f"unexpected {kind.name.lower()} message: a chunked message isn't whole yet"
                )
            # A hello that can't be read must not be pooled first.
            hello = _hello(data) if session.state is State.NEW else None
            action = session.received(kind)
            if action is Action.ANSWER:
                sink.answered(stream, data, kind)
                whole = None
                if self.draining:
                    self._move(stream)
            elif action is Action.LEAVE:
                left = True
                self._out(stream, EndReason.LEFT)
            elif hello is not None:
                self._join(stream, hello)

    async def _begin(self, first: bytes, session: Session) -> Assembler[Payload]:
        """Makes room for a message whose first chunk this is."""
        if session.state is not State.BUSY:
            raise BreachError("unexpected chunk: only an answer may be so large")
        total, _ = read_chunk(first)
        room = await self._spool.room(total) if 0 < total <= MAX_MESSAGE_SIZE else None
        return Assembler(lambda size: room or in_memory(size))

    def _join(self, stream: Stream, hello: stream_pb2.Hello) -> None:
        stream.hello = hello
        if self.draining:
            stream.reconnect()
        else:
            self.streams[stream.id] = stream
            self._sink.joined(stream, hello)

    def _move(self, stream: Stream) -> None:
        """Tells a participant that isn't at work to come back in a moment, to whoever listens then."""
        stream.reconnect()
        self._out(stream, EndReason.MOVED)

    def _out(self, stream: Stream, reason: EndReason.ValueType) -> None:
        """The participant, if it was pooled, isn't any more."""
        if self.streams.pop(stream.id, None) is not None:
            self._sink.ended(stream, reason)
            self._check_drained()

    def _check_drained(self) -> None:
        if self.draining and not self.streams:
            self.drained.set()

    async def _abort(
        self, stream: Stream, context: grpc.aio.ServicerContext[bytes, bytes], verdict: Verdict
    ) -> None:
        reason, code, text = verdict
        if reason == EndReason.VIOLATION:
            self.violations += 1
            log.warning("ended the stream of %s: %s", stream, text)
        await context.abort(code, text)


def _add(data: bytes, assembler: Assembler[Payload]) -> tuple[Payload, Kind] | None:
    """Adds a chunk; returns the whole message and its kind if it was the last."""
    try:
        whole = assembler.add(*read_chunk(data))
    except NoRoomError as error:
        return failure(stream_pb2.Failure.RESOURCE_EXHAUSTED, str(error)).SerializeToString(), Kind.FAILURE
    if whole is None:
        return None
    kind = kind_of(whole.head(), len(whole)) if isinstance(whole, Blob) else kind_of(bytes(whole))
    if kind not in (Kind.RESULT, Kind.FAILURE):
        raise MalformedMessageError("only a result or a failure may come in chunks")
    return whole, kind


def _hello(data: bytes) -> stream_pb2.Hello:
    hello = _parse(data).hello
    if hello.participant_id.startswith(ANONYMOUS):
        raise MalformedMessageError(f"participant ids that begin with {ANONYMOUS!r} are made up by managers")
    return hello


def _parse(data: bytes) -> stream_pb2.ParticipantMessage:
    try:
        return stream_pb2.ParticipantMessage.FromString(data)
    except DecodeError:
        raise MalformedMessageError(f"a message of {len(data)} bytes that is no ParticipantMessage") from None


def pieces(payload: Payload) -> Iterable[bytes]:
    """What to write to a stream for this instruction. Any number of streams may go through it."""
    if payload.__class__ is bytes and len(payload) <= WHOLE_SIZE:
        return (payload,)
    return Pieces(view_of(payload), stream_pb2.ServerMessage)


def checked(answer: Payload, kind: Kind) -> Payload:
    """The answer, or a failure in its place if it can't be read: what reaches a caller always can."""
    size = len(answer)
    try:
        if kind is Kind.RESULT:
            check_result(view_of(answer))
        elif kind is Kind.FAILURE:
            answer = bytes(view_of(answer)) if len(answer) < OWN_FRAME else b"\xff"  # larger than any text
            _parse(answer)
    except MalformedMessageError:
        text = f"its answer of {size} bytes is not a valid ParticipantMessage"
        return refusal(text)
    return answer
