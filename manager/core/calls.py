"""Decides how every call ends for each of its participants. Sans-IO.

The promise kept here: each participant of each call ends in exactly one of result, failure, lost, timed out,
cancelled (``OutcomeKind``). It holds because an outcome is written in one place (``_settle``), once.

- What members work on, and what waits for them, is kept in assignments.py.
- A call that is given up (timeout, cancel, quorum) settles at once. Its participants stay busy until their
  late answer comes, which is counted and dropped: a tag tells it from the answer to the next instruction.
- A member that is gone settles everything it had as lost.
- A *reducing* call gets no answers but partials from the workers (shares.py). When it is given up the workers
  are told to close their batches, and it settles with the last of their partials.

Effects are collected in ``sends``, ``cancels``, ``closes``, ``settled``, ``advanced`` and ``finished``, which
the caller (dispatcher.py) empties after each event. Payloads are opaque but for their first byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from manager.core.assignments import LOST, Assignments
from manager.core.call import Answer, Call, OutcomeKind
from manager.core.deadlines import Deadlines
from manager.core.members import IDLE, Member, work_on
from manager.core.roster import Roster
from manager.payloads.blobs import Blob, Payload
from manager.reducing.schema import decode_schema, describe_mismatch
from manager.reducing.shares import GIVEN_UP, Folded, Partial, Reduction, Shares
from protos.envelope import Kind
from protos.messages import refusal

_FAILURE_TAG = Kind.FAILURE << 3 | 2

_RESULT = OutcomeKind.RESULT
_FOLDED: Answer = (OutcomeKind.RESULT, b"")


class CallTable(Assignments):
    """All calls that run, and what each member works on."""

    def __init__(self, first_tag: int = 1) -> None:
        super().__init__(first_tag)
        self._next_call = 1
        self._running = 0
        self._deadlines: Deadlines[Call] = Deadlines()
        self._reducing: dict[int, Call] = {}
        self._sessions: dict[
            int, dict[int, int]
        ] = {}  # by call and index: of those who moved after they answered
        self.counters = dict.fromkeys(OutcomeKind, 0)
        self.late = 0
        # Effects, beside ``sends``:
        self.cancels: list[tuple[Member, int]] = []
        self.closes: list[tuple[int, Call]] = []  # which worker is to close its batch of which call
        self.settled: list[tuple[Call, int]] = []
        self.advanced: list[tuple[Call, int, int]] = []  # more answers of a reducing call: how many, bytes
        self.finished: list[Call] = []

    def __len__(self) -> int:
        """How many calls run."""
        return self._running

    # Events

    def start(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        *,
        deadline: float | None = None,
        quorum: int | None = None,
        waiter: Any = None,
        stream: bool = False,
        reduction: Reduction | None = None,
    ) -> Call:
        """Sends ``payloads[0]`` to all ``members``, or ``payloads[i]`` to ``members[i]``."""
        if len(payloads) not in (1, len(members)):
            raise ValueError(f"{len(payloads)} instructions for {len(members)} participants")
        if deadline is not None and math.isnan(deadline):
            raise ValueError("the deadline of a call is not a number")  # it would block all others'
        if (len(payloads) == 1 and len(members) > 1) or reduction is not None:
            members = (members if isinstance(members, Roster) else Roster(members)).current(self._seatings)
        call = Call(self._next_call, members, payloads, quorum, waiter, stream, reduction)
        self._next_call += 1
        self._running += 1
        if deadline is not None:
            self._deadlines.add(deadline, call.id, call)
        if reduction is not None:
            self._reducing[call.id] = call
        if not members:
            self._finish(call)
        elif len(payloads) == 1 and len(members) > 1:
            for index, answer in self._broadcast(call):
                self._settle(call, index, answer)
        else:
            for index, member in enumerate(members):
                if (ended := self._assign(member, call, index)) is not None:
                    self._settle(call, index, ended)
        return call

    def answered(self, answers: Iterable[tuple[Member | None, int, Payload | None]]) -> None:
        """Members have answered the instructions with these tags.

        None stands for a member that is gone, and for an answer that is.
        """
        for member, tag, answer in answers:
            if member is None:
                continue
            work = member.work
            if work.tag != tag:
                self.late += 1  # to an instruction of an earlier life of this coordinator
                continue
            call = work.call
            work.apart, member.work = True, IDLE
            if call is None:
                self.late += 1
            elif answer is None:
                self._settle(call, member.index, LOST)
            elif answer.__class__ is not Blob and answer and answer[0] == _FAILURE_TAG:  # type: ignore[index]
                self._settle(call, member.index, (OutcomeKind.FAILURE, answer))
            elif call.shares is not None:  # it came when its batch was closed already
                self.late += 1
                self._settle(call, member.index, (call.ending or OutcomeKind.LOST, b""))
            else:
                self._settle(call, member.index, (_RESULT, answer))
            if member.queue:
                self._send(member, *member.queue.popleft())

    def folded(self, worker: int, folded: Folded, members: Mapping[int, Member]) -> None:
        """Results have been folded in at a worker. ``members`` are those of the worker, by session."""
        call, tag = self._reducing.get(folded.batch), folded.tag
        answered: list[int] = []
        for session in folded.sessions:
            member = members.get(session)
            if member is not None:
                if call is not None and member.work.call is call:
                    answered.append(member.index)
                else:
                    self.late += 1
                self._idle(member)
        if call is None or call.shares is None:
            for member in members.values() if tag else ():
                if member.work.tag == tag:
                    self.late += 1
                    self._idle(member)
            return
        if tag:
            others = self._all_answered(call, worker, tag, members)
            answered = answered + others if answered else others
        call.shares.answered(worker, folded.part, answered)
        call.shares.bytes += folded.size
        if call.stream:
            self.advanced.append((call, len(answered), folded.size))
        if call.quorum is not None and call.shares.folded >= call.quorum:
            self.give_up(call, OutcomeKind.CANCELLED)

    def _all_answered(self, call: Call, worker: int, tag: int, there: Mapping[int, Member]) -> list[int]:
        """Takes the answers of all at this worker who still work on the instruction with this tag."""
        roster = cast(Roster, call.members)
        if not roster.is_current(self._seatings):  # some of those who are there now weren't when it began
            late = []
            for member in there.values():
                if member.work.tag == tag and member.work.call is call:
                    late.append(member.index)
                    self._idle(member)
            return late
        indices, members = roster.shares.get(worker, ([], []))
        if roster.put_down(worker, tag):
            return indices
        answered: list[int] | None = None  # all of them, so far
        for position, member in enumerate(members):
            if member.work.tag == tag and member.work.call is call:
                member.work = IDLE
                if member.queue:
                    self._send(member, *member.queue.popleft())
                if answered is not None:
                    answered.append(indices[position])
            elif answered is None:
                answered = indices[:position]
        return indices if answered is None else answered

    def partial(self, worker: int, partial: Partial) -> None:
        """What a part of a batch has come to."""
        call = self._reducing.get(partial.batch)
        if call is None or call.shares is None:
            return
        outcome = (OutcomeKind.FAILURE, refusal(partial.error)) if partial.error else LOST
        moved = self._sessions.get(call.id, {})
        for index in call.shares.partial(
            worker, partial, lambda index: moved.get(index) or call.members[index].session
        ):
            self._settle(call, index, outcome)
        if partial.closed:
            call.shares.closing.discard(worker)
        self._check(call, call.shares)

    def lost(self, member: Member) -> None:
        """The member's session has ended; ``member.gone`` is set."""
        queue, member.queue = member.queue or (), None
        call = member.work.call
        member.turn_to(IDLE)
        if call is not None:
            self._settle(call, member.index, LOST)
        for call, index in queue:
            self._settle(call, index, LOST)

    def moved(self, member: Member) -> None:
        """The member, which was idle, has been told to reconnect: ``returned`` or ``lost`` follows."""
        for other in self._reducing.values():
            self._keep_session(other, member)
        if (crossed := self._away(member)) is not None:
            call, index = crossed
            self._settle(call, index, (call.ending or OutcomeKind.LOST, b""))

    def _keep_session(self, call: Call, member: Member) -> None:
        """If the member has answered, a partial that is yet to come may name it by its session of now."""
        index = cast(Roster, call.members).index_of(member)
        if index is None or call.outcomes[index] is not None or member.work.call is call:
            return
        if not member.queue or (call, index) not in member.queue:
            self._sessions.setdefault(call.id, {}).setdefault(index, member.session)

    def worker_lost(self, worker: int) -> None:
        """Nothing will come any more of the batches that this worker had."""
        for call in list(self._reducing.values()):
            if call.shares is not None:
                for index in call.shares.lose(worker):
                    self._settle(call, index, LOST)
                self._check(call, call.shares)

    def close(self) -> None:
        """All members are gone: no worker will send a partial any more."""
        for call in list(self._reducing.values()):
            if call.shares is not None:
                for worker in call.shares.workers | call.shares.closing:
                    self.worker_lost(worker)

    def found(self, member: Member, tag: int) -> None:
        """The member's worker, which has forgotten its batches, says that it works on the instruction with
        this tag (0: on none).

        Whatever was sent to it otherwise never arrived, or its answer is lost.
        """
        call, index = member.work.call, member.index
        if member.work.tag == tag and (call is None or call.shares is None):
            return
        if tag:  # an instruction of which nobody wants to know any more
            member.turn_to(work_on(tag, None))
            if member.accepts_cancel:
                self.cancels.append((member, tag))
        else:
            self._idle(member)
        if call is not None:
            self._settle(call, index, LOST)

    def give_up(self, call: Call, kind: OutcomeKind) -> None:
        """Ends the call as ``kind`` for all who have not answered. Does nothing to a finished call."""
        if call.shares is not None:
            self._close(call, call.shares, kind)
            return
        for index, outcome in enumerate(call.outcomes):
            if outcome is not None:
                continue
            member = call.members[index]
            if member.work.call is call and member.index == index:
                member.turn_to(work_on(member.work.tag, None))
                if member.accepts_cancel:
                    self.cancels.append((member, member.work.tag))
            else:
                member.step_back(call, index)
            self._settle(call, index, (kind, b""))

    def expire(self, now: float) -> None:
        """Times out the calls whose deadline has come."""
        while (call := self._deadlines.due(now)) is not None:
            self.give_up(call, OutcomeKind.TIMED_OUT)

    @property
    def next_deadline(self) -> float | None:
        return self._deadlines.next

    # Ending

    def _settle(self, call: Call, index: int, outcome: Answer) -> None:
        outcomes = call.outcomes
        if outcomes[index] is not None:
            raise _settled_twice(call, index)
        outcomes[index] = outcome
        pending = call.pending = call.pending - 1
        kind = outcome[0]
        self.counters[kind] += 1
        if call.stream:
            self.settled.append((call, index))
        if kind is _RESULT:
            call.results += 1
            if call.quorum is not None and call.results >= call.quorum and pending and call.shares is None:
                self.give_up(call, OutcomeKind.CANCELLED)
                return
        if not pending:
            self._finish(call)
        elif call.shares is not None and pending == call.shares.covered:
            self._decide(call, call.shares)

    def _close(self, call: Call, shares: Shares, kind: OutcomeKind) -> None:
        """Ends a reducing call: what is folded counts, if its partials still come."""
        if call.ending is not None or call.pending == 0:
            return
        call.ending = kind
        shares.closing = shares.workers
        unsent = []
        for index, outcome in enumerate(call.outcomes):
            if outcome is None:
                member = call.members[index]
                if member.work.call is call and member.index == index:
                    shares.closing.add(member.worker)
                    if member.accepts_cancel:
                        self.cancels.append((member, member.work.tag))
                elif member.step_back(call, index):
                    unsent.append(index)
        self.closes += [(worker, call) for worker in sorted(shares.closing)]
        for index in unsent:
            self._settle(call, index, (kind, b""))
        self._check(call, shares)

    def _check(self, call: Call, shares: Shares) -> None:
        """A reducing call may be at its end."""
        self._closed(call, shares)
        if call.pending and call.pending == shares.covered:
            self._decide(call, shares)

    def _closed(self, call: Call, shares: Shares) -> None:
        """Once the last partials of a call that was given up are here, the others won't answer any more."""
        if call.ending is None or shares.closing:
            return
        for index, outcome in enumerate(call.outcomes):
            member = call.members[index]
            if outcome is None and member.work.call is call and member.index == index:
                member.turn_to(work_on(member.work.tag, None))  # it stays busy until its late answer
                self._settle(call, index, (call.ending, b""))

    def _decide(self, call: Call, shares: Shares) -> None:
        """All have ended otherwise or are in a partial: settles those, too."""
        if call.ending is not None and shares.closing:
            return
        decision = shares.decide()
        call.states = decision.states
        refusals: dict[str, Answer] = {}  # of few kinds, but of any number of participants and tensors
        for index, schema in decision.others:
            if schema not in refusals:
                text = describe_mismatch(decode_schema(schema), decode_schema(decision.schema))
                refusals[schema] = (OutcomeKind.FAILURE, refusal(text))
            self._settle(call, index, refusals[schema])
        for index in decision.given_up:
            self._settle(call, index, (OutcomeKind.FAILURE, refusal(GIVEN_UP)))
        self._settle_all(call, decision.indices, _FOLDED)

    def _settle_all(self, call: Call, indices: Sequence[int], outcome: Answer) -> None:
        """``_settle`` for many who have sent a result, after which the call is finished."""
        outcomes = call.outcomes
        if call.pending == len(indices) == len(outcomes) == len(set(indices)):
            call.outcomes = [outcome] * len(outcomes)
        else:
            for index in indices:
                if outcomes[index] is not None:
                    raise _settled_twice(call, index)
                outcomes[index] = outcome
        call.pending -= len(indices)
        call.results += len(indices)
        self.counters[outcome[0]] += len(indices)
        if call.stream:
            self.settled += [(call, index) for index in indices]
        if call.pending == 0:
            self._finish(call)

    def _finish(self, call: Call) -> None:
        self._running -= 1
        self._deadlines.remove(call.id)
        if call.shares is not None:
            self._reducing.pop(call.id, None)
            cast(Roster, call.members).let_go(call)
            self._sessions.pop(call.id, None)
        self.finished.append(call)


def _settled_twice(call: Call, index: int) -> AssertionError:
    return AssertionError(f"call {call.id} settled twice for {call.members[index].participant_id}")
