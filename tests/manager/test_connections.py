"""Which connections are closed: the rules, over any history of what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from hypothesis import given
from hypothesis import strategies as st

from manager.limits import Limits
from manager.serving.connections import NEARLY, Connection, Connections
from manager.serving.crowds import Place, place_of
from manager.serving.refused import Cause

IDLE, HANDSHAKE, KEEPALIVE = 60.0, 20.0, 30.0
MANY = 1000


def subject(max_per_address: int = 10, most: int = MANY, keepalive: float = KEEPALIVE) -> Connections:
    limits = Limits(
        max_per_address=max_per_address,
        idle_timeout=IDLE,
        handshake_timeout=HANDSHAKE,
        keepalive=keepalive,
    )
    return Connections(limits, most, Counter())


def connection(host: str, number: int) -> Connection:
    place = place_of(host, number)
    assert place is not None
    return Connection(number, place)


def connections_from(host: str, number: int, first: int = 1) -> list[Connection]:
    return [connection(host, each) for each in range(first, first + number)]


def nobody(_place: Place) -> bool:
    return False


def look(
    connections: Connections, there: Iterable[Connection], serves: Callable[[Place], bool], now: float
) -> dict[int, Cause]:
    looking = connections.look(serves, now)
    for each in there:
        looking.see(each)
    return looking.done()


def test_those_that_have_had_no_stream_for_long_are_closed() -> None:
    connections = subject()
    old, new = connections_from("10.0.0.1", 2), connections_from("10.0.0.1", 2, first=3)
    assert look(connections, old, nobody, 0.0) == {}
    assert look(connections, [*old, *new], nobody, 1.0) == {}
    due = look(connections, [*old, *new], nobody, IDLE)
    assert due == {1: Cause.IDLE_TIMEOUT, 2: Cause.IDLE_TIMEOUT}
    assert connections.refused == {Cause.IDLE_TIMEOUT: 2}


def test_so_are_those_of_this_machine() -> None:
    connections = subject()
    there = connections_from("127.0.0.1", 100)
    assert look(connections, there, nobody, 0.0) == {}  # which has no crowds
    assert len(look(connections, there, nobody, IDLE)) == 100


def test_a_stream_starts_the_clock_anew() -> None:
    connections = subject()
    there = connections_from("10.0.0.1", 1)
    late = IDLE
    assert look(connections, there, nobody, 0.0) == {}
    assert look(connections, there, lambda place: True, late) == {}
    assert look(connections, there, nobody, late + 1) == {}
    assert look(connections, there, nobody, 2 * late) == {}
    assert look(connections, there, nobody, 2 * late + 1) == {1: Cause.IDLE_TIMEOUT}


def test_of_too_many_from_one_address_those_that_wait_for_longest_are_closed() -> None:
    connections = subject(max_per_address=5)
    first, second = connections_from("10.0.0.1", 6), connections_from("10.0.0.1", 6, first=7)
    others = connections_from("10.0.0.2", 10, first=100)
    served = {each.place for each in first[:2]}
    assert look(connections, [*first, *others], served.__contains__, 0.0) == {}
    due = look(connections, [*second, *first, *others], served.__contains__, 1.0)
    assert due == {3: Cause.CONNECTIONS_PER_ADDRESS, 4: Cause.CONNECTIONS_PER_ADDRESS}


def test_where_there_may_be_few_no_address_has_more_than_a_quarter_without_a_stream() -> None:
    connections = subject(max_per_address=1000, most=40)
    there = connections_from("10.0.0.1", 30)
    assert look(connections, there, lambda place: place.port > 10, 0.0) == {}
    due = look(connections, there, lambda place: place.port > 12, 1.0)
    assert due == {1: Cause.CONNECTIONS_PER_ADDRESS, 2: Cause.CONNECTIONS_PER_ADDRESS}


def test_one_with_a_stream_is_never_closed_however_many_there_are() -> None:
    connections = subject(max_per_address=1)
    there = connections_from("10.0.0.1", 50)
    for now in (0.0, IDLE, 9 * IDLE):
        due = look(connections, there, lambda place: place.port > 10, now)
        assert due.keys() == set(range(1, 11))


def test_those_that_grpc_closes_are_counted_too() -> None:
    connections = subject()
    first, short, admitted = connections_from("10.0.0.1", 3)
    look(connections, [first, admitted], nobody, 0.0)
    look(connections, [first, short, admitted], nobody, HANDSHAKE - 1)
    assert look(connections, [admitted], lambda place: place.port == 3, HANDSHAKE) == {}
    assert connections.refused == {Cause.HANDSHAKE_TIMEOUT: 1}
    assert look(connections, [], nobody, 10 * IDLE) == {}  # it had a stream when it was last seen
    assert connections.refused == {Cause.HANDSHAKE_TIMEOUT: 1}


def test_among_them_those_that_do_not_answer_pings() -> None:
    connections = subject(keepalive=4.0)
    look(connections, connections_from("10.0.0.1", 2), nobody, 0.0)
    look(connections, connections_from("10.0.0.1", 1), nobody, 6.0)
    assert connections.refused == {Cause.HANDSHAKE_TIMEOUT: 1}
    look(connections, [], nobody, IDLE)
    assert connections.refused == {Cause.HANDSHAKE_TIMEOUT: 2}


def test_that_there_are_as_many_as_there_may_be_is_said_and_whose_they_are() -> None:
    connections = subject(most=100)
    look(connections, connections_from("127.0.0.1", 97), nobody, 0.0)
    assert connections.full == ""
    look(connections, connections_from("127.0.0.1", 98), nobody, 1.0)
    words = "there are 98 connections, as many as there may be: newcomers are cut off"
    assert connections.full == words
    there = [*connections_from("10.0.0.1", 60), *connections_from("10.0.0.2", 38, first=100)]
    look(connections, there, lambda place: True, 2.0)
    assert connections.full == f"{words} (60 of them are from 10.0.0.1)"
    assert connections.refused[Cause.MAX_CONNECTIONS] == 2
    look(connections, [], nobody, 3.0)
    assert connections.full == ""


@given(
    st.integers(1, 4),
    st.integers(4, 40),
    st.lists(
        st.tuples(
            st.sets(st.integers(0, 29), max_size=30),  # those that are there
            st.sets(st.integers(0, 29), max_size=30),  # those with a stream
            st.floats(0.1, 100.0),  # since the look before
        ),
        max_size=20,
    ),
)
def test_none_is_closed_without_need_and_what_stays_is_within_the_limits(
    per_address: int, most: int, looks: list[tuple[set[int], set[int], float]]
) -> None:
    connections = subject(per_address, most)
    most_of_one, most_waiting = 2 * per_address, min(2 * per_address, most // 4)
    waiting: dict[int, float] = {}
    now, closed = 0.0, 0
    for there, served, passed in looks:
        now += passed
        found = [connection(f"10.0.0.{each % 3}", each) for each in there]
        due = look(connections, found, lambda place, served=served: place.port in served, now)  # type: ignore[misc]
        timed_out = {each for each in waiting.keys() - there if now - waiting[each] >= NEARLY * HANDSHAKE}
        closed += len(due) + len(timed_out)
        assert due.keys() <= there - served
        waiting = {each: waiting.get(each, now) for each in there - served}
        old = {each for each, since in waiting.items() if now - since >= IDLE}
        assert {each for each, cause in due.items() if cause is Cause.IDLE_TIMEOUT} == old
        for address in range(3):
            here = {each for each in there if each % 3 == address}
            stay = here - due.keys()
            assert len(stay) <= max(most_of_one, len(here & served))
            assert len(stay - served) <= most_waiting
            if any(due.get(each) is Cause.CONNECTIONS_PER_ADDRESS for each in here):
                needed = min(most_of_one - len(here & served), most_waiting)
                assert len(stay - served) >= min(len(here - served - old), needed)
        waiting = {each: since for each, since in waiting.items() if each not in due}
    del connections.refused[Cause.MAX_CONNECTIONS]
    assert connections.refused.total() == closed
