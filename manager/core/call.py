"""One call: who takes part in it, and how it stands. What happens to it is for calls.py to decide."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from manager.core.members import Member
from manager.payloads.blobs import Payload
from manager.reducing.shares import Reduction, Shares


class OutcomeKind(IntEnum):
    """How a call ended for one participant. The values are those of control.proto's Outcome."""

    RESULT = 0
    FAILURE = 1
    LOST = 2
    TIMED_OUT = 3
    CANCELLED = 4


Answer = tuple[OutcomeKind, Payload]
"""How a call ended for one participant, and the serialised ParticipantMessage if it answered."""


class Call:
    """One instruction, or one each, to some members. Made by ``CallTable.start``.

    ``payloads`` holds one instruction for all, or one for each member. ``outcomes`` is parallel to
    ``members``, with None for those that have not ended. ``waiter`` is whatever the caller of the table hung
    on it; with ``stream`` each of its outcomes shows up in ``CallTable.settled``. ``states`` is what a
    reducing call has come to, for the caller to merge.
    """

    __slots__ = (
        "ending",
        "id",
        "members",
        "outcomes",
        "payloads",
        "pending",
        "quorum",
        "reduction",
        "results",
        "shares",
        "states",
        "stream",
        "waiter",
    )

    def __init__(
        self,
        id: int,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        quorum: int | None,
        waiter: Any,
        stream: bool,
        reduction: Reduction | None,
    ) -> None:
        self.id = id
        self.members = members
        self.payloads = payloads
        self.quorum = quorum
        self.waiter = waiter
        self.stream = stream
        self.reduction = reduction
        self.shares = None if reduction is None else Shares()
        self.states: Sequence[Payload] = ()
        self.pending = len(members)
        self.outcomes: list[Answer | None] = [None] * self.pending
        self.results = 0
        self.ending: OutcomeKind | None = None  # of a reducing call that was given up

    @property
    def answered(self) -> int:
        """Participants that have sent a result."""
        if self.shares is None or not self.pending:
            return self.results
        return self.shares.folded

    @property
    def failed(self) -> int:
        """Participants that will send no result."""
        settled = len(self.outcomes) - self.pending
        return settled - self.results

    @property
    def bytes(self) -> int:
        """Size of the results so far."""
        if self.shares is not None:
            return self.shares.bytes
        return sum(len(outcome[1]) for outcome in self.outcomes if outcome is not None)


class Send(NamedTuple):
    """An instruction to members of any worker. With ``call`` it belongs to a reducing call.

    ``hurry``: each answer is waited for, not only all of them.
    """

    tag: int
    payload: Payload
    members: Sequence[Member]
    call: Call | None
    hurry: bool = False
