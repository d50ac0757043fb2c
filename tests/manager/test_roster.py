"""A roster is its members in order, and who is on which worker: worked out once, and never changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.core.members import Member
from manager.core.roster import Roster
from tests.manager.support import make_member

WORKERS = st.lists(st.integers(0, 3), max_size=30)


def members_on(workers: list[int]) -> list[Member]:
    return [make_member(key, worker=worker) for key, worker in enumerate(workers, 1)]


@given(WORKERS)
def test_it_is_a_sequence_of_its_members(workers: list[int]) -> None:
    members = members_on(workers)
    roster = Roster(members)
    assert len(roster) == len(members)
    assert bool(roster) == bool(members)
    assert list(roster) == [roster[index] for index in range(len(members))] == members
    assert list(reversed(roster)) == members[::-1]
    assert all(member in roster for member in members)
    assert make_member(1) not in roster, "members are compared by identity"
    for part in (slice(None), slice(1, -1), slice(None, None, -2)):
        assert roster[part] == tuple(members[part])
    with pytest.raises(IndexError):
        roster[len(members)]


@given(WORKERS)
def test_each_member_is_in_the_share_of_its_worker_in_order(workers: list[int]) -> None:
    members = members_on(workers)
    shares = Roster(members).shares
    assert set(shares) == set(workers), "a worker that has nobody has no share"
    for worker, (indices, theirs) in shares.items():
        assert indices == [index for index, other in enumerate(workers) if other == worker]
        assert theirs == [members[index] for index in indices]


def test_a_member_named_twice_is_in_it_twice() -> None:
    first, second = make_member(1, worker=4), make_member(2, worker=4)
    assert Roster([first, second, first]).shares == {4: ([0, 1, 2], [first, second, first])}


def test_shares_are_worked_out_once() -> None:
    roster = Roster(members_on([0, 1]))
    assert roster.shares is roster.shares


def test_a_worker_without_members_does_not_come_into_being_by_being_asked_for() -> None:
    roster = Roster(members_on([0, 1]))
    with pytest.raises(KeyError):
        roster.shares[7]
    assert set(roster.shares) == {0, 1}


def test_it_does_not_change_with_what_it_was_made_of() -> None:
    members = members_on([0, 1])
    roster = Roster(members)
    first = members.pop(0)
    members.append(make_member(9, worker=9))
    assert roster[0] is first
    assert set(roster.shares) == {0, 1}


def test_members_that_have_gone_stay_in_it() -> None:
    members = members_on([0, 1])
    roster = Roster(members)
    members[0].gone = True
    assert list(roster) == members
    assert roster.shares == {0: ([0], members[:1]), 1: ([1], members[1:])}


def test_what_a_transport_prepares_is_kept_with_it_alone() -> None:
    members = members_on([0, 1])
    roster, other = Roster(members), Roster(members)
    roster.prepared[1] = "for worker 1"
    assert roster.prepared == {1: "for worker 1"}
    assert other.prepared == {}


def test_it_is_current_as_long_as_nobody_moves() -> None:
    roster = Roster(members_on([0, 1]))
    assert roster.current(3) is roster
    assert roster.current(3) is roster
    assert roster.is_current(3)
    assert not roster.is_current(4)


def test_after_moves_there_is_one_of_the_same_members_anew_and_the_old_one_stays_as_it_was() -> None:
    members = members_on([0, 0])
    old = Roster(members)
    old.current(0)
    before = old.shares
    old.prepared[0] = "packed"
    members[1].seat(make_member(9, worker=5))
    new = old.current(1)
    assert list(new) == members
    assert new.shares == {0: ([0], [members[0]]), 5: ([1], [members[1]])}
    assert new.prepared == {}
    assert old.shares is before
    assert old.prepared == {0: "packed"}


def test_the_new_one_is_kept_until_the_next_move() -> None:
    roster = Roster(members_on([0, 1]))
    roster.current(0)
    new = roster.current(7)
    assert roster.current(7) is new
    assert new.current(7) is new
    newer = roster.current(8)
    assert newer is not new
    assert roster.current(8) is newer


def test_one_that_is_first_used_after_moves_is_current() -> None:
    roster = Roster(members_on([0]))
    assert roster.current(1_000) is roster


def test_it_finds_the_index_of_a_member() -> None:
    members = members_on([0, 1, 0])
    roster = Roster(members)
    assert [roster.index_of(member) for member in members] == [0, 1, 2]
    assert roster.index_of(make_member(1)) is None
