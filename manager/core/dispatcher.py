"""Carries out what the pool and the table of calls decide: the asyncio shell around both.

It owns the clock and the futures; a ``Transport`` brings instructions to the participants' streams (in this
process: server.py; in worker processes: coordinator/workers/links.py) and reports back by ``joined``,
``answered`` and ``ended``. What these lead to is carried out once per turn of the event loop. Not
thread-safe: everything happens on one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from manager.core.backend import Acquired, Running, Waiter, check_size
from manager.core.call import Call, OutcomeKind
from manager.core.calls import CallTable
from manager.core.members import Member, printable, readable
from manager.core.pool import Pool, Request
from manager.core.transport import Transport
from manager.errors import Closed
from manager.liveness import LATE
from manager.logs import Sparingly
from manager.payloads.blobs import Payload
from manager.reducing.shares import Folded, Partial, Reduction
from protos.chunks import MAX_MESSAGE_SIZE

log = logging.getLogger("muster.dispatcher")

DRAINING = "it is draining: what runs may finish, but nothing new begins"


class Dispatcher:
    """The backend of everything that runs in the process which knows the participants."""

    def __init__(self, transport: Transport, *, rng: random.Random | None = None, first_tag: int = 1) -> None:
        self.pool = Pool(rng or random.Random())  # noqa: S311 - sampling, not secrets
        self.calls = CallTable(first_tag)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Acquired]] = {}
        self._ending: set[Member] = set()  # replaced; their last answers may be on their way
        self._scheduled = False
        self._closed = False
        self.draining = False
        self.failure = ""
        """Why nobody will ever be there any more; empty if it ends because somebody wants it to."""
        self.max_message = MAX_MESSAGE_SIZE
        """Bytes that an instruction may have."""
        self.reducers: Sequence[str] = ()
        """Import paths of those that are allowed, besides the built-in ones."""
        self._sparingly = Sparingly(log)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self.on_ended: Callable[[Member], None] = lambda member: None
        self.on_settled: Callable[[], None] = lambda: None
        """Called while it drains, whenever something may have come to its end."""

    # Reports of the transport

    def new_key(self) -> int:
        """A key for a new member."""
        return next(self._ids)

    def joined(self, member: Member) -> None:
        if self.pool.outdated(member):
            member.gone = True
            self._transport.end(member)
            self._ending.add(member)
            self._schedule()
            return
        replaced = self.pool.join(member)
        if replaced is not None:
            self._sparingly.warning(
                "again",
                "participant %s connected again (%s); its older session (%s) is ended",
                printable(member.participant_id),
                readable(member.peer),
                readable(replaced.peer),
            )
            self._transport.end(replaced)
            self._left(replaced)
            self._ending.add(replaced)
        self._schedule()

    def answered(self, answers: Iterable[tuple[Member | None, int, Payload | None]]) -> None:
        """Members have answered the instructions with these tags.

        None stands for a member that is gone, and for an answer that is.
        """
        self.calls.answered(answers)
        self._schedule()

    def folded(self, worker: int, folded: Folded, members: Mapping[int, Member]) -> None:
        """Results have been folded in at a worker. ``members`` are those of the worker, by session."""
        self.calls.folded(worker, folded, members)
        self._schedule()

    def partial(self, worker: int, partial: Partial) -> None:
        """What a part of a batch has come to at a worker."""
        self.calls.partial(worker, partial)
        self._schedule()

    def moved(self, member: Member) -> None:
        """The member, which was idle, has been told to reconnect: callers wait for it a while.

        It must be recognisable when it comes back (``returned``), by a participant id of its own.
        """
        if member.gone or (self.draining and (self.pool.is_shut or not member.awaited)):
            self.ended(member)
            return
        self._send()  # what is meant for its old session goes to that
        until = self.pool.move(member, time.monotonic())
        self.calls.moved(member)
        self._watch(until)
        self._schedule()

    def returned(self, newcomer: Member, tag: int = 0) -> Member | None:
        """Who this newcomer is, if it was told to reconnect and is expected back. Else it has ``joined``.

        ``tag`` is of the instruction that it works on, if it was found so.
        """
        member = self.pool.back(newcomer)
        if member is not None:
            self.calls.returned(member, tag)
            self._schedule()
        return member

    def drain(self) -> None:
        """Begins nothing new. Of those who are told to reconnect only they are expected back for whom
        something waits.

        Who waits for participants gets none any more.
        """
        self.draining = True
        for request, waiter in self._requests.items():
            self.pool.abandon(request)
            if not waiter.done():
                waiter.set_exception(self._over())
        self._requests.clear()
        for member in self.pool.away:
            if self.pool.is_shut or not member.awaited:
                self.ended(member)
        self._schedule()

    def queued(self, members: Iterable[Member]) -> bool:
        """Whether something waits until one of these, or of those that are moving, is done with other things.

        Such participants must not be sent away for good.
        """
        return any(member.queue for member in itertools.chain(members, self.pool.away))

    def has_room(self, room: int) -> None:
        """How many participants there may be in all, on workers that let anybody in."""
        self.pool.has_room(room, time.monotonic())
        self._watch(self.pool.next_deadline)

    def _over(self) -> Closed:
        return Closed(self.failure or ("it has been closed already" if self._closed else DRAINING))

    def ended(self, member: Member) -> None:
        """The member's session is over, and nothing that was sent on it is still on its way."""
        self._left(member)
        self._ending.discard(member)
        self.calls.lost(member)
        self._schedule()

    def _left(self, member: Member) -> None:
        if not member.gone:
            self.pool.leave(member)
            self.on_ended(member)

    def worker_lost(self, worker: int) -> None:
        """Nothing will come any more of this worker's batches. Its members are dealt with apart."""
        self.calls.worker_lost(worker)
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
        self._send()
        if calls.cancels:
            cancels, calls.cancels = calls.cancels, []
            for member, tag in cancels:
                transport.cancel(member, tag)
        if calls.closes:
            closes, calls.closes = calls.closes, []
            for worker, call in closes:
                transport.close_batch(worker, call)
        if calls.settled or calls.advanced:
            self._tell()
        if calls.finished:
            finished, calls.finished = calls.finished, []
            for call in finished:
                waiter = call.waiter
                if call.stream:
                    waiter.finished(call)
                elif not waiter.done():
                    waiter.set_result(None)  # not the call: the two would keep each other alive
        if self.pool.waiting:
            for grant in self.pool.serve(time.monotonic()):
                request = self._requests.pop(grant.request.id)
                if not request.done():
                    request.set_result(Acquired(grant.request.id, grant.members))
        if self.draining:
            self.on_settled()

    def _send(self) -> None:
        """Sends the instructions that have been given; for thousands of members who move, this alone."""
        if self.calls.sends:
            sends, self.calls.sends = self.calls.sends, []
            self._transport.instruct(sends)

    def _tell(self) -> None:
        """Tells waiters how their calls go. What goes wrong there must not cost others theirs."""
        calls = self.calls
        settled, calls.settled = calls.settled, []
        advanced, calls.advanced = calls.advanced, []
        by_call: dict[Call, list[int]] = defaultdict(list)
        for call, index in settled:
            by_call[call].append(index)
        for call, count, size in advanced:
            try:
                call.waiter.advanced(call, count, size)
            except Exception:
                log.exception("the progress of call %d could not be told", call.id)
        for call, indices in by_call.items():
            try:
                call.waiter.settled(call, indices)
            except Exception:
                log.exception("outcomes of call %d could not be told", call.id)

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
        self._check_loop()
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        request = Request(next(self._ids), minimum, maximum, where, now, deadline, exclusive)
        if self._closed or self.draining:
            raise self._over()
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

    def keep(self, instruction: bytes) -> Payload:
        return self._transport.keep(instruction)

    def start_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        reduction: Reduction | None = None,
    ) -> Call:
        waiter = self._loop.create_future()
        return self._start(members, payloads, timeout, quorum, waiter, stream=False, reduction=reduction)

    def give_up_call(self, call: Running) -> None:
        self.calls.give_up(cast(Call, call), OutcomeKind.CANCELLED)
        self._schedule()

    def stream_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        listener: Waiter,
        reduction: Reduction | None = None,
    ) -> Call:
        """Like ``start_call``, but ``listener`` is told of the outcomes as they come."""
        return self._start(members, payloads, timeout, quorum, listener, stream=True, reduction=reduction)

    def _start(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        waiter: Waiter | asyncio.Future[None],
        *,
        stream: bool,
        reduction: Reduction | None,
    ) -> Call:
        self._check_loop()
        if self.draining and not self._closed:
            raise self._over()
        check_size(payloads, self.max_message)
        if not self._scheduled:
            self._schedule()
        deadline = None
        if timeout is not None:
            deadline = time.monotonic() + timeout
            self._watch(deadline)
        return self.calls.start(
            members,
            payloads,
            deadline=deadline,
            quorum=quorum,
            waiter=waiter,
            stream=stream,
            reduction=reduction,
        )

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "this coordinator is of another event loop; use it there, or connect to it in this one"
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
        now = time.monotonic()
        if now - self._timer_at > LATE:  # this process was stopped: who is back by now hasn't been read yet
            self.pool.was_away(now)
        self._timer, self._timer_at = None, float("inf")
        self.calls.expire(now)
        for member in self.pool.missing(now):
            self._sparingly.warning(
                "missing", "participant %s did not come back", printable(member.participant_id)
            )
            self.ended(member)
        for shortage in self.pool.expire(now):
            waiter = self._requests.pop(shortage.request.id)
            if not waiter.done():
                waiter.set_exception(shortage.error())
        self._schedule()
        self._watch(self.calls.next_deadline)
        self._watch(self.pool.next_deadline)

    def close(self) -> None:
        """Ends everything that still runs: calls as lost, waiters with Closed."""
        self._closed = True
        for member in (*self.pool, *self.pool.away, *self._ending):
            self.ended(member)
        self.calls.close()
        self.settle()
        for waiter in self._requests.values():
            if not waiter.done():
                waiter.set_exception(Closed(self.failure or "closed while waiting for participants"))
        if self._timer is not None:
            self._timer.cancel()
