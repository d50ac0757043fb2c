"""One attached script: what it asks for, in its own numbers, and what it is told.

Here requests are translated to the dispatcher and back; client.py is the other end. All that a script has
ends with it (``close``); who may attach is server.py's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import cast

from coordinator.control.passing import Outgoing, received
from coordinator.control.writer import MAX_BATCH_BYTES, MAX_ITEM_BYTES, BatchWriter
from manager.api.arguments import check_timeout
from manager.core.call import Answer, Call, OutcomeKind
from manager.core.dispatcher import Dispatcher
from manager.core.members import Member
from manager.errors import Closed, NotEnoughParticipants
from manager.payloads.blobs import Blob, can_open
from manager.reducing.shares import reduction_of
from protos import control_pb2, link_pb2, stream_pb2
from protos.envelope import is_instruction
from protos.messages import failure

log = logging.getLogger("muster.control")

CONTROL_VERSION = 1

TOO_LARGE = failure(
    stream_pb2.Failure.RESOURCE_EXHAUSTED,
    f"its answer is larger than the {MAX_ITEM_BYTES} bytes that an attached script can be sent",
).SerializeToString()


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
            version=CONTROL_VERSION,
            shares_memory=can_open(batch.memory),
            memory=self._memory,
            draining=self._dispatcher.draining,
            max_message=self._dispatcher.max_message,
            reducers=self._dispatcher.reducers,
        )

    def drain(self) -> None:
        """The coordinator is about to end: the script is told to begin nothing new."""
        self._writer.add("", control_pb2.ServerBatch(draining=True))

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
        if maximum is not None and maximum < max(acquire.min_participants, 0 if acquire.lease else 1):
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
                    matching_by_worker=error.matching_by_worker,
                    taken=error.taken,
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
            log.warning("an instruction of a script can't be had: %s; its call is lost", error)
            self._lose(start)
            return
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
        try:
            self._calls[start.id] = self._dispatcher.stream_call(
                members, payloads, _timeout(start), quorum, waiter, reduction
            )
        except Closed:  # it has not read yet that the coordinator is draining
            self._lose(start)

    def _lose(self, start: control_pb2.StartCall) -> None:
        """The call can't begin: it ends as lost for everybody."""
        everybody = range(len(start.participants))
        outcomes = [control_pb2.LOST] * len(everybody)
        settled = control_pb2.Settled(call=start.id, indices=everybody, outcomes=outcomes)
        self._writer.add("settled", settled, 4 * len(everybody))


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
