"""A training script attached to a running coordinator: the other end of server.py.

``Link`` is a backend like the dispatcher, only that every request crosses the control stream. It keeps a
member for each participant it was given, and ends everything that waits when the stream ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import cast

from coordinator.control.access import Access
from coordinator.control.passing import Outgoing, received
from coordinator.control.pending import PendingCall, PendingRequest
from coordinator.control.stream import ControlStream
from coordinator.control.writer import MAX_ITEM_BYTES, BatchWriter
from coordinator.errors import CoordinatorGone
from manager.api.arguments import check_timeout
from manager.core.backend import Acquired, Listener, Running, check_size
from manager.core.call import Answer, OutcomeKind
from manager.core.members import Member
from manager.errors import Closed, MusterError, ReductionError
from manager.payloads.blobs import Payload, share
from manager.reducing.shares import Reduction
from manager.usage import allow_many_files
from protos import control_pb2

log = logging.getLogger("muster.control")

_UNKNOWN: Answer = (OutcomeKind.LOST, b"")


class Link:
    """The backend of an attached script."""

    def __init__(self, access: Access) -> None:
        self._stream = ControlStream(access)
        self.address = self._stream.address
        self._ids = itertools.count(1)
        self._requests: dict[int, PendingRequest] = {}
        self._calls: dict[int, PendingCall] = {}
        self._given_up: dict[int, PendingCall] = {}  # that the coordinator has not said to have ended
        self._members: dict[int, Member] = {}
        self._error: MusterError | None = None
        self._draining = False
        self._max_message = MAX_ITEM_BYTES
        self.reducers: Sequence[str] = ()
        self._outgoing = Outgoing()
        self._coordinator_pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self, timeout: float | None) -> None:
        """Attaches, as soon as somebody answers there; see coordinator.connect for what it raises."""
        check_timeout(timeout)
        allow_many_files()  # each large answer takes one for a moment, and they come in crowds
        self._loop = asyncio.get_running_loop()
        welcome = await self._stream.open(timeout)
        self._outgoing.shares_memory = welcome.shares_memory
        self._draining, self._max_message = welcome.draining, welcome.max_message
        self.reducers = tuple(welcome.reducers)
        self._coordinator_pid = welcome.memory.pid
        self._writer = BatchWriter(control_pb2.ClientBatch, self._stream.write, on_error=self._stream.cancel)
        self._reader = asyncio.ensure_future(self._read())

    async def close(self) -> None:
        """Detaches: leases and calls end."""
        self._fail(Closed("the connection to the coordinator was closed"))
        self._stream.cancel()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        await self._stream.close()

    async def status(self) -> control_pb2.Status:
        """What there is and what goes on. Raises CoordinatorGone if no answer comes."""
        self._check()
        return await self._stream.status()

    # Backend

    async def acquire(
        self,
        minimum: int,
        maximum: int | None,
        where: Mapping[str, str],
        timeout: float | None,
        *,
        exclusive: bool,
    ) -> Acquired:
        self._check()
        number = next(self._ids)
        acquire = control_pb2.Acquire(
            id=number,
            min_participants=minimum,
            max_participants=maximum,
            where=where,
            timeout_seconds=timeout,
            lease=exclusive,
        )
        request = PendingRequest(asyncio.get_running_loop().create_future(), minimum, where)
        self._requests[number] = request
        self._writer.add("acquires", acquire)
        try:
            return await request.future
        except asyncio.CancelledError:
            self._writer.add("abandons", number)
            raise
        finally:
            self._requests.pop(number, None)

    def release(self, acquired_id: int) -> None:
        if self._error is None:
            self._writer.add("releases", acquired_id)

    def keep(self, instruction: bytes) -> Payload:
        return share(instruction) if self._outgoing.shares_memory else instruction

    def start_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        reduction: Reduction | None = None,
    ) -> PendingCall:
        return self._start(members, payloads, timeout, quorum, reduction, None)

    def stream_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        listener: Listener,
    ) -> PendingCall:
        return self._start(members, payloads, timeout, quorum, None, listener)

    def _start(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        reduction: Reduction | None,
        listener: Listener | None,
    ) -> PendingCall:
        self._check()
        check_size(payloads, self._max_message)
        size = sum(map(self._outgoing.size, payloads)) + 16 * len(members)
        if size > MAX_ITEM_BYTES:
            raise ValueError(
                f"the instructions of one call are {size} bytes in all; an attached script can send "
                f"{MAX_ITEM_BYTES} bytes at once"
            )
        number = next(self._ids)
        start = control_pb2.StartCall(
            id=number,
            participants=[member.key for member in members],
            # Not kept there: the call itself keeps them until it has ended.
            payloads=[self._outgoing.message(payload, keep=False) for payload in payloads],
            timeout_seconds=timeout,
            quorum=quorum,
            reduction=None if reduction is None else reduction.message(),
        )
        waiter = asyncio.get_running_loop().create_future()
        outcomes: list[Answer | None] = [_UNKNOWN] * len(members)
        call = PendingCall(number, waiter, len(members), outcomes, payloads, listener)
        if members:
            self._calls[number] = call
            self._writer.add("calls", start, size)
        else:
            self._finish(call)
        return call

    def give_up_call(self, call: Running) -> None:
        given_up = cast(PendingCall, call)
        if self._calls.pop(given_up.id, None) is not None:
            self._given_up[given_up.id] = given_up  # the coordinator may have to open its payloads yet
            self._writer.add("cancels", given_up.id)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this connection is of another event loop; connect anew in this one")
        if self._draining:
            raise self._drains()

    def _drains(self) -> CoordinatorGone:
        return CoordinatorGone(
            f"the coordinator at {self.address} is draining: what runs may finish, but nothing new "
            f"begins; attach again with coordinator.connect once it is back"
        )

    # What the coordinator says

    async def _read(self) -> None:
        try:
            while (batch := await self._stream.read()) is not None:
                self._handle(batch)
        except Exception:
            log.exception("the coordinator said something that could not be handled")
            self._stream.cancel()
        self._fail(await self._stream.ended())

    def _handle(self, batch: control_pb2.ServerBatch) -> None:
        if batch.draining and not self._draining:
            self._draining = True
            for waiting in self._requests.values():  # those that cross this included: nobody gets any more
                if not waiting.future.done():
                    waiting.future.set_exception(self._drains())
        for granted in batch.granted:
            members = [self._member(participant) for participant in granted.participants]
            request = self._requests.get(granted.id)
            if request is not None and not request.future.done():
                request.future.set_result(Acquired(granted.id, members))
        for shortage in batch.not_enough:
            if (request := self._requests.get(shortage.id)) is not None:
                request.fails(shortage)
        for advanced in batch.advanced:
            if (call := self._calls.get(advanced.call)) is not None:
                call.folded += advanced.answered
                call.bytes += advanced.bytes
        for state in batch.states:
            payload = self._received(state.payload)  # opened in any case, for the coordinator to let go of it
            if (call := self._calls.get(state.call)) is not None:
                if payload is None:
                    if not call.waiter.done():
                        call.waiter.set_exception(ReductionError("what a worker has folded can't be opened"))
                else:
                    call.states.append(payload)
        for settled in batch.settled:
            answers = map(self._received, settled.answers) if settled.answers else itertools.repeat(b"")
            arrived = list(zip(settled.indices, settled.outcomes, answers, strict=False))
            if (call := self._calls.get(settled.call)) is not None:
                self._settle(call, arrived)
            elif (call := self._given_up.get(settled.call)) is not None:
                call.pending -= len(arrived)
                if call.pending == 0:
                    del self._given_up[settled.call]
        for key in batch.gone:
            if (member := self._members.pop(key, None)) is not None:
                member.gone = True

    def _received(self, message: control_pb2.Payload) -> Payload | None:
        """The payload; None if it can't be opened."""
        try:
            return received(message, self._coordinator_pid)
        except OSError as error:
            log.error("can't open an answer in the coordinator's memory: %s", error)
            return None
        finally:
            if message.descriptor:
                self._writer.add("opened", message.descriptor)

    def _settle(self, call: PendingCall, arrived: Sequence[tuple[int, int, Payload | None]]) -> None:
        call.settle(arrived)
        if call.listener is not None:
            call.listener.settled(call, [index for index, _, _ in arrived])
        if call.pending == 0:
            del self._calls[call.id]
            self._finish(call)

    def _finish(self, call: PendingCall) -> None:
        if call.listener is not None:
            call.listener.finished(call)
        if not call.waiter.done():
            call.waiter.set_result(None)

    def _member(self, participant: control_pb2.Participant) -> Member:
        told = Member(
            key=participant.key,
            participant_id=participant.id,
            attributes=dict(participant.attributes),
            worker=participant.worker,
            session=0,
            peer=participant.peer,
        )
        member = self._members.setdefault(participant.key, told)
        if member is not told:
            member.seat(told)  # it may have moved since
        return member

    def _fail(self, error: MusterError) -> None:
        if self._error is not None:
            return
        self._error = error
        for member in self._members.values():
            member.gone = True
        self._writer.close()
        for request in self._requests.values():
            if not request.future.done():
                request.future.set_exception(error)
        for call in self._calls.values():
            if call.listener is not None:
                call.listener.failed(error)
            elif not call.waiter.done():
                call.waiter.set_exception(error)
