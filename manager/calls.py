"""Decides how every call ends for each of its participants. Sans-IO.

The promise kept here: each participant of each call ends in exactly one of result, failure, lost, timed out,
cancelled (``OutcomeKind``). It holds because an outcome is written in one place (``_settle``), once.

- A participant works on one instruction at a time; further ones wait in its queue, in order.
- A call that is given up (timeout, cancel, quorum) settles at once. Its participants stay busy until their
  late answer comes, which is counted and dropped: a tag tells it from the answer to the next instruction.
- A member that is gone settles everything it had as lost.

Effects are collected in ``sends``, ``cancels``, ``settled`` and ``finished``, which the caller
(dispatcher.py) empties after each event. Payloads are opaque bytes but for their first byte.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from enum import IntEnum

from manager.members import InFlight, Member
from protos.envelope import Kind

Payload = bytes | memoryview

_FAILURE_TAG = Kind.FAILURE << 3 | 2


class OutcomeKind(IntEnum):
    """How a call ended for one participant. The values are those of control.proto's Outcome."""

    RESULT = 0
    FAILURE = 1
    LOST = 2
    TIMED_OUT = 3
    CANCELLED = 4


class Call:
    """One instruction, or one each, to some members. Made by ``CallTable.start``.

    ``payloads`` holds one instruction for all, or one for each member. ``outcomes`` and ``answers`` are
    parallel to ``members``; an answer is there for results and failures. The callbacks are for the caller of
    the table to use: it finds the call in ``settled`` (only if ``on_settled`` is set) and in ``finished``.
    """

    __slots__ = (
        "answers",
        "deadline",
        "id",
        "members",
        "on_finished",
        "on_settled",
        "outcomes",
        "payloads",
        "pending",
        "quorum",
        "results",
    )

    def __init__(
        self,
        id: int,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        deadline: float | None = None,
        quorum: int | None = None,
        on_finished: Callable[[Call], None] | None = None,
        on_settled: Callable[[Call, int], None] | None = None,
    ) -> None:
        self.id = id
        self.members = members
        self.payloads = payloads
        self.deadline = deadline
        self.quorum = quorum
        self.on_finished = on_finished
        self.on_settled = on_settled
        self.outcomes: list[OutcomeKind | None] = [None] * len(members)
        self.answers: list[Payload] = [b""] * len(members)
        self.pending = len(members)
        self.results = 0


class CallTable:
    """All calls that run, and what each member works on."""

    def __init__(self, first_tag: int = 1) -> None:
        self._next_tag = first_tag
        self._next_call = 1
        self._live: dict[int, Call] = {}
        self._deadlines: list[tuple[float, int]] = []
        self.counters: Counter[OutcomeKind] = Counter()
        self.late = 0
        # Effects:
        self.sends: list[tuple[Member, int, bytes]] = []
        self.cancels: list[tuple[Member, int]] = []
        self.settled: list[tuple[Call, int]] = []
        self.finished: list[Call] = []

    def __len__(self) -> int:
        return len(self._live)

    # Events

    def start(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        *,
        deadline: float | None = None,
        quorum: int | None = None,
        on_finished: Callable[[Call], None] | None = None,
        on_settled: Callable[[Call, int], None] | None = None,
    ) -> Call:
        """Sends ``payloads[0]`` to all ``members``, or ``payloads[i]`` to ``members[i]``."""
        if len(payloads) not in (1, len(members)):
            raise ValueError(f"{len(payloads)} instructions for {len(members)} participants")
        call = Call(self._next_call, members, payloads, deadline, quorum, on_finished, on_settled)
        self._next_call += 1
        self._live[call.id] = call
        if deadline is not None:
            self._remember_deadline(deadline, call.id)
        if not members:
            self._finish(call)
        for index, member in enumerate(members):
            if member.gone:
                self._settle(call, index, OutcomeKind.LOST)
            elif member.in_flight is None:
                self._send(member, call, index)
            else:
                member.queue.append((call, index))
        return call

    def answered(self, member: Member, tag: int, answer: Payload) -> None:
        """The member answered the instruction with this tag."""
        in_flight = member.in_flight
        if in_flight is None or in_flight.tag != tag:
            self.late += 1  # to an instruction of an earlier life of this coordinator
            return
        member.in_flight = None
        call = in_flight.call
        if call is None:
            self.late += 1
        elif len(answer) and answer[0] == _FAILURE_TAG:
            self._settle(call, in_flight.index, OutcomeKind.FAILURE, answer)
        else:
            self._settle(call, in_flight.index, OutcomeKind.RESULT, answer)
        if member.queue and member.in_flight is None:
            self._send(member, *member.queue.popleft())

    def lost(self, member: Member) -> None:
        """The member's session has ended; ``member.gone`` is set."""
        in_flight, member.in_flight = member.in_flight, None
        queue = list(member.queue)
        member.queue.clear()
        if in_flight is not None and in_flight.call is not None:
            self._settle(in_flight.call, in_flight.index, OutcomeKind.LOST)
        for call, index in queue:
            self._settle(call, index, OutcomeKind.LOST)

    def found(self, member: Member, tag: int) -> None:
        """The member's worker says that it works on the instruction with this tag (0: on none).

        Whatever was sent to it otherwise never arrived, or its answer is lost.
        """
        in_flight = member.in_flight
        if (in_flight.tag if in_flight is not None else 0) == tag:
            return
        member.in_flight = InFlight(tag, None, 0) if tag else None
        if in_flight is not None and in_flight.call is not None:
            self._settle(in_flight.call, in_flight.index, OutcomeKind.LOST)
        if member.queue and member.in_flight is None:
            self._send(member, *member.queue.popleft())

    def give_up(self, call: Call, kind: OutcomeKind) -> None:
        """Ends the call as ``kind`` for all who have not answered. Does nothing to a finished call."""
        for index, outcome in enumerate(call.outcomes):
            if outcome is not None:
                continue
            member = call.members[index]
            in_flight = member.in_flight
            if in_flight is not None and in_flight.call is call and in_flight.index == index:
                in_flight.call = None
                if member.accepts_cancel:
                    self.cancels.append((member, in_flight.tag))
            elif not member.gone and (call, index) in member.queue:
                member.queue.remove((call, index))
            self._settle(call, index, kind)

    def expire(self, now: float) -> None:
        """Times out the calls whose deadline has come."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, call_id = heapq.heappop(self._deadlines)
            if call := self._live.get(call_id):
                self.give_up(call, OutcomeKind.TIMED_OUT)

    @property
    def next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._live:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _remember_deadline(self, deadline: float, call_id: int) -> None:
        # Calls that finish leave their entry behind; don't let those outgrow the living.
        if len(self._deadlines) > 64 + 2 * len(self._live):
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._live]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, call_id))

    def _send(self, member: Member, call: Call, index: int) -> None:
        tag = self._next_tag
        self._next_tag += 1
        member.in_flight = InFlight(tag, call, index)
        payloads = call.payloads
        self.sends.append((member, tag, payloads[0] if len(payloads) == 1 else payloads[index]))

    def _settle(self, call: Call, index: int, kind: OutcomeKind, answer: Payload = b"") -> None:
        if call.outcomes[index] is not None:
            raise AssertionError(f"call {call.id} settled twice for {call.members[index].participant_id}")
        call.outcomes[index] = kind
        call.answers[index] = answer
        call.pending -= 1
        self.counters[kind] += 1
        if call.on_settled is not None:
            self.settled.append((call, index))
        if call.pending == 0:
            self._finish(call)
        elif kind is OutcomeKind.RESULT:
            call.results += 1
            if call.quorum is not None and call.results >= call.quorum:
                self.give_up(call, OutcomeKind.CANCELLED)

    def _finish(self, call: Call) -> None:
        del self._live[call.id]
        self.finished.append(call)
