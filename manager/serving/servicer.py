"""Reads the participants' streams: a thin gRPC shell around session.py, one coroutine per participant.

Messages pass through as opaque bytes: only the first message (a hello) is parsed, and chunks. What happens is
told to a ``Sink``: in a worker the link to the coordinator (worker.py), in a single process the dispatcher
(server.py). Who may join, admission.py decides; how long streams may keep others waiting, overdue.py; when
the loop has done enough for one turn, turns.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from manager.access.identity import Identity, ImpostorError
from manager.limits import Limits, metadata_size, room
from manager.logs import Sparingly
from manager.payloads.blobs import Payload
from manager.payloads.memory import Memory
from manager.payloads.spool import Spool
from manager.serving.admission import Admission
from manager.serving.crowds import Crowds, Entry
from manager.serving.incoming import add_chunk, read_hello
from manager.serving.overdue import Overdue
from manager.serving.refusals import Refusals
from manager.serving.refused import Cause, Refused
from manager.serving.session import Action, BreachError, Session, State
from manager.serving.stream import Stream
from manager.serving.turns import TAKES_LONG, Turns
from manager.serving.verdicts import (
    CHUNK_TIMEOUT,
    LEAVE_TIMEOUT,
    LINGERED,
    REVOKED,
    SILENT,
    STALLED,
    STAYED,
    EndReason,
    Verdict,
    speechless,
)
from protos import stream_pb2
from protos.chunks import Assembler, in_memory, read_chunk
from protos.envelope import CompressedMessageError, Kind, MalformedMessageError, kind_of
from protos.messages import failure

log = logging.getLogger("muster.servicer")

SERVICE = "muster.stream.v1.ParticipantManager"

SILENT_TIME: Final = 5.0
"""Seconds after which a stream on which nothing was ever said has to make room for others, when there is
none."""


class TooLargeError(Exception):
    """A message is larger than allowed. The text is for the caller and for the participant's developer."""


class Sink(Protocol):
    """Who is told of what participants do. None of these may block or raise.

    ``ended`` follows ``joined`` exactly once; ``answered`` only comes between the two.
    """

    def joined(self, stream: Stream, hello: stream_pb2.Hello) -> None: ...

    def answered(self, stream: Stream, answer: Payload, kind: Kind) -> None: ...

    def ended(self, stream: Stream, reason: EndReason.ValueType) -> None: ...

    def when_heard(self, callback: Callable[[], None]) -> None:
        """Calls back once whoever decides knows of all that has happened up to now."""
        ...


class Servicer:
    """Serves ParticipantManager.Connect."""

    def __init__(self, sink: Sink, limits: Limits, files: int, memory: Memory | None = None) -> None:
        """``files`` is how many this process may open; ``memory`` is where large answers are kept.

        Raises ValueError if it has no room for ``limits``.
        """
        self._sink = sink
        self._limits = limits
        self._room = room(limits, files)
        self.capacity = self._room.participants
        self.connections = self._room.connections  # that a server for this may keep
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._spool = Spool(limits.upload_memory, limits.upload_disk, memory)
        self._overdue = Overdue()
        self._turns = Turns()
        self._speechless = speechless(limits.hello_timeout)
        self._log = Sparingly(log)
        self.refused: Refused = Counter()  # so far, by whatever has to do with this worker's port
        self._admission = Admission(
            capacity=self.capacity,
            max_joins=limits.max_joins,
            come_back=limits.come_back,
            refused=self.refused,
            random=random.random,
            now=self._loop.time(),
        )
        self.crowds = Crowds(limits.max_per_address)
        self._open: set[Stream] = set()  # of whatever kind
        self._silent: dict[Stream, float] = {}  # those that have said nothing yet, oldest first; since when
        self.streams: dict[int, Stream] = {}  # those of pooled participants
        self.refusals = Refusals(self.refused)
        self.draining = False
        self._parting: dict[int, Callable[[], None]] = {}  # who is yet to be told to go, and how
        self.drained = asyncio.Event()  # draining, and nobody is pooled, or to be told to go, any more

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
            self._send_away(stream)
        self._check_drained()

    def move(self, session: int, delay: float, address: str = "") -> bool:
        """Tells an idle participant to come back after ``delay`` seconds, to ``address`` if there is one.

        Returns False, and does nothing, if it is at work or gone. If True, it was idle, and its end was
        reported as MOVED: an instruction that is still on its way to it has not been, and won't be, given
        to it.
        """
        stream = self.streams.get(session)
        if stream is None or not stream.idle:
            return False
        self._move(stream, delay, address)
        return True

    def folded(self, stream: Stream) -> None:
        """The stream's answer, which took a while to be folded in, is."""
        if self.draining and stream.id in self.streams:
            self._send_away(stream)

    def revoke(self, holds: Callable[[Identity], bool]) -> None:
        """Ends the streams of those whose credentials don't hold any more."""
        for stream in self._open:
            if stream.identity is not None and not holds(stream.identity):
                stream.cut(REVOKED)

    async def connect(
        self,
        _requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],
        identity: Identity | None = None,
    ) -> None:
        """The life of one stream. ``identity`` is known from credentials, if there are to be any."""
        size, most = metadata_size(context.invocation_metadata()), self._limits.max_metadata
        if size > most:
            text = f"headers of {size} bytes are over the limit of {most} bytes (--max-metadata)"
            await self.refusals.too_large(context, text)
        peer = context.peer()
        entry = self.crowds.enter(peer)
        if entry is not Entry.IN or (len(self._open) >= self._room.streams and not self._make_room()):
            try:
                await self._turn_away(context, entry)
            finally:
                self.crowds.leave(peer)
            return
        stream = Stream(next(self._ids), context, identity)
        reason, verdict, gone = EndReason.LOST, None, False
        self._open.add(stream)
        self._silent[stream] = self._loop.time()
        self._overdue.expect(stream, self._limits.hello_timeout, self._speechless)
        try:
            if await self._converse(stream, context):
                reason = EndReason.LEFT
        except BreachError as breach:
            verdict = _violation(grpc.StatusCode.FAILED_PRECONDITION, breach, Cause.PROTOCOL)
        except MalformedMessageError as malformed:
            compressed = isinstance(malformed, CompressedMessageError)
            cause = Cause.COMPRESSION if compressed else Cause.PROTOCOL
            verdict = _violation(grpc.StatusCode.INVALID_ARGUMENT, malformed, cause)
        except ImpostorError as error:
            code = grpc.StatusCode.PERMISSION_DENIED
            verdict = Verdict(EndReason.LOST, code, str(error), Cause.CREDENTIALS)
        except TooLargeError as error:
            self._answer_too_large(stream, str(error))
            verdict = _violation(grpc.StatusCode.RESOURCE_EXHAUSTED, error, Cause.MAX_MESSAGE)
        except asyncio.CancelledError:
            verdict = stream.verdict
            gone = verdict is None
            if gone:
                raise
        finally:
            self._open.discard(stream)
            self.crowds.leave(peer)
            self._silent.pop(stream, None)
            self._overdue.forget(stream)
            self._parting.pop(stream.id, None)
            stream.session.ended()
            self._out(stream, verdict.reason if verdict is not None else reason)
            stream.close() if gone else await stream.settle()
        if verdict is not None:
            await self.refusals.cut_off(stream, context, verdict)

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
                whole = add_chunk(data, assembler)
                if whole is None:
                    self._overdue.expect(stream, CHUNK_TIMEOUT, STALLED)
                    continue
                self._overdue.forget(stream)
                data, kind = whole
                assembler = None
            elif assembler is not None:
                raise BreachError(
                    f"unexpected {kind.name.lower()} message: a chunked message isn't whole yet"
                )
            if len(data) > TAKES_LONG:
                await self._turns.wait()
            # A hello that can't be read must not be pooled first.
            hello = read_hello(data, stream.identity) if session.state is State.NEW else None
            action = session.received(kind)
            if action is Action.ANSWER:
                sink.answered(stream, data, kind)
                whole = None
                if self.draining:
                    self._send_away(stream)
            elif action is Action.LEAVE:
                if not left:  # to say it again and again is no way to stay
                    self._overdue.expect(stream, LEAVE_TIMEOUT, LINGERED)
                left = True
                self._out(stream, EndReason.LEFT)
            elif hello is not None:
                self._join(stream, hello)

    async def _begin(self, first: bytes, session: Session) -> Assembler[Payload]:
        """Makes room for a message whose first chunk this is."""
        if session.state is not State.BUSY:
            raise BreachError("unexpected chunk: only an answer may be so large")
        total, _ = read_chunk(first)
        most = self._limits.max_message
        if total > most:
            raise TooLargeError(
                f"a message of {total} bytes is over the limit of {most} bytes (--max-message)"
            )
        room = await self._spool.room(total) if total > 0 else None
        return Assembler(lambda size: room or in_memory(size))

    def _answer_too_large(self, stream: Stream, text: str) -> None:
        """Its caller learns why there is no result."""
        if stream.session.received(Kind.FAILURE) is Action.ANSWER:
            answer = failure(stream_pb2.Failure.RESOURCE_EXHAUSTED, text).SerializeToString()
            self._sink.answered(stream, answer, Kind.FAILURE)

    def _join(self, stream: Stream, hello: stream_pb2.Hello) -> None:
        stream.hello = hello
        self._silent.pop(stream, None)
        self._overdue.forget(stream)
        if self.draining:
            self._send_off(stream, self._admission.move(self._loop.time()))
            return
        delay = self._admission.newcomer(len(self.streams), self._loop.time())
        if delay is None:
            stream.joined_at = time.monotonic()
            self.streams[stream.id] = stream
            self._sink.joined(stream, hello)
        else:
            self._send_off(stream, delay)
            self._log.info(
                "turned away",
                "told %s to come back in %.1f s: there are %d participants of at most %d (--max-per-worker), "
                "and %g may join per second (--max-joins)",
                stream,
                delay,
                len(self.streams),
                self.capacity,
                self._limits.max_joins,
            )

    def _send_off(self, stream: Stream, delay: float, address: str = "") -> None:
        """Tells a participant that isn't at work to come back, and sees to it that it goes."""
        stream.reconnect(delay, address)
        self._overdue.expect(stream, LEAVE_TIMEOUT, STAYED)

    def _send_away(self, stream: Stream) -> None:
        """This worker drains: the participant is told to go, unless it, or its answer, is being worked on."""
        if stream.idle:
            self._move(stream, self._admission.move(self._loop.time()))

    def _move(self, stream: Stream, delay: float, address: str = "") -> None:
        """The same, for one that is pooled. It is told so once it is known that it isn't any more."""
        stream.session.ended()
        self._parting[stream.id] = partial(self._send_off, stream, delay, address)
        self._out(stream, EndReason.MOVED)
        self._sink.when_heard(partial(self._part, stream.id))

    def _part(self, session: int) -> None:
        if (tell := self._parting.pop(session, None)) is not None:
            tell()
            self._check_drained()

    def part(self) -> None:
        """Tells all who are to be told to go; there is no time to wait."""
        for session in list(self._parting):
            self._part(session)

    def _make_room(self) -> bool:
        """Ends a stream on which nothing was said for long, if there is one."""
        for stream, since in self._silent.items():
            if self._loop.time() - since < SILENT_TIME:
                break
            del self._silent[stream]
            stream.cut(SILENT)
            return True
        return False

    async def _turn_away(self, context: grpc.aio.ServicerContext[bytes, bytes], entry: Entry) -> None:
        """There are so many streams, of all or of one address, that this one can't stay."""
        if entry is Entry.IN:  # else the process would run out of files
            cause = Cause.OPEN_FILES
            text = f"there are {len(self._open)} streams, as many as there may be"
        else:
            cause = Cause.MAX_PER_ADDRESS
            text = (
                f"more than {self._limits.max_per_address} streams are from one address (--max-per-address)"
            )
        delay = self._admission.full(self._loop.time(), cause)
        await self.refusals.too_many(context, text, delay, wait=entry is not Entry.NEVER)

    def _out(self, stream: Stream, reason: EndReason.ValueType) -> None:
        """The participant, if it was pooled, isn't any more."""
        if self.streams.pop(stream.id, None) is not None:
            self._sink.ended(stream, reason)
        self._check_drained()

    def _check_drained(self) -> None:
        if self.draining and not self.streams and not self._parting:
            self.drained.set()


def _violation(code: grpc.StatusCode, error: Exception, cause: Cause) -> Verdict:
    return Verdict(EndReason.VIOLATION, code, str(error), cause)
