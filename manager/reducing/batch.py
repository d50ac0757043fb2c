"""Decides what a worker's share of a reducing call has come to. Sans-IO, but for the arithmetic.

A batch lives while some of its sessions work, or their answers are being folded in. Then it yields its
partial and is over; if the coordinator has more for it later (participants that were busy with something
else), another batch of the same id begins. When it is closed it yields what there is. folding.py carries it
out.

Results can be folded together only if they have the same tensors, and nobody knows beforehand who is right.
So there is a group for each kind of result, and the coordinator decides (shares.py). Each takes the memory of
a model, so there are only so many; for a further kind the smallest is given up, whose sessions are failures
then. What most participants send is therefore kept, unless it is the smallest whenever odd ones come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from manager.reducing.reducers import Contribution, Reducer
from manager.reducing.schema import Schema, schema_of
from manager.reducing.shares import Folded

MAX_GROUPS = 4
"""Kinds of results that a worker keeps apart, and one more while a result is folded in."""


class Kinds(NamedTuple):
    """What a batch has come to."""

    groups: list[tuple[Schema, list[int], Contribution]]  # whose results, and their state; the largest first
    given_up: list[int]  # whose kind of result has been


class Batch:
    """``working`` counts sessions that have not answered, ``folding`` answers that are being folded in."""

    __slots__ = (
        "_given_up",
        "_groups",
        "_make",
        "_sessions",
        "_size",
        "closed",
        "folding",
        "forgotten",
        "hurry",
        "id",
        "part",
        "tag",
        "working",
    )

    def __init__(self, id: int, part: int, make: Callable[[], Reducer]) -> None:
        """``part`` tells it from others of the same id; ``make`` gives a new reducer."""
        self.id = id
        self.part = part
        self.forgotten = False  # nobody wants to know any more
        self.closed = False
        self.hurry = False  # whether reports are urgent
        self.tag: int | None = None  # of its only broadcast; 0 if there are more, or not all answer
        self.working = 0
        self.folding = 0
        self._make = make
        self._groups: dict[Schema, tuple[Reducer, list[int]]] = {}
        self._given_up: list[int] = []
        self._sessions: list[int] = []
        self._size = 0

    @property
    def over(self) -> bool:
        """Whether it is time for its partial: nobody works on it any more, or it has been closed."""
        return not self.folding and (self.closed or not self.working)

    @property
    def news(self) -> bool:
        """Whether there is something to report."""
        return bool(self._sessions)

    def sent(self, tag: int, *, all_there: bool, hurry: bool) -> None:
        """Its sessions, or some of them, have been sent a broadcast; ``all_there``: nobody was missing."""
        self.tag = tag if self.tag is None and all_there else 0
        self.hurry = hurry

    def ended(self) -> None:
        """A session that worked for it has ended."""
        self.working -= 1
        self.tag = 0

    def fold(self, session: int, contribution: Contribution) -> None:
        """Takes in a session's result; ``folded`` must follow. Raises RefusedError if the reducer doesn't
        want it.

        The only method that may run in another thread, once at a time.
        """
        schema = schema_of(contribution.tensors)
        group = self._groups.get(schema)
        if group is None:
            reducer = self._make()
            if not reducer.uniform:
                schema = ()
            group = self._groups.get(schema, (reducer, []))
        group[0].fold(contribution)
        group[1].append(session)
        self._groups[schema] = group
        if len(self._groups) > MAX_GROUPS:
            self._give_up_one()

    def _give_up_one(self) -> None:
        """The smallest of the others; of several the one that came last."""
        *others, _ = self._groups
        smallest = min(reversed(others), key=lambda schema: len(self._groups[schema][1]))
        _, sessions = self._groups.pop(smallest)
        self._given_up += sessions

    def folded(self, session: int, size: int) -> None:
        """A session's result, of ``size`` bytes, has been taken in."""
        self._sessions.append(session)
        self._size += size

    def report(self) -> Folded:
        """Those folded in since the last report."""
        everybody = self.tag and not self.working and not self.folding
        sessions = [] if everybody else self._sessions
        report = Folded(self.id, self.part, sessions, self._size, (self.tag or 0) if everybody else 0)
        self._sessions, self._size = [], 0
        return report

    def partial(self) -> Kinds:
        """What it has come to; it begins anew."""
        groups = sorted(self._groups.items(), key=lambda item: -len(item[1][1]))
        given_up = self._given_up
        self._groups, self._given_up = {}, []
        return Kinds(
            [(schema, sessions, reducer.state()) for schema, (reducer, sessions) in groups], given_up
        )
