"""Which connections are closed: the rules, over any history of what was seen."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from manager.connections import NEARLY, PATIENCE, Connection, Connections, Reason
from manager.crowds import Place

IDLE, HANDSHAKE = 60.0, 20.0


def connections_from(host: str, number: int, first: int = 1) -> list[Connection]:
    return [Connection(each, Place(ip_address(host), each)) for each in range(first, first + number)]


def nobody(_place: Place) -> bool:
    return False


def test_those_that_have_had_no_stream_for_long_are_closed() -> None:
    connections = Connections(10, IDLE, HANDSHAKE)
    old, new = connections_from("10.0.0.1", 2), connections_from("10.0.0.1", 2, first=3)
    assert connections.look(old, nobody, 0.0) == {}
    assert connections.look([*old, *new], nobody, 1.0) == {}
    due = connections.look([*old, *new], nobody, PATIENCE * IDLE)
    assert due == {1: Reason.IDLE, 2: Reason.IDLE}
    assert connections.closed == 2


def test_so_are_those_of_this_machine() -> None:
    connections = Connections(10, IDLE, HANDSHAKE)
    there = connections_from("127.0.0.1", 100)
    assert connections.look(there, nobody, 0.0) == {}  # which has no crowds
    assert len(connections.look(there, nobody, PATIENCE * IDLE)) == 100


def test_a_stream_starts_the_clock_anew() -> None:
    connections = Connections(10, IDLE, HANDSHAKE)
    there = connections_from("10.0.0.1", 1)
    late = PATIENCE * IDLE
    assert connections.look(there, nobody, 0.0) == {}
    assert connections.look(there, lambda place: True, late) == {}
    assert connections.look(there, nobody, late + 1) == {}
    assert connections.look(there, nobody, 2 * late) == {}
    assert connections.look(there, nobody, 2 * late + 1) == {1: Reason.IDLE}


def test_of_too_many_from_one_address_those_that_wait_for_longest_are_closed() -> None:
    connections = Connections(5, IDLE, HANDSHAKE)
    first, second = connections_from("10.0.0.1", 6), connections_from("10.0.0.1", 6, first=7)
    others = connections_from("10.0.0.2", 10, first=100)
    served = {each.place for each in first[:2]}
    assert connections.look([*first, *others], served.__contains__, 0.0) == {}
    due = connections.look([*second, *first, *others], served.__contains__, 1.0)
    assert due == {3: Reason.CROWD, 4: Reason.CROWD}


def test_one_with_a_stream_is_never_closed_however_many_there_are() -> None:
    connections = Connections(1, IDLE, HANDSHAKE)
    there = connections_from("10.0.0.1", 50)
    for now in (0.0, PATIENCE * IDLE, 9 * IDLE):
        assert connections.look(there, lambda place: place.port > 10, now).keys() == set(range(1, 11))


def test_those_that_grpc_closes_are_counted_too() -> None:
    connections = Connections(10, IDLE, HANDSHAKE)
    first, short, admitted = connections_from("10.0.0.1", 3)
    connections.look([first, admitted], nobody, 0.0)
    connections.look([first, short, admitted], nobody, HANDSHAKE - 1)
    assert connections.look([admitted], lambda place: place.port == 3, HANDSHAKE) == {}
    assert connections.closed == 1
    assert connections.look([], nobody, 10 * IDLE) == {}  # it had a stream when it was last seen
    assert connections.closed == 1


@given(
    st.integers(1, 4),
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
    most: int, looks: list[tuple[set[int], set[int], float]]
) -> None:
    connections = Connections(most, IDLE, HANDSHAKE)
    waiting: dict[int, float] = {}
    now, closed = 0.0, 0
    for there, served, passed in looks:
        now += passed
        found = [Connection(each, Place(ip_address(f"10.0.0.{each % 3}"), each)) for each in there]
        due = connections.look(found, lambda place, served=served: place.port in served, now)  # type: ignore[misc]
        timed_out = {each for each in waiting.keys() - there if now - waiting[each] >= NEARLY * HANDSHAKE}
        closed += len(due) + len(timed_out)
        assert due.keys() <= there - served
        waiting = {each: waiting.get(each, now) for each in there - served}
        old = {each for each, since in waiting.items() if now - since >= PATIENCE * IDLE}
        assert {each for each, reason in due.items() if reason is Reason.IDLE} == old
        for address in range(3):
            here = {each for each in there if each % 3 == address}
            stay = here - due.keys()
            assert len(stay) <= max(2 * most, len(here & served))
            if any(due.get(each) is Reason.CROWD for each in here):
                assert len(stay) >= min(len(here - old), 2 * most)
        waiting = {each: since for each, since in waiting.items() if each not in due}
    assert connections.closed == closed
