"""The seed API: one process that holds the participants' streams and gives access to them. No ZeroMQ.

Ties servicer.py (streams) to dispatcher.py (pool and calls) directly, on an event loop in a thread of its
own. The same proxies and cohorts work over many processes by way of the coordinator package.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from manager.access.security import Security
from manager.api.arguments import check_factory
from manager.api.participants import Participants
from manager.api.proxy import B, Handle
from manager.core.backend import Backend
from manager.core.call import Call, Send
from manager.core.dispatcher import Dispatcher
from manager.core.members import ANONYMOUS, Member
from manager.errors import StartError
from manager.limits import Limits, room
from manager.listen import CAN_SHARE_PORT, Address, reserve
from manager.loop import LoopThread
from manager.payloads.blobs import Blob, Payload
from manager.reducing.reducers import check_allowed
from manager.reducing.shares import Folded, Partial
from manager.serving.endpoint import Endpoint
from manager.serving.folding import Folding
from manager.serving.incoming import checked, pieces
from manager.serving.servicer import Servicer
from manager.serving.stream import Stream
from manager.serving.verdicts import REPLACED, EndReason
from manager.timeouts import FOLDING_TIMEOUT
from manager.usage import allow_many_files
from protos import stream_pb2
from protos.envelope import Kind
from protos.messages import refusal

log = logging.getLogger("muster.security")

DEFAULT_LISTEN = "127.0.0.1:50051"

WORKER = 0
"""The index of the only worker there is."""


class _LocalManager:
    """Sink of servicer and batches, transport of the dispatcher: hands events across, in one event loop."""

    def __init__(self, reducers: Sequence[str], limits: Limits, files: int, security: Security) -> None:
        self.servicer = Servicer(self, limits, files)
        self.endpoint = Endpoint(self.servicer, limits, security)
        self.dispatcher = Dispatcher(self)
        self.dispatcher.max_message = limits.max_message
        self.dispatcher.reducers = reducers
        self.folding = Folding(self, reducers)
        self._members: dict[int, Member] = {}
        self._loop = asyncio.get_running_loop()

    # Sink

    def joined(self, stream: Stream, hello: stream_pb2.Hello) -> None:
        key = self.dispatcher.new_key()
        member = Member(
            key=key,
            participant_id=hello.participant_id or f"{ANONYMOUS}{key}",
            attributes=dict(hello.attributes),
            worker=WORKER,
            session=stream.id,
            peer=stream.peer,
            accepts_cancel=hello.accepts_cancel,
            joined_at=stream.joined_at,
        )
        self._members[stream.id] = member
        self.dispatcher.joined(member)

    def answered(self, stream: Stream, answer: Payload, kind: Kind) -> None:
        if stream.batch is None:
            self.not_folded(stream, checked(answer, kind))
        else:
            self.folding.answered(stream, answer, kind)

    def ended(self, stream: Stream, reason: EndReason.ValueType) -> None:
        stream.over = reason
        if self.folding.ended(stream):
            self.ended_late(stream)

    async def take_turns(self, patience: float) -> None:
        """Begins nothing new; returns once no instruction waits behind another one, or after so long."""
        dispatcher, over = self.dispatcher, asyncio.Event()
        dispatcher.on_settled = lambda: None if dispatcher.queued(dispatcher.pool) else over.set()
        dispatcher.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), patience)

    # Sink of the batches

    def not_folded(self, stream: Stream, answer: Payload) -> None:
        if isinstance(answer, Blob):
            answer.settle()  # from here on it is the caller's
        self.dispatcher.answered([(self._members[stream.id], stream.tag, answer)])

    def folded(self, folded: Folded) -> None:
        self.dispatcher.folded(WORKER, folded, self._members)

    def partial(self, partial: Partial) -> None:
        self.dispatcher.partial(WORKER, partial)

    def when_heard(self, callback: Callable[[], None]) -> None:
        callback()

    def free(self, stream: Stream) -> None:
        self.servicer.folded(stream)

    def ended_late(self, stream: Stream) -> None:
        member = self._members.pop(stream.id, None)
        if member is not None:
            self.dispatcher.ended(member)

    # Transport

    def keep(self, instruction: bytes) -> Payload:
        return instruction

    def instruct(self, sends: Sequence[Send]) -> None:
        last: Payload | None = None
        for send in sends:
            if send.payload is not last:
                last, to_write = send.payload, pieces(send.payload)
            batch = None
            if send.call is not None and send.call.reduction is not None:
                try:
                    batch = self.folding.batch(send.call.id, send.call.reduction)
                except ValueError as error:  # nobody need work for a reducer that can't be
                    refused = refusal(str(error))
                    refusals = [(member, send.tag, refused) for member in send.members]
                    self._loop.call_soon(self.dispatcher.answered, refusals)
                    continue
            for member in send.members:
                stream = self.servicer.streams.get(member.session)
                if stream is not None and stream.instruct(send.tag, to_write) and batch is not None:
                    self.folding.instructed(batch, stream)
            if batch is not None:
                # Here nothing is saved by saying little.
                self.folding.sent(batch, send.tag, all_there=False, hurry=True)

    def cancel(self, member: Member, tag: int) -> None:
        stream = self.servicer.streams.get(member.session)
        if stream is not None:
            stream.cancel(tag)

    def close_batch(self, worker: int, call: Call) -> None:
        self.folding.close(call.id)

    def end(self, member: Member) -> None:
        stream = self.servicer.streams.get(member.session)
        if stream is not None:
            stream.end(REPLACED)


class ParticipantManager(Participants[B]):
    """Access to the participants of a single process: ``get_participants`` and ``lease``."""

    def __init__(
        self,
        participant_proxy_factory: Callable[[Handle], B] | None,
        backend: Dispatcher,
        loop: LoopThread,
    ) -> None:
        super().__init__(participant_proxy_factory, loop)
        self._dispatcher = backend

    def _get_backend(self) -> Backend:
        return self._dispatcher

    def __len__(self) -> int:
        """How many participants are pooled."""
        return len(self._dispatcher.pool)


class Server:
    """The running gRPC server of a single process. Stop it, or use it as a context manager."""

    def __init__(self, loop: LoopThread, manager: _LocalManager, address: str) -> None:
        self._loop = loop
        self._manager = manager
        self._stopped = threading.Event()
        self.address = address
        """``host:port`` where participants connect."""

    @property
    def refused(self) -> dict[str, int]:
        """How many participants were turned away, streams ended and connections closed so far, by cause
        (refused.py)."""
        return dict(self._manager.servicer.refused)

    @property
    def troubles(self) -> list[str]:
        """What is wrong, such as with files of certificates and tokens: a sentence each."""
        return self._manager.endpoint.troubles

    def start(self) -> None:
        """Does nothing: the server already serves. Here for code written for a plain gRPC server."""

    def stop(self, grace: float = 0.0) -> None:
        """Ends all streams, after at most ``grace`` seconds in which running instructions may finish.

        Calls that still run then end as lost. May be called more than once.
        """
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._loop.run(self._stop(grace))
        self._loop.close()

    async def _stop(self, grace: float) -> None:
        until = time.monotonic() + grace
        await self._manager.take_turns(grace)
        await self._manager.endpoint.drain(max(0.0, until - time.monotonic()))
        await self._manager.folding.finish(FOLDING_TIMEOUT)
        self._manager.dispatcher.close()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Blocks until ``stop`` is called; returns False if ``timeout`` seconds pass first."""
        return self._stopped.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def create_participant_manager(
    participant_proxy_factory: Callable[[Handle], B] | None = None,
    listen: str | None = None,
    reducers: Sequence[str] = (),
    limits: Limits | None = None,
    security: Security | None = None,
) -> tuple[Server, ParticipantManager[B]]:
    """Starts to serve participants from this process alone.

    Args:
        participant_proxy_factory: your subclass of ParticipantProxy; None for ParticipantProxy itself.
        listen: ``host:port`` for participants (port 0: any free one). By default the environment variable
            MUSTER_LISTEN, or else 127.0.0.1:50051.
        reducers: import paths (``package.module:Class``) that ``cohort.reduce`` may name.
        limits: of participants, joins and sizes (manager.limits.Limits). By default as many participants as
            this process may open files for, which is raised to what the system allows.
        security: TLS and tokens (manager.Security). By default neither, on loopback only.

    Returns:
        The server, which is running and must be stopped, and the participant manager.

    Raises:
        AddressInUse: another process listens there.
        StartError: the address can't be listened on (or not without encryption), files of ``security`` can't
            be used, or this process may open too few files for the limits.
        ValueError: a reducer can't be imported.
    """
    if isinstance(reducers, str):
        raise TypeError(f"reducers must be a list of import paths, not {reducers!r}")
    check_factory(participant_proxy_factory)
    check_allowed(reducers)
    limits, files = limits or Limits(), allow_many_files()
    try:
        room(limits, files)
    except ValueError as error:
        raise StartError(str(error)) from None
    address = Address.parse(listen or os.environ.get("MUSTER_LISTEN") or DEFAULT_LISTEN)
    security = security or Security()
    if (warning := security.warning(address)) is not None:
        log.warning(warning)
    reservation = reserve(address)
    try:
        loop = LoopThread("muster-manager")
        try:
            manager, served = loop.run(_start(reservation.address, reducers, limits, files, security))
        except BaseException:
            loop.close()
            raise
    finally:
        reservation.close()
    participants = ParticipantManager(participant_proxy_factory, manager.dispatcher, loop)
    return Server(loop, manager, str(served)), participants


async def _start(
    address: Address, reducers: Sequence[str], limits: Limits, files: int, security: Security
) -> tuple[_LocalManager, Address]:
    manager = _LocalManager(reducers, limits, files, security)
    # Shared with the reservation alone, which is let go as soon as this server listens.
    return manager, await manager.endpoint.start(address, share_port=CAN_SHARE_PORT)
