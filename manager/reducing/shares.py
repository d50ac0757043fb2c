"""Decides what a reducing call knows of each worker's share in it. Sans-IO; used by calls.py alone.

A worker folds the results of its participants and reports two things: that sessions have been *folded*, which
are then idle again, and *partials*, what all that was folded since the last one has come to. A participant
that was folded is in the answer only once the partial that it is part of has arrived. So its outcome is open
until then: if the worker dies first, it is lost.

Results can be added up only if they have the same tensors. Each partial therefore comes in groups, and at the
end the group that most participants are in, over all workers, is the answer; the others are failures. So it
makes no difference who answers first, unless a worker meets more kinds than it can keep apart (batch.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from manager.payloads.blobs import Payload
from protos import link_pb2
from protos.messages import from_scalars, to_scalars

GIVEN_UP: Final = (
    "its tensors (names, shapes or dtypes) are unlike those of others, and there were more kinds of results "
    "than a worker keeps apart: it gave up the one that fewest participants sent"
)
"""What is said to those whose results were of that kind."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """How the results of a call are folded: see reducers.py."""

    reducer: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ScalarError for an option that can't travel: whoever sends it later has nobody to tell."""
        to_scalars(self.options)

    def message(self) -> link_pb2.Reduction:
        return link_pb2.Reduction(reducer=self.reducer, options=to_scalars(self.options))


def reduction_of(message: link_pb2.Reduction) -> Reduction:
    """Raises ValueError for an option without a value."""
    return Reduction(message.reducer, from_scalars(message.options))


@dataclass(frozen=True, slots=True)
class Group:
    """Results with the same tensors, folded into one."""

    schema: str
    sessions: Sequence[int]  # whose; in a partial's first group empty: all that are named nowhere else
    state: Payload | None  # None: it can't be had


@dataclass(frozen=True, slots=True)
class Folded:
    """Sessions of a batch that have answered and whose results are folded in. They are idle again."""

    batch: int
    part: int  # tells several batches of one id at one worker apart
    sessions: Sequence[int]
    size: int  # bytes of their answers
    tag: int  # if not 0: besides, all that were sent the broadcast with this tag and still work on it


@dataclass(frozen=True, slots=True)
class Partial:
    """What a part of a batch has come to."""

    batch: int
    part: int
    groups: Sequence[Group]
    closed: bool  # nothing more of this batch will follow
    error: str = ""  # why there is nothing to show for those who were folded
    given_up: Sequence[int] = ()  # sessions that were folded, but their kind was given up for others


@dataclass(slots=True)
class _Covered:
    schema: str
    indices: list[int]
    state: Payload


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reducing call has come to."""

    indices: list[int]  # of those whose results are in it
    states: list[Payload]  # to be merged
    others: list[tuple[int, str]]  # whose results have other tensors, with their schema
    schema: str  # of the answer; empty if there is none
    given_up: list[int]  # whose results were of a kind that a worker couldn't keep


class Shares:
    """All workers' shares in one call. Participants are named by their index in the call."""

    def __init__(self) -> None:
        self._answered: dict[tuple[int, int], list[int]] = {}  # by worker and part; not covered yet
        self._covered: list[_Covered] = []
        self._given_up: list[int] = []
        self.covered = 0  # participants whose partial is here
        self.folded = 0  # all who have answered so far
        self.bytes = 0
        self.closing: set[int] = set()  # workers whose last partial is awaited

    def answered(self, worker: int, part: int, indices: list[int]) -> None:
        """These have been folded in at this worker. The list must not be changed afterwards."""
        before = self._answered.get((worker, part))
        self._answered[worker, part] = before + indices if before else indices
        self.folded += len(indices)

    def partial(self, worker: int, partial: Partial, session_of: Callable[[int], int]) -> list[int]:
        """What all that was folded in this part has come to.

        ``session_of`` gives the session of an index. Returns those of whom nothing is said: they are lost.
        """
        answered = self._answered.pop((worker, partial.part), [])
        groups = partial.groups
        if not groups:
            return answered
        by_group = [answered]
        if len(groups) > 1 or partial.given_up:
            index_of = {session_of(index): index for index in answered}
            given_up = [index_of.pop(s) for s in partial.given_up if s in index_of]
            self._given_up += given_up
            self.covered += len(given_up)
            by_group = [[index_of.pop(s) for s in group.sessions if s in index_of] for group in groups]
            by_group[0] += index_of.values()
        lost: list[int] = []
        for group, indices in zip(groups, by_group, strict=True):
            if group.state is None:
                lost += indices
            elif indices:
                self._covered.append(_Covered(group.schema, indices, group.state))
                self.covered += len(indices)
        return lost

    def lose(self, worker: int) -> list[int]:
        """Nothing will come of this worker any more; returns those who were folded there for nothing."""
        self.closing.discard(worker)
        parts = [key for key in self._answered if key[0] == worker]
        return [index for key in parts for index in self._answered.pop(key)]

    @property
    def workers(self) -> set[int]:
        """Those that owe a partial."""
        return {worker for (worker, _), answered in self._answered.items() if answered}

    def decide(self) -> Decision:
        """Which group is the answer. To be asked once, when everybody is covered or has ended otherwise."""
        counts: dict[str, int] = defaultdict(int)
        for covered in self._covered:
            counts[covered.schema] += len(covered.indices)
        given_up, self._given_up = self._given_up, []
        if not counts:
            return Decision([], [], [], "", given_up)
        chosen = min(counts, key=lambda schema: (-counts[schema], schema))
        indices: list[int] = []
        states: list[Payload] = []
        others: list[tuple[int, str]] = []
        for covered in self._covered:
            if covered.schema == chosen:
                indices += covered.indices
                states.append(covered.state)
            else:
                others += [(index, covered.schema) for index in covered.indices]
        self._covered.clear()
        self.covered = -1
        return Decision(indices, states, others, chosen, given_up)
