"""A worker's share of a reducing call, whatever happens in whatever order: a state machine.

As folding.py drives it. Whoever is folded in is reported exactly once, and is in the partial exactly once,
with what it has sent, unless its kind of result was given up; who ends or fails is in neither.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manager.reducing.batch import MAX_GROUPS, Batch
from manager.reducing.contributions import Contribution
from manager.reducing.reducers import make_reducer

KINDS = MAX_GROUPS + 2
picks = st.integers(0, 10**6)


class OneBatch(RuleBasedStateMachine):
    """``working`` are those who have not answered, ``folding`` those whose answer is being folded in."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = Batch(1, 1, lambda: make_reducer("sum", {}, ()))
        self.broadcasts: dict[int, set[int]] = {}  # by tag: all to whom it went
        self.working: list[int] = []
        self.folding: list[tuple[int, int, int]] = []  # session, kind, value
        self.folded: dict[int, tuple[int, int]] = {}
        self.kept: dict[int, list[int]] = {}  # by kind
        self.given_up: list[int] = []
        self.reported: Counter[int] = Counter()
        self.ended: set[int] = set()
        self.sessions = 0
        self.closed = False

    @initialize(count=st.integers(1, 6), missing=st.booleans())
    def first(self, count: int, missing: bool) -> None:
        self.a_broadcast(count, missing)

    @precondition(lambda self: not self.closed and not self.batch.over)
    @rule(count=st.integers(1, 6), missing=st.booleans())
    def a_broadcast(self, count: int, missing: bool) -> None:
        sessions = range(self.sessions + 1, self.sessions + 1 + count)
        self.sessions += count
        self.working += sessions
        self.batch.working += count
        tag = 100 + len(self.broadcasts)
        # Whoever was missing is no session here, but the coordinator thinks it was sent to.
        self.broadcasts[tag] = {*sessions, *([-tag] if missing else [])}
        self.batch.sent(tag, all_there=not missing, hurry=False)

    @precondition(lambda self: self.working)
    @rule(which=picks, kind=st.integers(0, KINDS - 1), value=st.integers(-9, 9), apart=st.booleans())
    def a_result(self, which: int, kind: int, value: int, apart: bool) -> None:
        session = self.working.pop(which % len(self.working))
        self.batch.working -= 1
        self.batch.folding += 1
        self.folding.append((session, kind, value))
        if not apart:
            self.it_is_folded_in(len(self.folding) - 1)

    @precondition(lambda self: self.folding)
    @rule(which=picks)
    def it_is_folded_in(self, which: int) -> None:
        session, kind, value = self.folding.pop(which % len(self.folding))
        array = np.full(kind + 1, value, np.int64)
        self.batch.fold(session, Contribution({"x": array}, {}, 1.0))
        self.batch.folded(session, 8)
        self.folded[session] = (kind, value)
        if kind not in self.kept and len(self.kept) == MAX_GROUPS:
            least = min(map(len, self.kept.values()))
            goes = [each for each, sessions in self.kept.items() if len(sessions) == least][-1]
            self.given_up += self.kept.pop(goes)
        self.kept.setdefault(kind, []).append(session)
        self.batch.folding -= 1

    @precondition(lambda self: self.working)
    @rule(which=picks, failure=st.booleans())
    def somebody_fails_or_ends(self, which: int, failure: bool) -> None:
        session = self.working.pop(which % len(self.working))
        if failure:  # an ordinary answer
            self.batch.working -= 1
        else:
            self.report()  # as Folding.ended does
            self.batch.ended()
            self.ended.add(session)

    @rule()
    def report(self) -> None:
        if not self.batch.news:
            return
        said = self.batch.report()
        self.reported.update(said.sessions)
        if said.tag:
            everybody = self.broadcasts[said.tag]
            assert not everybody & set(self.working), "it speaks for some who still work"
            assert not everybody & self.ended, "it speaks for one whose end may not be known yet"
            assert not any(session < 0 for session in everybody), "it speaks for one who was missing"
            assert not said.sessions
            # The coordinator takes it for all of them that it still thinks at work.
            self.reported.update(everybody & set(self.folded) - set(self.reported))

    @rule()
    def close(self) -> None:
        self.batch.closed = self.closed = True

    @invariant()
    def it_is_over_when_nobody_is_waited_for(self) -> None:
        assert self.batch.working == len(self.working)
        assert self.batch.over == (not self.folding and (self.closed or not self.working))
        assert all(count == 1 for count in self.reported.values()), "somebody was reported twice"
        assert self.reported.keys() <= self.folded.keys()

    def teardown(self) -> None:
        while self.folding:
            self.it_is_folded_in(0)
        self.report()
        assert self.reported.keys() == self.folded.keys()
        kept = self.batch.partial()
        assert kept.given_up == self.given_up
        named: Counter[int] = Counter(kept.given_up)
        sizes = []
        for schema, sessions, state in kept.groups:
            named.update(sessions)
            sizes.append(len(sessions))
            (kind,) = {self.folded[session][0] for session in sessions}
            assert sessions == self.kept[kind]
            assert schema[0][1] == (kind + 1,)
            assert state.tensors["x"][0] == sum(self.folded[session][1] for session in sessions)
        assert named == Counter(self.folded.keys())
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == len(self.kept) <= MAX_GROUPS
        assert self.batch.partial() == ([], []), "it is told once"


OneBatch.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestOneBatch = OneBatch.TestCase


def test_nobody_speaks_for_one_that_has_ended() -> None:
    walk = OneBatch()
    walk.a_broadcast(3, missing=False)
    walk.a_result(0, kind=0, value=1, apart=False)
    walk.somebody_fails_or_ends(0, failure=False)
    walk.a_result(0, kind=0, value=2, apart=False)
    walk.it_is_over_when_nobody_is_waited_for()
    walk.teardown()
    assert walk.reported.keys() == {1, 3}


def test_all_that_have_answered_are_reported_by_their_broadcast() -> None:
    walk = OneBatch()
    walk.a_broadcast(3, missing=False)
    for value in range(3):
        walk.a_result(0, kind=0, value=value, apart=False)
    assert walk.batch.report().tag == 100
