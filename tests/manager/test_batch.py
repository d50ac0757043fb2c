"""What a worker's share of a reducing call comes to, case by case."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from manager.reducing.batch import MAX_GROUPS, Batch
from manager.reducing.reducers import Contribution, Reducer, RefusedError, make_reducer
from manager.reducing.schema import schema_of
from manager.reducing.shares import Folded


def batch(reducer: str = "sum") -> Batch:
    return Batch(7, 3, partial(make_reducer, reducer, {}, ()))


def contribution(weight: float = 1.0, **tensors: Any) -> Contribution:
    return Contribution({name: np.asarray(value) for name, value in tensors.items()}, {}, weight)


def report(*sessions: int, size: int, tag: int = 0) -> Folded:
    return Folded(7, 3, list(sessions), size, tag)


def fold(into: Batch, session: int, given: Contribution, size: int = 10) -> None:
    into.fold(session, given)
    into.folded(session, size)


class Whatever(Reducer):
    """Counts contributions, whatever their tensors."""

    uniform = False

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def fold(self, contribution: Contribution) -> None:
        self.count += 1

    def state(self) -> Contribution:
        return Contribution({}, {"count": self.count}, 0.0)

    def merge(self, state: Contribution) -> None:
        raise NotImplementedError

    def finish(self) -> Contribution:
        raise NotImplementedError


def test_a_batch_on_which_nobody_works_is_over() -> None:
    new = batch()
    assert new.id == 7
    overs = []
    for working in (0, 1, 0):
        new.working = working
        overs.append(new.over)
    assert overs == [True, False, True]


def test_a_batch_is_not_over_while_an_answer_is_being_folded_in() -> None:
    new = batch()
    overs = []
    for folding, closed in ((1, False), (1, True), (0, True)):
        new.folding, new.closed = folding, closed
        overs.append(new.over)
    assert overs == [False, False, True]


def test_a_closed_batch_is_over_though_somebody_works_on_it() -> None:
    new = batch()
    new.working = 3
    new.closed = True
    assert new.over


def test_a_report_is_of_what_is_new_since_the_last() -> None:
    new = batch()
    fold(new, 1, contribution(x=[1]), 100)
    fold(new, 2, contribution(x=[2]), 20)
    news = [new.news]
    assert new.report() == report(1, 2, size=120)
    news.append(new.news)
    assert news == [True, False]
    fold(new, 3, contribution(x=[3]), 3)
    assert new.report() == report(3, size=3)
    assert new.report() == report(size=0)


def answer(to: Batch, session: int) -> None:
    """A session that works for the batch answers."""
    to.working -= 1
    fold(to, session, contribution(x=[1]))


def test_once_all_of_its_only_broadcast_have_answered_its_tag_says_so() -> None:
    new = batch()
    new.working = 2
    new.sent(40, all_there=True, hurry=False)
    answer(new, 1)
    assert new.report() == report(1, size=10)
    answer(new, 2)
    assert new.report() == report(size=10, tag=40)


@pytest.mark.parametrize("why", ["somebody was missing", "another broadcast", "somebody ended"])
def test_if_not_all_are_in_it_they_are_named(why: str) -> None:
    new = batch()
    new.working = 2
    new.sent(40, all_there=why != "somebody was missing", hurry=False)
    if why == "another broadcast":
        new.sent(41, all_there=True, hurry=False)
    answer(new, 1)
    if why == "somebody ended":
        new.ended()
        assert new.over
    else:
        answer(new, 2)
    assert new.report() == (report(1, size=10) if why == "somebody ended" else report(1, 2, size=20))


def test_what_is_still_being_folded_in_has_not_answered() -> None:
    new = batch()
    new.working = 2
    new.sent(40, all_there=True, hurry=False)
    answer(new, 1)
    new.working -= 1
    new.folding = 1
    assert new.report() == report(1, size=10)


def test_a_partial_is_the_state_of_all_that_was_folded_reported_or_not() -> None:
    new = batch()
    fold(new, 1, contribution(2.0, x=[1, 10]))
    new.report()
    fold(new, 2, contribution(3.0, x=[2, 20]))
    [(schema, sessions, state)] = new.partial().groups
    assert schema == schema_of({"x": np.array([1, 10])})
    assert sessions == [1, 2]
    assert state.tensors["x"].tolist() == [3, 30]
    assert state.weight == 5.0


class Broken(Whatever):
    """Can't say what it has come to."""

    def state(self) -> Contribution:
        raise RuntimeError("no idea")


def test_a_reducer_that_cannot_say_what_it_has_come_to_leaves_nothing_behind() -> None:
    new = Batch(1, 1, Broken)
    fold(new, 1, contribution(x=[1]))
    with pytest.raises(RuntimeError, match="no idea"):
        new.partial()
    assert new.report().sessions == [1], "it was folded in all the same"
    assert new.partial() == ([], [])


def test_a_batch_of_nobody_has_no_partial() -> None:
    assert batch().partial() == ([], [])


def test_after_a_partial_it_begins_anew() -> None:
    new = batch()
    fold(new, 1, contribution(x=[1]))
    new.partial()
    assert new.partial() == ([], [])
    fold(new, 2, contribution(y=[5]))
    [(_, sessions, state)] = new.partial().groups
    assert sessions == [2]
    assert state.tensors["y"].tolist() == [5]


def test_results_of_each_kind_are_kept_apart_and_most_come_first() -> None:
    new = batch()
    fold(new, 1, contribution(x=[1]))
    fold(new, 2, contribution(y=[1]))
    fold(new, 3, contribution(y=[2]))
    fold(new, 4, contribution(x=[[1]]))
    partials = new.partial().groups
    assert [sessions for _, sessions, _ in partials] == [[2, 3], [1], [4]]
    assert partials[0][2].tensors["y"].tolist() == [3]


def test_a_dtype_makes_a_kind_of_its_own() -> None:
    new = batch()
    fold(new, 1, contribution(x=np.array([1], np.int32)))
    fold(new, 2, contribution(x=np.array([1], np.int64)))
    assert len(new.partial().groups) == 2


def test_the_order_of_the_tensors_makes_none() -> None:
    new = batch()
    fold(new, 1, contribution(x=[1], y=[2]))
    fold(new, 2, contribution(y=[2], x=[1]))
    assert len(new.partial().groups) == 1


def test_for_a_kind_too_many_the_smallest_is_given_up_and_of_several_the_last() -> None:
    new = batch()
    for number in range(MAX_GROUPS):
        fold(new, number, contribution(x=np.zeros(number + 1)))
    fold(new, 10, contribution(x=np.zeros(2)))
    for number in range(20, 30):  # most participants come after the odd ones
        fold(new, number, contribution(x=np.zeros(99)))
    fold(new, 30, contribution(x=np.zeros(77)))
    groups, given_up = new.partial()
    assert [sessions for _, sessions, _ in groups] == [list(range(20, 30)), [1, 10], [0], [30]]
    assert given_up == [3, 2]
    fold(new, 40, contribution(x=np.zeros(4)))  # it begins anew
    assert new.partial().given_up == []


def test_nothing_is_given_up_for_what_the_reducer_refuses() -> None:
    new = batch()
    for number in range(MAX_GROUPS):
        fold(new, number, contribution(x=np.zeros(number + 1)))
    with pytest.raises(RefusedError):
        new.fold(9, contribution(x=np.full(99, np.nan)))
    assert new.partial().given_up == []


def test_what_the_reducer_refuses_is_no_part_of_it() -> None:
    new = batch()
    with pytest.raises(RefusedError, match="'x'"):
        new.fold(1, contribution(x=[np.nan]))
    assert not new.news
    assert new.partial() == ([], []), "it makes a group of its own"
    fold(new, 2, contribution(x=[1.0]))
    with pytest.raises(RefusedError):
        new.fold(3, contribution(x=[np.inf]))
    with pytest.raises(RefusedError):
        new.fold(4, contribution(-1.0, x=[1.0]))
    [(_, sessions, state)] = new.partial().groups
    assert sessions == [2]
    assert state.tensors["x"].tolist() == [1.0]


def test_refused_results_use_up_no_kinds() -> None:
    new = batch()
    for number in range(2 * MAX_GROUPS):
        with pytest.raises(RefusedError):
            new.fold(number, contribution(x=np.full(number + 1, np.nan)))
    fold(new, 99, contribution(x=[1.0]))
    assert len(new.partial().groups) == 1


def test_a_reducer_that_takes_anything_gets_everything() -> None:
    new = Batch(1, 1, Whatever)
    for number in range(2 * MAX_GROUPS):
        fold(new, number, contribution(x=np.zeros(number)))
    [(schema, sessions, state)] = new.partial().groups
    assert schema == ()
    assert sessions == list(range(2 * MAX_GROUPS))
    assert state.metrics == {"count": 2 * MAX_GROUPS}
