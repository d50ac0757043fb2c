"""Reducing rounds in which all members at a worker do the same: they cost as much for any number of them.

And what makes one of them different is seen in the next round. Over any sequence of events:
test_pool_and_calls.py and test_reducing_calls.py, whose rounds go to the same members again and again.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from typing import NoReturn

import pytest

from manager.core.call import Call, OutcomeKind
from manager.core.calls import CallTable
from manager.core.members import Member
from manager.core.roster import Roster
from manager.reducing.shares import Folded, Group
from tests.manager.support import make_member
from tests.manager.test_calls import SCHEMA, fold, lose, partial, reduce, start, take_sends

WORKERS = (0, 1)


class Rounds:
    """To six members at two workers."""

    def __init__(self) -> None:
        self.table = CallTable()
        self.members = [make_member(key, worker=key % 2) for key in range(6)]
        self.roster = Roster(self.members)
        self._sessions: dict[int, dict[int, Member]] = {
            worker: {member.session: member for member in self.members if member.worker == worker}
            for worker in WORKERS
        }

    def begin(self) -> tuple[Call, int]:
        """Returns the call, and the tag of its instruction."""
        call = reduce(self.table, self.roster)
        return call, self.table.sends.pop().tag

    def all_answer(self, call: Call, tag: int) -> None:
        for worker in WORKERS:
            self.table.folded(worker, Folded(call.id, 1, [], 10, tag), self._sessions[worker])
            partial(self.table, call, worker, Group(SCHEMA, [], b"state"))

    def whole(self) -> Call:
        call, tag = self.begin()
        self.all_answer(call, tag)
        return call


def test_after_the_first_no_member_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds()
    rounds.whole()

    def looked_at(*_: object) -> NoReturn:
        raise AssertionError("a member was looked at")

    with monkeypatch.context() as patch:
        for name in ("__iter__", "__getitem__"):
            patch.setattr(Roster, name, looked_at)
        for _ in range(3):
            call = rounds.whole()
            assert call.outcomes == [(OutcomeKind.RESULT, b"")] * 6
            assert call.states == [b"state"] * 2
    assert not any(member.busy or member.call for member in rounds.members)


def test_while_it_runs_each_member_works_on_it() -> None:
    rounds = Rounds()
    for _ in range(3):
        call, tag = rounds.begin()
        assert [(member.tag, member.call, member.index) for member in rounds.members] == [
            (tag, call, index) for index in range(6)
        ]
        rounds.all_answer(call, tag)


@pytest.mark.parametrize(
    "happens",
    [
        lambda table, roster: start(table, [roster[2]]),
        lambda table, roster: start(table, roster),
        lambda table, roster: reduce(table, Roster(roster[1:4])),
        lambda table, roster: roster[2].depart(),
        lambda table, roster: lose(table, roster[2]),
        lambda table, roster: table.moved(roster[2]),
        lambda table, roster: table.found(roster[2], 99),
    ],
    ids=["a call to one", "a call to all", "a round of some", "replaced", "lost", "moved", "found at work"],
)
def test_after_one_of_them_went_its_own_way_each_gets_what_it_can_have(
    happens: Callable[[CallTable, Roster], object],
) -> None:
    rounds = Rounds()
    table = rounds.table
    rounds.whole()
    happens(table, rounds.roster)
    free = {member for member in rounds.members if not member.tag and not member.gone}
    take_sends(table)
    call = reduce(table, rounds.roster)
    assert {member for send in table.sends for member in send.members} == free
    for index, member in enumerate(rounds.members):
        if member in free:
            assert (member.call, member.index) == (call, index)
        elif member.gone:
            assert call.outcomes[index] == (OutcomeKind.LOST, b"")
        else:
            assert member.queue is not None
            assert member.queue[-1] == (call, index)


def test_what_waits_for_one_of_them_is_sent_when_all_have_answered() -> None:
    rounds = Rounds()
    rounds.whole()
    call, tag = rounds.begin()
    start(rounds.table, [rounds.members[3]], [b"following"])
    rounds.all_answer(call, tag)
    assert [(send.payload, list(send.members)) for send in rounds.table.sends] == [
        (b"following", [rounds.members[3]])
    ]
    assert [member.busy for member in rounds.members] == [
        member is rounds.members[3] for member in rounds.members
    ]


@pytest.mark.parametrize("as_one", [True, False])
def test_a_call_that_has_ended_is_not_kept(as_one: bool) -> None:
    """Nor are its instructions, which may be models."""
    rounds = Rounds()
    rounds.whole()
    call, tag = rounds.begin()
    if as_one:
        rounds.all_answer(call, tag)
    else:
        for worker in WORKERS:
            fold(rounds.table, call, *(member for member in rounds.members if member.worker == worker))
            partial(rounds.table, call, worker, Group(SCHEMA, [], b"state"))
    assert rounds.table.finished[-1] is call
    rounds.table.finished.clear()
    rounds.table.advanced.clear()
    rounds.table.settled.clear()
    gc.collect()
    assert not [each for each in gc.get_referrers(call) if not isinstance(each, types.FrameType)]
