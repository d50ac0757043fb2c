"""The control server: what training scripts and the command line ask a running coordinator.

A script attaches with one stream; what it asks for lives exactly as long as that stream, so a script that
dies leaves no lease and no call behind. Here requests are translated to the dispatcher and back; client.py
is the other end.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import grpc
import grpc.aio

from coordinator.passing import Outgoing, received
from coordinator.writer import MAX_BATCH_BYTES, MAX_ITEM_BYTES, BatchWriter
from manager.backend import check_timeout
from manager.blobs import Blob, Sample, can_open
from manager.call import Answer, Call, OutcomeKind
from manager.dispatcher import Dispatcher
from manager.errors import AddressInUse, Closed, NotEnoughParticipants
from manager.listen import Address, probe
from manager.members import Member
from manager.shares import reduction_of
from protos import control_pb2, link_pb2, stream_pb2
from protos.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from protos.envelope import is_instruction

CONTROL_VERSION = 1
TOO_LARGE = stream_pb2.ParticipantMessage(
    failure=stream_pb2.Failure(
        code=stream_pb2.Failure.RESOURCE_EXHAUSTED,
        text=f"its answer is larger than the {MAX_ITEM_BYTES} bytes that an attached script can be sent",
    )
).SerializeToString()

PAGE = 500
"""Participants per page of ListParticipants."""


class Attachment:
    """One attached script: its requests, calls and leases, by its own numbers."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        writer: BatchWriter[control_pb2.ServerBatch],
        memory: link_pb2.Memory | None,
    ) -> None:
        """``memory`` is the coordinator's, for the script to try."""
        self._dispatcher = dispatcher
        self._writer = writer
        self._memory = memory
        self._outgoing = Outgoing()
        self._client_pid = 0
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._leases: dict[int, int] = {}
        self._calls: dict[int, Call] = {}
        self._known: set[int] = set()  # keys of members that the script was given

    def greet(self, batch: control_pb2.ClientBatch) -> control_pb2.ServerBatch:
        """The answer to the script's first message."""
        self._client_pid = batch.memory.pid
        return control_pb2.ServerBatch(
            version=CONTROL_VERSION, shares_memory=can_open(batch.memory), memory=self._memory
        )

    def handle(self, batch: control_pb2.ClientBatch) -> None:
        """Does what the script asks for. Raises ValueError for what makes no sense."""
        if batch.shares_memory:
            self._outgoing.shares_memory = True
        for descriptor in batch.opened:
            self._outgoing.opened(descriptor)
        for acquire in batch.acquires:
            self._ask(acquire)
        for request in batch.abandons:
            if (task := self._requests.get(request)) is not None:
                task.cancel()
            self._release(request)
        for request in batch.releases:
            self._release(request)
        for start in batch.calls:
            self._start(start)
        for call_id in batch.cancels:
            if (call := self._calls.get(call_id)) is not None:
                self._dispatcher.give_up_call(call)

    def gone(self, member: Member) -> None:
        """A member's session has ended."""
        if member.key in self._known:
            self._known.discard(member.key)
            self._writer.add("gone", member.key)

    def close(self) -> None:
        """The script is gone: frees all that it had."""
        self._writer.close()
        self._outgoing.close()
        for task in list(self._requests.values()):
            task.cancel()
        for request in list(self._leases):
            self._release(request)
        for call in list(self._calls.values()):
            self._dispatcher.give_up_call(call)

    def _ask(self, acquire: control_pb2.Acquire) -> None:
        maximum = acquire.max_participants if acquire.HasField("max_participants") else None
        if acquire.id in self._requests or acquire.id in self._leases:
            raise ValueError(f"request {acquire.id} exists already")
        if maximum is not None and maximum < max(acquire.min_participants, 1):
            raise ValueError(f"request {acquire.id}: a maximum of {maximum} participants")
        timeout = _timeout(acquire)
        task = asyncio.ensure_future(self._acquire(acquire, maximum, timeout))
        self._requests[acquire.id] = task
        task.add_done_callback(lambda _: self._requests.pop(acquire.id, None))

    async def _acquire(
        self, acquire: control_pb2.Acquire, maximum: int | None, timeout: float | None
    ) -> None:
        try:
            acquired = await self._dispatcher.acquire(
                acquire.min_participants, maximum, dict(acquire.where), timeout, exclusive=acquire.lease
            )
        except NotEnoughParticipants as error:
            self._writer.add(
                "not_enough",
                control_pb2.NotEnough(
                    id=acquire.id,
                    matching=error.matching,
                    matching_by_worker=error.matching_by_worker,
                    pooled=error.pooled,
                    waited_seconds=error.waited,
                ),
            )
            return
        except Closed:
            return  # the stream is about to end
        if acquire.lease:
            self._leases[acquire.id] = acquired.id
        self._known.update(member.key for member in acquired.members if not member.gone)
        now = time.monotonic()
        granted = control_pb2.Granted(
            id=acquire.id, participants=[describe(member, now) for member in acquired.members]
        )
        self._writer.add("granted", granted, size=granted.ByteSize())
        for member in acquired.members:
            if member.gone:  # between the grant and this turn of the loop
                self._writer.add("gone", member.key)

    def _release(self, request: int) -> None:
        lease = self._leases.pop(request, None)
        if lease is not None:
            self._dispatcher.release(lease)

    def _start(self, start: control_pb2.StartCall) -> None:
        pool = self._dispatcher.pool
        members = [pool.get(key) or _departed(key) for key in start.participants]
        quorum = start.quorum if start.HasField("quorum") else None
        if start.id in self._calls:
            raise ValueError(f"call {start.id} exists already")
        try:  # each once as an object: that is how a broadcast is recognised
            payloads = [received(payload, self._client_pid, sealed=True) for payload in start.payloads]
        except OSError as error:
            raise ValueError(f"call {start.id}: an instruction can't be had: {error}") from None
        if members and len(payloads) not in (1, len(members)):
            raise ValueError(f"call {start.id}: {len(payloads)} payloads for {len(members)} participants")
        if not all(is_instruction(p.head() if isinstance(p, Blob) else bytes(p[:1])) for p in payloads):
            raise ValueError(f"call {start.id}: a payload is neither an instruction nor empty")
        if quorum == 0:
            raise ValueError(f"call {start.id}: a quorum of 0")
        reduction = reduction_of(start.reduction) if start.HasField("reduction") else None
        if reduction is not None and len(set(start.participants)) < len(start.participants):
            raise ValueError(f"call {start.id}: a participant is named twice, but can be folded in only once")
        waiter = _CallWaiter(start.id, self._calls, self._writer, self._outgoing)
        self._calls[start.id] = self._dispatcher.stream_call(
            members, payloads, _timeout(start), quorum, waiter, reduction
        )


def _timeout(request: control_pb2.Acquire | control_pb2.StartCall) -> float | None:
    timeout = request.timeout_seconds if request.HasField("timeout_seconds") else None
    check_timeout(timeout)
    return timeout


class _CallWaiter:
    """Passes on to a script how its call goes."""

    def __init__(
        self,
        id: int,
        calls: dict[int, Call],
        writer: BatchWriter[control_pb2.ServerBatch],
        outgoing: Outgoing,
    ) -> None:
        self._id = id
        self._calls = calls
        self._writer = writer
        self._outgoing = outgoing

    def settled(self, call: Call, indices: Sequence[int]) -> None:
        if call.shares is not None and call.states:
            for state in call.states:
                size = self._outgoing.size(state)
                message = control_pb2.State(call=self._id, payload=self._outgoing.message(state))
                self._writer.add("states", message, size)
            call.states = ()
        bare = control_pb2.Settled(call=self._id)  # of those whose answer has no bytes
        full, size = control_pb2.Settled(call=self._id), 0
        for index in indices:
            kind, payload = cast(Answer, call.outcomes[index])
            if not len(payload):
                bare.indices.append(index)
                bare.outcomes.append(control_pb2.Outcome.ValueType(kind))
                continue
            call.outcomes[index] = (kind, b"")  # it is kept once only
            if self._outgoing.size(payload) > MAX_ITEM_BYTES:
                kind, payload = OutcomeKind.FAILURE, TOO_LARGE
            if size and size + self._outgoing.size(payload) > MAX_BATCH_BYTES:
                self._writer.add("settled", full, size)
                full, size = control_pb2.Settled(call=self._id), 0
            full.indices.append(index)
            full.outcomes.append(control_pb2.Outcome.ValueType(kind))
            full.answers.append(self._outgoing.message(payload))
            size += self._outgoing.size(payload)
        if full.indices:
            self._writer.add("settled", full, size)
        if bare.indices:
            self._writer.add("settled", bare, 4 * len(bare.indices))

    def advanced(self, call: Call, answered: int, size: int) -> None:
        self._writer.add("advanced", control_pb2.Advanced(call=self._id, answered=answered, bytes=size))

    def finished(self, _call: Call) -> None:
        self._calls.pop(self._id, None)


class _Servicer(ControlServicer):
    def __init__(self, dispatcher: Dispatcher, status: Callable[[], control_pb2.Status]) -> None:
        self._dispatcher = dispatcher
        self._status = status
        self._sample = Sample()
        self.attachments: dict[int, Attachment] = {}
        self._ids = itertools.count(1)

    async def GetStatus(  # noqa: N802
        self, request: control_pb2.StatusRequest, context: object
    ) -> control_pb2.Status:
        return self._status()

    async def ListParticipants(  # noqa: N802
        self, request: control_pb2.ListParticipantsRequest, context: object
    ) -> AsyncIterator[control_pb2.ParticipantPage]:
        now = time.monotonic()
        members = self._dispatcher.pool.matching(dict(request.where))
        for start in range(0, len(members), PAGE):
            yield control_pb2.ParticipantPage(
                participants=[describe(member, now) for member in members[start : start + PAGE]]
            )

    async def Attach(  # type: ignore[override]  # noqa: N802
        self,
        request_iterator: AsyncIterator[control_pb2.ClientBatch],
        context: grpc.aio.ServicerContext[control_pb2.ClientBatch, control_pb2.ServerBatch],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each handler in a task
        writer = BatchWriter(control_pb2.ServerBatch, context.write, on_error=task.cancel)
        attachment = Attachment(self._dispatcher, writer, self._sample.message())
        number = next(self._ids)
        try:
            async for batch in request_iterator:
                if number not in self.attachments:
                    if batch.version != CONTROL_VERSION:
                        await context.abort(
                            grpc.StatusCode.FAILED_PRECONDITION,
                            f"control version {batch.version} was offered, {CONTROL_VERSION} is spoken here; "
                            f"install the same version of muster on both sides",
                        )
                    self.attachments[number] = attachment
                    await context.write(attachment.greet(batch))
                try:
                    attachment.handle(batch)
                except ValueError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self.attachments.pop(number, None)
            attachment.close()

    def gone(self, member: Member) -> None:
        for attachment in self.attachments.values():
            attachment.gone(member)


CONTROL_OPTIONS = [
    # Between processes of one owner, messages may be as large as protobuf can make them.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Either end notices within 15 s when the other is frozen or cut off.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


class ControlServer:
    """Serves the control API of one coordinator."""

    def __init__(self, dispatcher: Dispatcher, status: Callable[[], control_pb2.Status]) -> None:
        self._servicer = _Servicer(dispatcher, status)
        self._server: grpc.aio.Server | None = None
        self.address = ""
        dispatcher.on_ended = self._servicer.gone

    @property
    def attached(self) -> int:
        return len(self._servicer.attachments)

    async def start(self, address: Address) -> None:
        """Raises AddressInUse or StartError if it can't listen there."""
        # Not reserved: what scripts that were attached before have left in TIME_WAIT would be in the way.
        free = probe(address)
        server = grpc.aio.server(options=[*CONTROL_OPTIONS, ("grpc.so_reuseport", 0)])
        add_ControlServicer_to_server(self._servicer, server)
        try:
            port = server.add_insecure_port(str(free))
        except RuntimeError:
            raise AddressInUse(str(free)) from None
        await server.start()
        self._server = server
        self.address = str(Address(address.host, port))

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)


def describe(member: Member, now: float) -> control_pb2.Participant:
    """What is told of a member."""
    return control_pb2.Participant(
        key=member.key,
        id=member.participant_id,
        attributes=member.attributes,
        worker=member.worker,
        peer=member.peer,
        busy=member.busy,
        leased=member.lease is not None,
        connected_seconds=now - member.joined_at,
    )


def _departed(key: int) -> Member:
    """Stands for a member whose session has ended: calls to it are lost at once."""
    return Member(key=key, participant_id="", attributes={}, worker=0, session=0, gone=True)
