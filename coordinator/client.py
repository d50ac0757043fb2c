"""A training script attached to a running coordinator: the other end of control.py.

``Link`` is a backend like the dispatcher, only that every request crosses the control stream. It keeps a
member for each participant it was given, and ends everything that waits when the stream ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import grpc
import grpc.aio

from coordinator.batches import MAX_ITEM_BYTES, BatchWriter
from coordinator.control import CONTROL_OPTIONS, CONTROL_VERSION
from coordinator.errors import CoordinatorGone
from manager.backend import Acquired, Running
from manager.calls import Answer, OutcomeKind
from manager.errors import Closed, MusterError, NotEnoughParticipants
from manager.members import Member
from protos import control_pb2
from protos.control_pb2_grpc import ControlStub

log = logging.getLogger("muster.control")

STATUS_TIMEOUT = 5.0
"""Seconds that the coordinator gets to answer a question about its status."""

RETRY_INTERVAL = 0.2
"""Seconds between two attempts to attach to a coordinator that may still be on its way up."""


@dataclass(slots=True)
class _PendingRequest:
    future: asyncio.Future[Acquired]
    asked: int
    where: Mapping[str, str]


@dataclass(slots=True)
class _PendingCall:
    id: int
    waiter: asyncio.Future[None]
    pending: int
    outcomes: list[Answer | None] = field(default_factory=list)


class Link:
    """The backend of an attached script."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._ids = itertools.count(1)
        self._requests: dict[int, _PendingRequest] = {}
        self._calls: dict[int, _PendingCall] = {}
        self._members: dict[int, Member] = {}
        self._error: MusterError | None = None

    async def open(self, timeout: float) -> None:
        """Attaches, as soon as somebody answers there.

        Raises CoordinatorGone if nobody has within ``timeout`` seconds, or at once if it can't be.
        """
        deadline = time.monotonic() + timeout
        while True:
            status = await self._attach(max(0.1, deadline - time.monotonic()))
            if status is None:
                self._writer = BatchWriter(
                    control_pb2.ClientBatch, self._stream.write, on_error=self._stream.cancel
                )
                self._reader = asyncio.ensure_future(self._read())
                return
            await self._channel.close()
            code, why = status
            if code is not grpc.StatusCode.UNAVAILABLE:
                raise CoordinatorGone(f"the coordinator at {self.address} can't be attached to: {why}")
            if time.monotonic() + RETRY_INTERVAL > deadline:
                raise CoordinatorGone(
                    f"no coordinator answers at {self.address} ({why}); is `coordinator start` running?"
                )
            await asyncio.sleep(RETRY_INTERVAL)

    async def _attach(self, timeout: float) -> tuple[grpc.StatusCode, str] | None:
        """Tries once; returns why it didn't work, if it didn't."""
        # A new channel each time: gRPC's own would wait ever longer between its attempts.
        self._channel = grpc.aio.insecure_channel(self.address, options=CONTROL_OPTIONS)
        self._stub = ControlStub(self._channel)
        self._stream = self._stub.Attach()
        try:
            async with asyncio.timeout(timeout):
                await self._stream.write(control_pb2.ClientBatch(version=CONTROL_VERSION))
                if isinstance(await self._stream.read(), control_pb2.ServerBatch):
                    return None
        except TimeoutError:
            return grpc.StatusCode.UNAVAILABLE, "no answer in time"
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return await self._stream.code(), await self._why()

    async def close(self) -> None:
        """Detaches: leases and calls end."""
        self._fail(Closed("the connection to the coordinator was closed"))
        self._stream.cancel()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        await self._channel.close()

    async def status(self) -> control_pb2.Status:
        """What there is and what goes on. Raises CoordinatorGone if no answer comes."""
        self._check()
        try:
            status: control_pb2.Status = await self._stub.GetStatus(
                control_pb2.StatusRequest(), timeout=STATUS_TIMEOUT
            )
        except grpc.aio.AioRpcError as error:
            raise CoordinatorGone(
                f"the coordinator at {self.address} does not answer ({error.code().name.lower()})"
            ) from None
        return status

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
        request = _PendingRequest(asyncio.get_running_loop().create_future(), minimum, where)
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

    def start_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
    ) -> _PendingCall:
        self._check()
        size = sum(map(len, payloads)) + 16 * len(members)
        if size > MAX_ITEM_BYTES:
            raise ValueError(
                f"the instructions of one call are {size} bytes in all; an attached script can send "
                f"{MAX_ITEM_BYTES} bytes at once"
            )
        number = next(self._ids)
        start = control_pb2.StartCall(
            id=number,
            participants=[member.key for member in members],
            payloads=payloads,
            timeout_seconds=timeout,
            quorum=quorum,
        )
        call = _PendingCall(number, asyncio.get_running_loop().create_future(), len(members))
        call.outcomes = [(OutcomeKind.LOST, b"")] * len(members)
        if members:
            self._calls[number] = call
            self._writer.add("calls", start, size)
        else:
            call.waiter.set_result(None)
        return call

    def give_up_call(self, call: Running) -> None:
        number = cast(_PendingCall, call).id
        if self._calls.pop(number, None) is not None:
            self._writer.add("cancels", number)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # What the coordinator says

    async def _read(self) -> None:
        try:
            while True:
                batch = await self._stream.read()
                if not isinstance(batch, control_pb2.ServerBatch):
                    break
                self._handle(batch)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        except Exception:
            log.exception("the coordinator said something that could not be handled")
            self._stream.cancel()
        why = await self._why()
        self._fail(
            CoordinatorGone(
                f"the coordinator at {self.address} is gone ({why}); attach again with coordinator.connect"
            )
        )

    def _handle(self, batch: control_pb2.ServerBatch) -> None:
        for granted in batch.granted:
            members = [self._member(participant) for participant in granted.participants]
            request = self._requests.get(granted.id)
            if request is not None and not request.future.done():
                request.future.set_result(Acquired(granted.id, members))
        for shortage in batch.not_enough:
            request = self._requests.get(shortage.id)
            if request is not None and not request.future.done():
                request.future.set_exception(
                    NotEnoughParticipants(
                        asked=request.asked,
                        matching=shortage.matching,
                        matching_by_worker=shortage.matching_by_worker,
                        pooled=shortage.pooled,
                        waited=shortage.waited_seconds,
                        where=request.where,
                    )
                )
        for settled in batch.settled:
            call = self._calls.get(settled.call)
            if call is not None:
                call.outcomes[settled.index] = (OutcomeKind(settled.outcome), settled.answer)
                call.pending -= 1
                if call.pending == 0:
                    del self._calls[settled.call]
                    if not call.waiter.done():
                        call.waiter.set_result(None)
        for key in batch.gone:
            if (member := self._members.pop(key, None)) is not None:
                member.gone = True

    def _member(self, participant: control_pb2.Participant) -> Member:
        member = self._members.get(participant.key)
        if member is None:
            member = self._members[participant.key] = Member(
                key=participant.key,
                participant_id=participant.id,
                attributes=dict(participant.attributes),
                worker=participant.worker,
                session=0,
                peer=participant.peer,
            )
        return member

    def _fail(self, error: MusterError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._writer.close()
        pending: list[asyncio.Future[Acquired] | asyncio.Future[None]] = [
            *(request.future for request in self._requests.values()),
            *(call.waiter for call in self._calls.values()),
        ]
        for future in pending:
            if not future.done():
                future.set_exception(error)

    async def _why(self) -> str:
        """How the stream ended, in words."""
        code, details = await self._stream.code(), await self._stream.details()
        if code is grpc.StatusCode.UNAVAILABLE and "refused" in (details or ""):
            return "connection refused"
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return "it is not a control address (participants connect there?)"
        if code is grpc.StatusCode.OK:
            return "it has closed the connection"
        return details or code.name.lower()
