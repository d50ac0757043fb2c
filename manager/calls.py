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
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from manager.members import Member
from protos.envelope import Kind

_FAILURE_TAG = Kind.FAILURE << 3 | 2


class OutcomeKind(IntEnum):
    """How a call ended for one participant. The values are those of control.proto's Outcome."""

    RESULT = 0
    FAILURE = 1
    LOST = 2
    TIMED_OUT = 3
    CANCELLED = 4


Payload = bytes | memoryview

Answer = tuple[OutcomeKind, Payload]
"""How a call ended for one participant, and the serialised ParticipantMessage if it answered."""

_LOST: Answer = (OutcomeKind.LOST, b"")


class Call:
    """One instruction, or one each, to some members. Made by ``CallTable.start``.

    ``payloads`` holds one instruction for all, or one for each member. ``outcomes`` is parallel to
    ``members``, with None for those that have not ended. ``waiter`` is whatever the caller of the table hung
    on it; with ``stream`` each of its outcomes shows up in ``CallTable.settled``.
    """

    __slots__ = (
        "id",
        "members",
        "outcomes",
        "payloads",
        "pending",
        "quorum",
        "results",
        "stream",
        "waiter",
    )

    def __init__(
        self,
        id: int,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        quorum: int | None,
        waiter: Any,
        stream: bool,
    ) -> None:
        self.id = id
        self.members = members
        self.payloads = payloads
        self.quorum = quorum
        self.waiter = waiter
        self.stream = stream
        self.pending = len(members)
        self.outcomes: list[Answer | None] = [None] * self.pending
        self.results = 0


class CallTable:
    """All calls that run, and what each member works on."""

    def __init__(self, first_tag: int = 1) -> None:
        self._next_tag = first_tag
        self._next_call = 1
        self._running = 0
        self._with_deadline: dict[int, Call] = {}
        self._deadlines: list[tuple[float, int]] = []
        self.counters = dict.fromkeys(OutcomeKind, 0)
        self.late = 0
        # Effects:
        self.sends: list[tuple[Member, int, bytes]] = []
        self.cancels: list[tuple[Member, int]] = []
        self.settled: list[tuple[Call, int]] = []
        self.finished: list[Call] = []

    def __len__(self) -> int:
        """How many calls run."""
        return self._running

    # Events

    def start(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        *,
        deadline: float | None = None,
        quorum: int | None = None,
        waiter: Any = None,
        stream: bool = False,
    ) -> Call:
        """Sends ``payloads[0]`` to all ``members``, or ``payloads[i]`` to ``members[i]``."""
        if len(payloads) not in (1, len(members)):
            raise ValueError(f"{len(payloads)} instructions for {len(members)} participants")
        if deadline is not None and math.isnan(deadline):
            raise ValueError("the deadline of a call is not a number")  # it would block all others'
        call = Call(self._next_call, members, payloads, quorum, waiter, stream)
        self._next_call += 1
        self._running += 1
        if deadline is not None:
            self._remember_deadline(deadline, call)
        if not members:
            self._finish(call)
        for index, member in enumerate(members):
            if member.gone:
                self._settle(call, index, _LOST)
            elif member.tag:
                member.queue.append((call, index))
            else:
                self._send(member, call, index)
        return call

    def answered(self, member: Member, tag: int, answer: Payload) -> None:
        """The member answered the instruction with this tag."""
        if member.tag != tag:
            self.late += 1  # to an instruction of an earlier life of this coordinator
            return
        call, member.tag, member.call = member.call, 0, None
        if call is None:
            self.late += 1
        elif len(answer) and answer[0] == _FAILURE_TAG:
            self._settle(call, member.index, (OutcomeKind.FAILURE, answer))
        else:
            self._settle(call, member.index, (OutcomeKind.RESULT, answer))
        if member.queue:
            self._send(member, *member.queue.popleft())

    def lost(self, member: Member) -> None:
        """The member's session has ended; ``member.gone`` is set."""
        queue = list(member.queue)
        member.queue.clear()
        call, member.tag, member.call = member.call, 0, None
        if call is not None:
            self._settle(call, member.index, _LOST)
        for call, index in queue:
            self._settle(call, index, _LOST)

    def found(self, member: Member, tag: int) -> None:
        """The member's worker says that it works on the instruction with this tag (0: on none).

        Whatever was sent to it otherwise never arrived, or its answer is lost.
        """
        if member.tag == tag:
            return
        call, member.tag, member.call = member.call, tag, None
        if call is not None:
            self._settle(call, member.index, _LOST)
        if member.queue and not tag:
            self._send(member, *member.queue.popleft())

    def give_up(self, call: Call, kind: OutcomeKind) -> None:
        """Ends the call as ``kind`` for all who have not answered. Does nothing to a finished call."""
        for index, outcome in enumerate(call.outcomes):
            if outcome is not None:
                continue
            member = call.members[index]
            if member.call is call and member.index == index:
                member.call = None
                if member.accepts_cancel:
                    self.cancels.append((member, member.tag))
            elif (call, index) in member.queue:
                member.queue.remove((call, index))
            self._settle(call, index, (kind, b""))

    def expire(self, now: float) -> None:
        """Times out the calls whose deadline has come."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, call_id = heapq.heappop(self._deadlines)
            if call := self._with_deadline.get(call_id):
                self.give_up(call, OutcomeKind.TIMED_OUT)

    @property
    def next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._with_deadline:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _remember_deadline(self, deadline: float, call: Call) -> None:
        living = self._with_deadline
        living[call.id] = call
        # Calls that finish leave their entry behind; don't let those outgrow the living.
        if len(self._deadlines) > 64 + 2 * len(living):
            self._deadlines = [entry for entry in self._deadlines if entry[1] in living]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, call.id))

    def _send(self, member: Member, call: Call, index: int) -> None:
        tag = member.tag = self._next_tag
        self._next_tag = tag + 1
        member.call = call
        member.index = index
        payloads = call.payloads
        self.sends.append((member, tag, payloads[0] if len(payloads) == 1 else payloads[index]))

    def _settle(self, call: Call, index: int, outcome: Answer) -> None:
        if call.outcomes[index] is not None:
            raise AssertionError(f"call {call.id} settled twice for {call.members[index].participant_id}")
        call.outcomes[index] = outcome
        call.pending -= 1
        kind = outcome[0]
        self.counters[kind] += 1
        if call.stream:
            self.settled.append((call, index))
        if kind is OutcomeKind.RESULT:
            call.results += 1
        if call.pending == 0:
            self._finish(call)
        elif kind is OutcomeKind.RESULT and call.quorum is not None and call.results >= call.quorum:
            self.give_up(call, OutcomeKind.CANCELLED)

    def _finish(self, call: Call) -> None:
        self._running -= 1
        if self._with_deadline:
            self._with_deadline.pop(call.id, None)
        self.finished.append(call)
