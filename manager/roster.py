"""The members of a cohort in order, and what is worked out of them once for all of its calls.

A round to a thousand participants costs the coordinator mostly memory that isn't in the processor's caches.
So what doesn't change from round to round is kept: who is on which worker, and, for the transport, the list
of their sessions as it crosses the link.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, overload

from manager.members import Member


class Roster(Sequence[Member]):
    """A sequence of members that never changes."""

    __slots__ = ("_members", "_shares", "prepared")

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._shares: dict[int, tuple[list[int], list[Member]]] | None = None
        self.prepared: dict[int, Any] = {}
        """The transport's own, by worker."""

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
