"""The members of a cohort in order, and what is worked out of them once for all of its calls.

A round to a thousand participants costs the coordinator mostly memory that isn't in the processor's caches.
So what doesn't change from round to round is kept: who is on which worker; for the transport, the list of
their sessions as it crosses the link; and that they all did the same in the last round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from manager.core.members import Member, Work, work_on

if TYPE_CHECKING:
    from manager.core.call import Call


class Roster(Sequence[Member]):
    """A sequence of members that never changes."""

    __slots__ = ("_indices", "_members", "_next", "_seatings", "_shares", "_works", "prepared")

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._shares: dict[int, tuple[list[int], list[Member]]] | None = None
        self._indices: dict[Member, int] | None = None
        self.prepared: dict[int, Any] = {}
        """The transport's own, by worker."""
        self._seatings: int | None = None
        self._next: Roster | None = None
        self._works: dict[int, Work] = {}  # by worker: what all its members were given as one

    def current(self, seatings: int) -> Roster:
        """This roster; or, if members have moved since it was first used, one of the same members anew.

        ``seatings`` counts the moves of members in all. Calls that run keep the roster that they began with.
        """
        if self._seatings is None:
            self._seatings = seatings
        if self._seatings == seatings:
            return self
        if self._next is None or self._next._seatings != seatings:
            self._next = Roster(self._members)
        return self._next.current(seatings)

    def is_current(self, seatings: int) -> bool:
        """Whether nobody has moved since it was first used."""
        return self._seatings == seatings

    @property
    def shares(self) -> dict[int, tuple[list[int], list[Member]]]:
        """By worker: the indices of its members, and the members. Neither list may be changed."""
        if self._shares is None:
            shares: dict[int, tuple[list[int], list[Member]]] = defaultdict(lambda: ([], []))
            for index, member in enumerate(self._members):
                indices, members = shares[member.worker]
                indices.append(index)
                members.append(member)
            self._shares = dict(shares)
        return self._shares

    # A reducing call tells a worker, and hears of it, "all of them". All members at a worker then have one
    # work, the same in each round, until one of them goes its own way: so this costs as much for any number.

    def share(self, tag: int, call: Call) -> None:
        """All members have been given this instruction: from now on the members at each worker as one."""
        self._works = {}
        for worker, (_, members) in self.shares.items():
            work = self._works[worker] = work_on(tag, call)
            for member in members:
                member.work = work

    def take_up(self, tag: int, call: Call) -> bool:
        """Gives them all another instruction. If not all are as they were, and idle: False, and nothing."""
        works = self._works.values()
        if not works or any(work.apart or work.tag for work in works):
            return False
        for work in works:
            work.tag, work.call = tag, call
        return True

    def put_down(self, worker: int, tag: int) -> bool:
        """All at this worker have answered it. If not all are as they were: False, and nothing."""
        work = self._works.get(worker)
        if work is None or work.apart or work.tag != tag:
            return False
        work.tag, work.call = 0, None
        return True

    def let_go(self, call: Call) -> None:
        """The call has ended: it is not to be kept by those who did not end it as one."""
        if any(work.call is call for work in self._works.values()):
            self._works = {}

    def index_of(self, member: Member) -> int | None:
        """The member's index, without a look at all others each time; None if it isn't in it."""
        if self._indices is None:
            self._indices = {other: index for index, other in enumerate(self._members)}
        return self._indices.get(member)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Member, ...]: ...
    def __getitem__(self, index: int | slice) -> Member | tuple[Member, ...]:
        return self._members[index]
