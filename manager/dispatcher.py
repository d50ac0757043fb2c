"""Carries out what the pool and the table of calls decide: the asyncio shell around both.

It owns the clock and the futures; a ``Transport`` brings instructions to the participants' streams (in this
process: server.py; in worker processes: coordinator/workers.py) and reports back by ``joined``, ``answered``
and ``ended``. What these lead to is carried out once per turn of the event loop. Not thread-safe: everything
happens on one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

from manager.backend import Acquired, Running
from manager.calls import Call, CallTable, OutcomeKind, Payload
from manager.errors import Closed, NotEnoughParticipants
from manager.members import Member, printable
from manager.pool import Pool, Request, Shortage

log = logging.getLogger("muster.dispatcher")


class Transport(Protocol):
    """Where instructions go. None of these may block or raise, and none calls back at once."""

    def instruct(self, sends: Sequence[tuple[Member, int, bytes]]) -> None:
        """Sends instructions, each with its tag, to members that are idle."""
        ...

    def cancel(self, member: Member, tag: int) -> None: ...

    def end(self, member: Member) -> None:
        """Ends the member's stream: a newer session of the same participant has taken its place."""
        ...


class Waiter(Protocol):
    """Who is told how a call goes, one outcome at a time."""

    def settled(self, call: Call, index: int) -> None: ...

    def finished(self, call: Call) -> None: ...


class Dispatcher:
    """The backend of everything that runs in the process which knows the participants."""

    def __init__(self, transport: Transport, *, rng: random.Random | None = None, first_tag: int = 1) -> None:
        self.pool = Pool(rng or random.Random())  # noqa: S311 - sampling, not secrets
        self.calls = CallTable(first_tag)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Acquired]] = {}
        self._scheduled = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
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
                printable(member.participant_id),
                member.peer,
                replaced.peer,
            )
            self._transport.end(replaced)
            self.ended(replaced)
        self._schedule()

    def answered(self, answers: Iterable[tuple[Member | None, int, Payload]]) -> None:
        """Members have answered the instructions with these tags. None stands for one that is gone."""
        answered = self.calls.answered
        for member, tag, answer in answers:
            if member is not None:
                answered(member, tag, answer)
        self._schedule()

    def ended(self, member: Member) -> None:
        if member.gone:
            return
        self.pool.leave(member)
        self.calls.lost(member)
        self.on_ended(member)
        self._schedule()

    def found(self, member: Member, tag: int) -> None:
        """The member's worker says that it works on the instruction with this tag (0: on none).

        What was meant for it must have been carried out before (``settle``), or be forgotten.
        """
        self.calls.found(member, tag)
        self._schedule()

    # Effects

    def _schedule(self) -> None:
        """Carries out the effects once in this turn of the loop, however many events there were."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.settle)

    def settle(self) -> None:
        """Carries out whatever the last events have led to; at the end of the turn it comes by itself."""
        self._scheduled = False
        calls, transport = self.calls, self._transport
        if calls.sends:
            sends, calls.sends = calls.sends, []
            transport.instruct(sends)
        if calls.cancels:
            cancels, calls.cancels = calls.cancels, []
            for member, tag in cancels:
                transport.cancel(member, tag)
        if calls.settled:
            settled, calls.settled = calls.settled, []
            for call, index in settled:
                try:
                    call.waiter.settled(call, index)
                except Exception:  # it must not cost the others theirs
                    log.exception("an outcome of call %d could not be told", call.id)
        if calls.finished:
            finished, calls.finished = calls.finished, []
            for call in finished:
                waiter = call.waiter
                if call.stream:
                    waiter.finished(call)
                elif not waiter.done():
                    waiter.set_result(None)  # not the call: the two would keep each other alive
        if self.pool.waiting:
            for grant in self.pool.serve():
                request = self._requests.pop(grant.request.id)
                if not request.done():
                    request.set_result(Acquired(grant.request.id, grant.members))

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
        if self._closed:
            raise Closed("it has been closed already")
        waiter: asyncio.Future[Acquired] = self._loop.create_future()
        self.pool.ask(request)
        self._requests[request.id] = waiter
        self._schedule()
        self._watch(deadline)
        try:
            return await waiter
        except asyncio.CancelledError:
            # It may have been granted in the very tick in which the caller gave up.
            self._requests.pop(request.id, None)
            self.pool.abandon(request.id)
            self._schedule()
            raise

    def release(self, acquired_id: int) -> None:
        self.pool.release(acquired_id)
        self._schedule()

    def start_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
    ) -> Call:
        return self._start(members, payloads, timeout, quorum, self._loop.create_future(), stream=False)

    def give_up_call(self, call: Running) -> None:
        self.calls.give_up(cast(Call, call), OutcomeKind.CANCELLED)
        self._schedule()

    def stream_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
        waiter: Waiter,
    ) -> Call:
        """Like ``start_call``, but ``waiter`` is told of every outcome as it comes."""
        return self._start(members, payloads, timeout, quorum, waiter, stream=True)

    def _start(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
        waiter: Waiter | asyncio.Future[None],
        *,
        stream: bool,
    ) -> Call:
        if not self._scheduled:
            self._schedule()
        if timeout is None:
            return self.calls.start(members, payloads, quorum=quorum, waiter=waiter, stream=stream)
        deadline = time.monotonic() + timeout
        self._watch(deadline)
        return self.calls.start(
            members, payloads, deadline=deadline, quorum=quorum, waiter=waiter, stream=stream
        )

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
            waiter = self._requests.pop(shortage.request.id)
            if not waiter.done():
                waiter.set_exception(_not_enough(shortage))
        self._schedule()
        self._watch(self.calls.next_deadline)
        self._watch(self.pool.next_deadline)

    def close(self) -> None:
        """Ends everything that still runs: calls as lost, waiters with Closed."""
        self._closed = True
        for member in self.pool:
            self.ended(member)
        self.settle()
        for waiter in self._requests.values():
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
