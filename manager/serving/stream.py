"""One participant's stream as the rest of the manager sees it: what can be written to it.

A write is carried out by a short-lived task, one at a time and in order; reading is servicer.py's business,
and what may be said when is session.py's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from manager.core.members import printable, readable
from manager.serving.session import Session, State
from manager.serving.verdicts import EndReason, Verdict
from protos import stream_pb2

if TYPE_CHECKING:
    from manager.access.identity import Identity
    from manager.reducing.arithmetic import ResultBatch

WRITE_TIMEOUT = 2.0
"""Seconds that the last write to a stream may take before the stream is cut off."""

_CANCEL = stream_pb2.ServerMessage(cancel=stream_pb2.Cancel()).SerializeToString()


class Wave:
    """The answers to one broadcast that are still to come."""

    __slots__ = ("hurry", "left")

    def __init__(self, *, hurry: bool) -> None:
        self.hurry = hurry  # whether each is waited for, not only all of them
        self.left = 0


class Stream:
    """Made by the coroutine that serves the stream."""

    __slots__ = (
        "_context",
        "_outbox",
        "_stopped",
        "_task",
        "_writer",
        "batch",
        "folding",
        "hello",
        "id",
        "identity",
        "joined_at",
        "over",
        "peer",
        "session",
        "tag",
        "verdict",
        "wave",
    )

    def __init__(
        self, id: int, context: grpc.aio.ServicerContext[bytes, bytes], identity: Identity | None = None
    ) -> None:
        self.id = id
        self.identity = identity  # as its credentials say
        self.session = Session()
        self.hello: stream_pb2.Hello | None = None
        self.peer = context.peer()
        self.joined_at = 0.0  # monotonic seconds
        self.tag = 0  # of the instruction in flight
        self.wave: Wave | None = None  # of the broadcast that it has been sent
        # folding.py's:
        self.batch: ResultBatch | None = None  # that the answer belongs to
        self.folding: ResultBatch | None = None  # in which the answer is being folded in
        self.over: EndReason.ValueType | None = None  # how it ended meanwhile
        self.verdict: Verdict | None = None
        self._context = context
        self._task = asyncio.current_task()
        self._outbox: deque[Iterable[bytes]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._stopped = False

    def __str__(self) -> str:
        if self.hello is not None and self.hello.participant_id:
            return f"participant {printable(self.hello.participant_id)} ({readable(self.peer)})"
        return f"a participant at {readable(self.peer)}"

    @property
    def busy(self) -> bool:
        return self.session.state is State.BUSY

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do, and its last answer isn't being folded in any more."""
        return self.session.state is State.IDLE and self.folding is None

    def instruct(self, tag: int, pieces: Iterable[bytes]) -> bool:
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

    def reconnect(self, delay: float, address: str = "") -> None:
        """Tells the participant, which isn't at work, to come back after ``delay`` seconds. Its session is
        over.

        Without an address it comes back to the one that it has used.
        """
        self.session.ended()
        self._write([reconnect_message(delay, address)])

    def end(self, verdict: Verdict) -> None:
        """Ends the stream from this side, unless its session is over."""
        if self.session.state is not State.ENDED:
            self.cut(verdict)

    def cut(self, verdict: Verdict) -> None:
        """Ends the stream, even one whose session is over. It must still be read."""
        if self.verdict is None and self._task is not None:
            self.verdict = verdict
            self._task.cancel()

    async def settle(self) -> None:
        """Lets the write under way come to its end, and begins no other; WRITE_TIMEOUT at most.

        gRPC can't send a stream's status while a message is still being sent.
        """
        self._stopped = True
        self._outbox.clear()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=WRITE_TIMEOUT)
        self.close()

    def close(self) -> None:
        """The stream is over: nothing more is written."""
        self._stopped = True
        self._outbox.clear()
        if self._writer is not None:
            self._writer.cancel()

    def _write(self, pieces: Iterable[bytes]) -> None:
        self._outbox.append(pieces)
        if self._writer is None:
            self._writer = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            write = self._context.write
            while self._outbox:
                for piece in self._outbox.popleft():
                    await write(piece)
                    if self._stopped:
                        return
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError):
            self._outbox.clear()  # the stream is over; its reader sees that too
        finally:
            self._writer = None


def reconnect_message(delay: float, address: str = "") -> bytes:
    """What tells a participant to leave, and to come back after so many seconds."""
    reconnect = stream_pb2.Reconnect(delay_seconds=delay, address=address)
    return stream_pb2.ServerMessage(reconnect=reconnect).SerializeToString()
