"""Carries out what the pool and the table of calls decide: the asyncio shell around both.

It owns the clock and the futures; a ``Transport`` brings instructions to the participants' streams (in this
process: server.py; in worker processes: coordinator/workers.py) and reports back by ``joined``, ``answered``
and ``ended``, followed by one ``settle`` per batch. Not thread-safe: everything happens on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from manager.backend import Acquired, Answer
from manager.calls import Call, CallTable, OutcomeKind, Payload
from manager.errors import Closed, NotEnoughParticipants
from manager.members import Member
from manager.pool import Pool, Request, Shortage

log = logging.getLogger("muster.dispatcher")


class Transport(Protocol):
    """Where instructions go. None of these may block or raise."""

    def instruct(self, member: Member, tag: int, payload: bytes) -> None: ...

    def cancel(self, member: Member, tag: int) -> None: ...

    def end(self, member: Member) -> None:
        """Ends the member's stream: a newer session of the same participant has taken its place."""
        ...


class Dispatcher:
    """The backend of everything that runs in the process which knows the participants."""

    def __init__(self, transport: Transport, *, rng: random.Random | None = None, first_tag: int = 1) -> None:
        self.pool = Pool(rng or random.Random())  # noqa: S311 - sampling, not secrets
        self.calls = CallTable(first_tag)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._waiters: dict[int, asyncio.Future[Acquired]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._all_finished: asyncio.Event | None = None
        self.on_ended: Callable[[Member], None] = lambda member: None

    # Reports of the transport

    def new_key(self) -> int:
        """A key for a new member."""
        return next(self._ids)

    def joined(self, member: Member) -> None:
        replaced = self.pool.join(member)
        if replaced is not None:
            log.warning(
                "participant %s connected again (%s); its older session (%s) is ended",
                member.participant_id,
                member.peer,
                replaced.peer,
            )
            self._transport.end(replaced)
            self.ended(replaced)

    def answered(self, member: Member, tag: int, answer: Payload) -> None:
        self.calls.answered(member, tag, answer)

    def ended(self, member: Member) -> None:
        if member.gone:
            return
        self.pool.leave(member)
        self.calls.lost(member)
        self.on_ended(member)

    def settle(self) -> None:
        """Carries out whatever the last events have led to."""
        calls = self.calls
        while calls.sends or calls.cancels or calls.settled or calls.finished:
            if calls.sends:
                sends, calls.sends = calls.sends, []
                for member, tag, payload in sends:
                    self._transport.instruct(member, tag, payload)
            if calls.cancels:
                cancels, calls.cancels = calls.cancels, []
                for member, tag in cancels:
                    self._transport.cancel(member, tag)
            if calls.settled:
                settled, calls.settled = calls.settled, []
                for call, index in settled:
                    if call.on_settled is not None:
                        call.on_settled(call, index)
            if calls.finished:
                finished, calls.finished = calls.finished, []
                for call in finished:
                    if call.on_finished is not None:
                        call.on_finished(call)
        if self._all_finished is not None and not calls:
            self._all_finished.set()
        for grant in self.pool.serve():
            waiter = self._waiters.pop(grant.request.id)
            if not waiter.done():
                waiter.set_result(Acquired(grant.request.id, grant.members))

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
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        request = Request(next(self._ids), minimum, maximum, where, now, deadline, exclusive)
        waiter: asyncio.Future[Acquired] = self._loop.create_future()
        self._waiters[request.id] = waiter
        self.pool.ask(request)
        self.settle()
        self._watch(deadline)
        try:
            return await waiter
        except asyncio.CancelledError:
            # It may have been granted in the very tick in which the caller gave up.
            self._waiters.pop(request.id, None)
            self.pool.abandon(request.id)
            self.settle()
            raise

    def release(self, acquired_id: int) -> None:
        self.pool.release(acquired_id)
        self.settle()

    async def call_one(self, member: Member, payload: bytes, timeout: float | None) -> Answer:
        call = await self._call((member,), (payload,), timeout, None)
        return call.outcomes[0] or OutcomeKind.RESULT, call.answers[0]

    async def call(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
    ) -> Sequence[Answer]:
        call = await self._call(members, payloads, timeout, quorum)
        return list(zip((kind or OutcomeKind.RESULT for kind in call.outcomes), call.answers, strict=True))

    async def _call(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
    ) -> Call:
        done: asyncio.Future[Call] = self._loop.create_future()

        def finished(call: Call) -> None:
            if not done.done():
                done.set_result(call)

        call = self.start(members, payloads, timeout, quorum, on_finished=finished)
        try:
            return await done
        except asyncio.CancelledError:
            self.give_up(call, OutcomeKind.CANCELLED)
            raise

    def start(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
        *,
        on_finished: Callable[[Call], None] | None = None,
        on_settled: Callable[[Call, int], None] | None = None,
    ) -> Call:
        """Starts a call without waiting for it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        call = self.calls.start(
            members,
            payloads,
            deadline=deadline,
            quorum=quorum,
            on_finished=on_finished,
            on_settled=on_settled,
        )
        self.settle()
        if deadline is not None:
            self._watch(deadline)
        return call

    def give_up(self, call: Call, kind: OutcomeKind) -> None:
        self.calls.give_up(call, kind)
        self.settle()

    # Time

    def _watch(self, deadline: float | None) -> None:
        if deadline is None or deadline >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        now = time.monotonic()
        self.calls.expire(now)
        for shortage in self.pool.expire(now):
            waiter = self._waiters.pop(shortage.request.id)
            if not waiter.done():
                waiter.set_exception(_not_enough(shortage))
        self.settle()
        self._watch(self.calls.next_deadline)
        self._watch(self.pool.next_deadline)

    async def finish_calls(self, grace: float) -> None:
        """Waits until no call runs, for at most ``grace`` seconds."""
        if grace > 0 and self.calls:
            self._all_finished = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_finished.wait(), grace)

    def close(self) -> None:
        """Ends everything that still runs: calls as lost, waiters with Closed."""
        for member in self.pool:
            self.ended(member)
        self.settle()
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(Closed("closed while waiting for participants"))
        if self._timer is not None:
            self._timer.cancel()


def _not_enough(shortage: Shortage) -> NotEnoughParticipants:
    request = shortage.request
    return NotEnoughParticipants(
        asked=request.minimum,
        matching=shortage.matching,
        matching_by_worker=shortage.matching_by_worker,
        pooled=shortage.pooled,
        waited=shortage.waited,
        where=request.where,
    )
