"""Decides what each member works on, and what it gets next. Sans-IO; the lower half of calls.py.

- A participant works on one instruction at a time; further ones wait in its queue, in order, ``MAX_QUEUE`` at
  most.
- A member that has been told to reconnect is as good as at work (its tag is ``MOVING``) until it is back on
  some worker. It was idle when it was told so, hence an instruction that crossed that was never given to it:
  it waits, first in the queue.

How calls end is the business of calls.py; what can't be given to a member ends there.
"""

from __future__ import annotations

from typing import Final, cast

from manager.core.call import Answer, Call, OutcomeKind, Send
from manager.core.members import IDLE, MOVING, Member, work_on
from manager.core.roster import Roster
from protos import stream_pb2
from protos.messages import failure

MAX_QUEUE = 1_000
"""Instructions that may wait for one participant: callers who don't wait for answers must not fill memory."""

LOST: Answer = (OutcomeKind.LOST, b"")

_MOVING: Final = work_on(MOVING, None)

_TOO_MANY: Answer = (
    OutcomeKind.FAILURE,
    failure(
        stream_pb2.Failure.RESOURCE_EXHAUSTED, f"{MAX_QUEUE} instructions wait for this participant already"
    ).SerializeToString(),
)


class Assignments:
    """What all members work on. Instructions to be sent are collected in ``sends``."""

    def __init__(self, first_tag: int) -> None:
        self._next_tag = first_tag
        self._seatings = 0
        self.sends: list[Send] = []

    def _assign(self, member: Member, call: Call, index: int) -> Answer | None:
        """Gives the member its instruction of the call, or queues it. If neither can be: how that ends."""
        if member.gone:
            return LOST
        if member.work.tag:
            return None if member.line_up(call, index, MAX_QUEUE) else _TOO_MANY
        self._send(member, call, index)
        return None

    def _broadcast(self, call: Call) -> list[tuple[int, Answer]]:
        """Gives all members of the call its instruction; returns who can't have it, and how that ends."""
        tag = self._next_tag
        self._next_tag = tag + 1
        reducing = None if call.shares is None else call
        hurry = call.quorum is not None or (call.stream and reducing is None)
        roster = cast(Roster, call.members)
        if reducing is not None and roster.take_up(tag, call):
            self.sends.append(Send(tag, call.payloads[0], roster, reducing, hurry))
            return []
        work = work_on(tag, call)
        for index, member in enumerate(roster):
            if member.work.tag or member.gone:
                break
            member.work.apart = True
            member.work, member.index = work, index
        else:
            if reducing is not None:
                roster.share(tag, call)
            self.sends.append(Send(tag, call.payloads[0], roster, reducing, hurry))
            return []
        # Not all are idle.
        sent, ended = list(call.members[:index]), list[tuple[int, Answer]]()
        for late in range(index, len(call.members)):
            member = call.members[late]
            if member.work.tag or member.gone:
                if (answer := self._assign(member, call, late)) is not None:
                    ended.append((late, answer))
            else:
                member.turn_to(work)
                member.index = late
                sent.append(member)
        if sent:
            self.sends.append(Send(tag, call.payloads[0], sent, reducing, hurry))
        return ended

    def _send(self, member: Member, call: Call, index: int) -> None:
        tag = self._next_tag
        self._next_tag = tag + 1
        member.work.apart = True
        member.work, member.index = work_on(tag, call), index
        payloads = call.payloads
        payload = payloads[0] if len(payloads) == 1 else payloads[index]
        self.sends.append(Send(tag, payload, (member,), None if call.shares is None else call))

    def _idle(self, member: Member) -> None:
        """The member has done what it had to: it gets what comes next."""
        member.turn_to(IDLE)
        if member.queue:
            self._send(member, *member.queue.popleft())

    def _away(self, member: Member) -> tuple[Call, int] | None:
        """The member has been told to reconnect. Returns what crossed that if its call has been given up."""
        call, index = member.work.call, member.index
        member.turn_to(_MOVING)
        if call is None:
            return None
        if call.ending is not None:
            return call, index
        member.line_up_first(call, index)
        return None

    def returned(self, member: Member, tag: int = 0) -> None:
        """The member is back, perhaps on another worker.

        ``tag``: it works there on an instruction of which nobody wants to know any more.
        """
        self._seatings += 1
        if tag:
            member.turn_to(work_on(tag, None))
        else:
            self._idle(member)
