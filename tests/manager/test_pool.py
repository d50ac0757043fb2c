"""Who gets which participants, and when: order, leases, shortages, one case at a time.

Pool and calls together, over any sequence of events: test_pool_and_calls.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.core.members import Member, work_on
from manager.core.pool import RETURN_TIME, RETURN_TIME_ANEW, SOON, Pool, Request
from manager.liveness import AWAY_TIME
from tests.manager.support import make_member

EU = {"region": "eu"}
US = {"region": "us"}


def make_pool(*members: Member) -> Pool:
    pool = Pool(random.Random(1))
    pool.returns_per_second = math.inf
    for member in members:
        assert pool.join(member) is None
    return pool


def make_request(
    id: int,
    minimum: int,
    maximum: int | None = None,
    *,
    where: Mapping[str, str] | None = None,
    deadline: float | None = None,
    asked_at: float = 0.0,
) -> Request:
    return Request(id, minimum, maximum, where or {}, asked_at, deadline, exclusive=False)


def make_lease(
    id: int, n: int, *, where: Mapping[str, str] | None = None, deadline: float | None = None
) -> Request:
    return Request(id, n, n, where or {}, 0.0, deadline, exclusive=True)


def ask(pool: Pool, *requests: Request) -> dict[int, list[Member]]:
    """Asks, and returns what has been granted, by request."""
    for request in requests:
        pool.ask(request)
    return serve(pool)


def serve(pool: Pool, now: float = 0.0) -> dict[int, list[Member]]:
    return {grant.request.id: grant.members for grant in pool.serve(now)}


# get_participants


def test_it_gives_all_that_match_once_the_minimum_is_there() -> None:
    members = [make_member(key) for key in range(5)]
    pool = make_pool(*members)
    assert ask(pool, make_request(1, 3)) == {1: members}


def test_it_waits_for_the_minimum() -> None:
    first, second = make_member(1), make_member(2)
    pool = make_pool(first)
    assert ask(pool, make_request(1, 2)) == {}
    assert pool.waiting == 1
    pool.join(second)
    assert serve(pool) == {1: [first, second]}
    assert pool.waiting == 0


def test_a_request_is_granted_once() -> None:
    pool = make_pool(make_member(1))
    assert len(ask(pool, make_request(1, 1))) == 1
    assert serve(pool) == {}


def test_who_asks_for_none_gets_none_at_once() -> None:
    assert ask(make_pool(), make_request(1, 0)) == {1: []}
    assert ask(make_pool(make_member(1)), make_request(1, 0)) == {1: []}


def test_who_asks_for_up_to_some_gets_those_who_are_there() -> None:
    member = make_member(1)
    assert ask(make_pool(member), make_request(1, 0, 5)) == {1: [member]}


def test_at_most_the_maximum_is_given_without_repeats() -> None:
    pool = make_pool(*(make_member(key) for key in range(10)))
    granted = ask(pool, make_request(1, 1, 4))[1]
    assert len(granted) == len(set(granted)) == 4


def test_the_choice_is_uniform() -> None:
    pool = make_pool(*(make_member(key) for key in range(4)))
    chosen = [0] * 4
    for id in range(4_000):
        for member in ask(pool, make_request(id, 1, 1))[id]:
            chosen[member.key] += 1
    assert all(900 < count < 1_100 for count in chosen)


def test_only_matching_participants_are_given() -> None:
    both = make_member(1, where={"region": "eu", "device": "phone"})
    pool = make_pool(
        both, make_member(2, where=EU), make_member(3, where={"device": "phone"}), make_member(4)
    )
    assert ask(pool, make_request(1, 1, where={"region": "eu", "device": "phone"})) == {1: [both]}


def test_an_attribute_that_is_missing_is_not_an_empty_one() -> None:
    pool = make_pool(make_member(1))
    assert ask(pool, make_request(1, 1, where={"region": ""})) == {}


def test_busy_participants_are_given_but_not_leased() -> None:
    busy, idle = make_member(1), make_member(2)
    busy.work = work_on(9, None)
    pool = make_pool(busy, idle)
    assert ask(pool, make_request(1, 2)) == {1: [busy, idle]}
    assert ask(pool, make_lease(2, 2)) == {}
    busy.work = work_on(0, None)
    assert set(serve(pool)[2]) == {busy, idle}


def test_matching_counts_everybody() -> None:
    busy, leased, other = make_member(1, where=EU), make_member(2, where=EU), make_member(3, where=US)
    pool = make_pool(leased)
    ask(pool, make_lease(1, 1))
    busy.work = work_on(9, None)
    pool.join(busy)
    pool.join(other)
    assert pool.matching(EU) == [leased, busy]
    assert pool.matching({}) == list(pool) == [leased, busy, other]


# Order


def test_callers_are_served_in_the_order_of_asking() -> None:
    pool = make_pool()
    ask(pool, make_request(5, 1), make_request(3, 1), make_request(4, 1))
    pool.join(make_member(1))
    assert list(serve(pool)) == [5, 3, 4]


def test_a_small_lease_does_not_overtake_a_large_one() -> None:
    pool = make_pool(make_member(1))
    assert ask(pool, make_lease(1, 2), make_lease(2, 1)) == {}
    pool.join(make_member(2))
    assert list(serve(pool)) == [1]
    pool.release(1)
    assert list(serve(pool)) == [2]


def test_a_lease_does_not_take_what_an_earlier_caller_waits_for() -> None:
    pool = make_pool(make_member(1))
    assert ask(pool, make_request(1, 2), make_lease(2, 1)) == {}
    pool.join(make_member(2))
    granted = serve(pool)
    assert list(granted) == [1, 2]
    assert len(granted[1]) == 2


class Watched(Member):
    """Counts how often it is asked whether it is leased."""

    looks = 0

    @property
    def lease(self) -> int | None:
        self.looks += 1
        return None

    @lease.setter
    def lease(self, value: int | None) -> None:
        assert value is None


def test_however_many_wait_each_participant_is_looked_at_once() -> None:
    """It happens in each turn of the loop in which anything does."""
    member = Watched(1, "a", {}, 0, 1)
    pool = make_pool(member)
    assert ask(pool, *(make_lease(id, 2) for id in range(40))) == {}
    member.looks = 0
    assert serve(pool) == {}
    assert member.looks == 1


def test_callers_who_share_nothing_do_not_wait_for_each_other() -> None:
    eu, us = make_member(1, where=EU), make_member(2, where=US)
    pool = make_pool(eu, us)
    assert ask(pool, make_lease(1, 2, where=EU), make_lease(2, 1, where=US)) == {2: [us]}


def test_a_lease_may_take_what_the_earlier_caller_does_not_match() -> None:
    eu, us = make_member(1, where=EU), make_member(2, where=US)
    pool = make_pool(eu, us)
    assert ask(pool, make_lease(1, 2, where=EU), make_lease(2, 1)) == {2: [us]}


def test_a_caller_who_gives_up_holds_nobody_back() -> None:
    member = make_member(1)
    pool = make_pool(member)
    assert ask(pool, make_lease(1, 2), make_lease(2, 1)) == {}
    pool.abandon(1)
    assert serve(pool) == {2: [member]}


def test_a_caller_who_timed_out_holds_nobody_back() -> None:
    member = make_member(1)
    pool = make_pool(member)
    assert ask(pool, make_lease(1, 2, deadline=1.0), make_lease(2, 1)) == {}
    assert len(pool.expire(1.0)) == 1
    assert serve(pool) == {2: [member]}


# Leases


def test_a_leased_participant_is_nobody_elses() -> None:
    pool = make_pool(make_member(1))
    ask(pool, make_lease(1, 1))
    assert pool.leased == 1
    assert ask(pool, make_lease(2, 1), make_request(3, 1)) == {}
    pool.release(1)
    assert pool.leased == 0
    assert list(serve(pool)) == [2]


def test_releasing_twice_does_not_release_the_next_lease() -> None:
    pool = make_pool(make_member(1))
    ask(pool, make_lease(1, 1))
    pool.release(1)
    ask(pool, make_lease(2, 1))
    pool.release(1)
    assert pool.leased == 1


def test_releasing_what_never_was_does_nothing() -> None:
    make_pool().release(99)


def test_an_abandoned_lease_is_free_even_if_it_was_just_granted() -> None:
    member = make_member(1)
    pool = make_pool(member)
    ask(pool, make_lease(1, 1))
    pool.abandon(1)
    assert member.lease is None
    assert pool.leased == 0


def test_a_lease_goes_on_without_those_who_leave() -> None:
    leaver, stayer = make_member(1), make_member(2)
    pool = make_pool(leaver, stayer)
    ask(pool, make_lease(1, 2))
    pool.leave(leaver)
    assert pool.leased == 1
    assert leaver.gone
    assert leaver.lease is None
    pool.release(1)
    assert stayer.lease is None


def test_a_lease_of_none_can_be_had_and_released() -> None:
    pool = make_pool()
    assert ask(pool, make_lease(1, 0)) == {1: []}
    pool.release(1)


@pytest.mark.parametrize("granted", [False, True])
def test_a_request_can_not_be_made_twice(granted: bool) -> None:
    pool = make_pool(*([make_member(1)] if granted else []))
    ask(pool, make_lease(1, 1))
    with pytest.raises(ValueError, match="request 1 exists already"):
        pool.ask(make_lease(1, 1))


# Coming and going


def test_the_newest_session_of_an_id_replaces_the_older() -> None:
    old, new = make_member(1, "a"), make_member(2, "a")
    pool = make_pool(old)
    assert pool.join(new) is old
    pool.leave(old)
    assert list(pool) == [new]
    newest = make_member(3, "a")
    assert pool.join(newest) is new


def test_the_lease_of_an_older_session_does_not_pass_to_the_newer() -> None:
    old, new = make_member(1, "a"), make_member(2, "a")
    pool = make_pool(old)
    ask(pool, make_lease(1, 1))
    pool.join(new)
    pool.leave(old)
    assert new.lease is None
    assert ask(pool, make_lease(2, 1)) == {2: [new]}


def test_leaving_twice_does_nothing_more() -> None:
    old, new = make_member(1, "a"), make_member(2, "a")
    pool = make_pool(old)
    pool.leave(old)
    pool.join(new)
    pool.leave(old)
    assert list(pool) == [new]
    assert pool.join(make_member(3, "a")) is new


def test_a_participant_that_left_is_found_no_more() -> None:
    member = make_member(1)
    pool = make_pool(member)
    assert pool.get(1) is member
    pool.leave(member)
    assert pool.get(1) is None
    assert ask(pool, make_request(1, 1)) == {}


# Shortages


def test_a_shortage_says_who_was_there() -> None:
    members = [make_member(key, where=EU, worker=key % 2) for key in range(3)]
    pool = make_pool(*members, make_member(9, where=US, worker=7))
    ask(pool, make_lease(8, 1, where=US))
    request = make_request(1, 4, where=EU, deadline=12.5, asked_at=10.0)
    ask(pool, request)
    (shortage,) = pool.expire(12.5)
    assert shortage.request is request
    assert shortage.matching_by_worker == {0: 2, 1: 1}
    assert shortage.error().matching == 3
    assert shortage.pooled == 4
    assert shortage.waited == 2.5


def test_a_request_does_not_expire_before_its_deadline() -> None:
    pool = make_pool()
    ask(pool, make_request(1, 1, deadline=2.0), make_request(2, 1))
    assert pool.expire(1.999) == []
    assert [shortage.request.id for shortage in pool.expire(2.0)] == [1]
    assert pool.expire(math.inf) == []
    assert pool.waiting == 1


def test_the_next_deadline_is_the_earliest_of_those_who_wait() -> None:
    pool = make_pool()
    ask(pool, make_request(1, 1, deadline=3.0), make_request(2, 1, deadline=2.0), make_request(3, 1))
    deadlines = [pool.next_deadline]
    for id in (2, 1):
        pool.abandon(id)
        deadlines.append(pool.next_deadline)
    assert deadlines == [2.0, 3.0, None]


def test_a_deadline_that_is_no_number_is_refused() -> None:
    # It would compare false with everything, and the earliest deadline could not be told any more.
    pool = make_pool()
    with pytest.raises(ValueError, match="deadline"):
        pool.ask(make_request(1, 1, deadline=math.nan))
    assert pool.waiting == 0


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
def test_any_minimum_and_maximum_are_kept(there: int, minimum: int, extra: int) -> None:
    pool = make_pool(*(make_member(key) for key in range(there)))
    granted = ask(pool, make_request(1, minimum, minimum + extra))
    if minimum > there:
        assert granted == {}
    else:
        assert len(granted[1]) == min(there, minimum + extra)


# Moves


def test_who_moves_is_not_in_the_pool_but_still_known() -> None:
    member, other = make_member(1, "a"), make_member(2, "b")
    pool = make_pool(member, other)
    pool.move(member, 0.0)
    assert list(pool) == [other]
    assert (len(pool), pool.moving) == (1, 1)
    assert pool.get(member.key) is member
    assert (pool.expects("a"), pool.expects("b"), pool.expects("c")) == (True, False, False)
    assert pool.matching({}) == [other]
    assert not member.gone


def test_who_moves_is_granted_to_nobody_until_it_is_back() -> None:
    member = make_member(1, "a")
    pool = make_pool(member)
    pool.move(member, 0.0)
    assert ask(pool, make_request(1, 1), make_lease(2, 1)) == {}
    assert pool.back(make_member(2, "a", worker=3)) is member
    assert serve(pool) == {1: [member], 2: [member]}


def test_who_moves_comes_along_with_those_who_are_there_while_it_is_expected_back_soon() -> None:
    there, moves = make_member(1, "a"), make_member(2, "b", where=EU)
    pool = make_pool(there, moves)
    pool.move(moves, 10.0)
    for id, request, granted, now in [
        (1, make_request(1, 1), [there, moves], 10.0),
        (2, make_request(2, 1, where=EU), None, 10.0),  # nobody is there whom it could come along with
        (3, make_lease(3, 1), [there], 10.0),
        (4, make_request(4, 0, 5, where=EU), [moves], 10.0 + SOON - 0.1),
        (5, make_request(5, 0, 5, where=EU), [], 10.0 + SOON),
    ]:
        pool.ask(request)
        assert serve(pool, now).get(id) == granted


def test_who_moves_with_its_lease_comes_along_with_nobody() -> None:
    there, moves = make_member(1, "a"), make_member(2, "b", where=EU)
    pool = make_pool(there, moves)
    ask(pool, make_lease(1, 1, where=EU))
    pool.move(moves, 0.0)
    assert ask(pool, make_request(2, 1)) == {2: [there]}


def test_it_is_the_same_member_in_another_seat() -> None:
    member = make_member(1, "a", where=EU)
    pool = make_pool(member)
    pool.move(member, 0.0)
    newcomer = make_member(2, "a", where=US, worker=3, accepts_cancel=True)
    assert pool.back(newcomer) is member
    assert (member.key, member.worker, member.session) == (1, 3, newcomer.session)
    assert (member.attributes, member.accepts_cancel) == (US, True)
    assert list(pool) == [member]
    assert pool.get(2) is None, "the newcomer itself is nobody"
    assert pool.moving == 0
    assert not pool.expects("a")
    assert pool.next_deadline is None


def test_a_newcomer_whom_nobody_expects_is_not_back() -> None:
    pool = make_pool(make_member(1, "a"))
    assert pool.back(make_member(2, "a")) is None
    assert pool.back(make_member(3, "b")) is None


def test_it_comes_back_once() -> None:
    member = make_member(1, "a")
    pool = make_pool(member)
    pool.move(member, 0.0)
    assert pool.back(make_member(2, "a")) is member
    second = make_member(3, "a")
    assert pool.back(second) is None
    assert pool.join(second) is member, "the newest session of an id wins"


def test_who_is_not_back_in_time_is_missing_and_must_leave() -> None:
    early, late = make_member(1, "a"), make_member(2, "b")
    pool = make_pool(early, late)
    pool.move(early, 0.0)
    pool.move(late, 1.0)
    assert pool.next_deadline == 15.0
    assert pool.missing(14.9) == []
    assert pool.missing(15.0) == [early]
    pool.leave(early)
    assert early.gone
    assert pool.get(early.key) is None
    assert not pool.expects("a")
    assert pool.next_deadline == 16.0
    assert pool.missing(math.inf) == [late]


def test_nobody_is_missed_while_there_is_no_worker_for_those_who_move_nor_soon_after() -> None:
    early, late = make_member(1, "a"), make_member(2, "b")
    pool = make_pool(early, late)
    pool.move(early, 0.0)
    pool.has_room(0, 0.0)
    assert pool.missing(1000.0) == []
    assert pool.next_deadline == math.inf
    pool.move(late, 1000.0)
    pool.has_room(2, 1000.0)
    assert pool.next_deadline == 1000.0 + RETURN_TIME_ANEW
    assert pool.missing(1000.0 + RETURN_TIME_ANEW - 0.1) == []
    pool.has_room(2, 1010.0)  # as before
    assert pool.missing(1000.0 + RETURN_TIME_ANEW) == [early, late]


def test_where_there_is_too_little_room_nobody_is_missed_for_a_while() -> None:
    """Those who find none are told to come back later."""
    stays, moves = make_member(1, "a"), make_member(2, "b")
    pool = make_pool(stays, moves)
    pool.return_time_anew = 100.0
    pool.move(moves, 0.0)
    pool.has_room(1, 10.0)
    assert pool.next_deadline == 110.0
    pool.has_room(1, 50.0)
    assert pool.next_deadline == 150.0
    pool.has_room(2, 60.0)
    assert pool.missing(149.9) == []
    assert pool.missing(150.0) == [moves]
    assert not pool.is_shut


def test_nobody_is_missed_before_it_is_known_what_was_said_meanwhile() -> None:
    member = make_member(1, "a")
    pool = make_pool(member)
    pool.move(member, 0.0)
    pool.was_away(100.0)
    assert pool.missing(100.0) == []
    assert pool.missing(100.0 + AWAY_TIME) == [member]


def test_of_many_who_move_each_gets_its_place_and_the_whole_time_after_that() -> None:
    members = [make_member(key, str(key)) for key in range(1, 101)]
    pool = make_pool(*members)
    pool.returns_per_second = 10.0
    for member in members:
        pool.move(member, 100.0)
    for number, member in enumerate(members, 1):
        due = 100.0 + number / 10 + RETURN_TIME
        assert pool.next_deadline == pytest.approx(due)
        assert pool.missing(due - 0.05) == []
        assert pool.missing(due + 0.05) == [member]
        pool.leave(member)


def test_a_lease_goes_on_while_one_of_its_members_moves() -> None:
    member, other = make_member(1, "a"), make_member(2, "b")
    pool = make_pool(member, other)
    assert set(ask(pool, make_lease(1, 2))[1]) == {member, other}
    pool.move(member, 0.0)
    assert pool.leased == 2
    assert pool.back(make_member(3, "a")) is member
    assert ask(pool, make_lease(2, 1)) == {}, "it is still leased"
    pool.release(1)
    assert serve(pool) in ({2: [member]}, {2: [other]})


def test_a_lease_that_ends_while_its_member_moves_is_over_when_that_is_back() -> None:
    member = make_member(1, "a")
    pool = make_pool(member)
    ask(pool, make_lease(1, 1))
    pool.move(member, 0.0)
    pool.release(1)
    assert pool.leased == 0
    pool.back(make_member(2, "a"))
    assert ask(pool, make_lease(2, 1)) == {2: [member]}


def test_a_lease_goes_on_without_who_does_not_come_back() -> None:
    member, other = make_member(1, "a"), make_member(2, "b")
    pool = make_pool(member, other)
    ask(pool, make_lease(1, 2))
    pool.move(member, 0.0)
    pool.leave(member)
    assert pool.leased == 1
    assert member.lease is None
    assert other.lease == 1
