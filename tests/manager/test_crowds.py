"""How many streams one address may have, and what an address is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.serving.crowds import Crowds, Entry, place_of


@pytest.mark.parametrize(
    ("peer", "origin"),
    [
        ("ipv4:10.1.2.3:50000", "10.1.2.3"),
        ("ipv4:10.1.2.3:50001", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::1]:50000", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:50000", "10.1.2.3"),
    ],
)
def test_an_address_is_known_whatever_its_port_and_form(peer: str, origin: str) -> None:
    crowds = Crowds(1)
    host = "10.1.2.3" if origin == "10.1.2.3" else origin.removesuffix("/64")
    assert crowds.enter(f"ipv{4 if '.' in host else 6}:[{host}]:9") is Entry.IN
    assert crowds.enter(peer) is Entry.LATER
    assert len(crowds) == 1


@pytest.mark.parametrize(
    ("peer", "host", "port"),
    [
        ("ipv4:10.1.2.3:50000", "10.1.2.3", 50000),
        ("ipv4:10.1.2.3:50000", "::ffff:10.1.2.3", 50000),
        ("ipv6:%5Bfe80::1%25eth0%5D:7", "fe80::1%2", 7),
        ("ipv6:%5B::1%5D:7", "::1", 7),
    ],
)
def test_it_is_known_from_where_there_is_a_stream(peer: str, host: str, port: int) -> None:
    """In gRPC's words and in the system's, also where it doesn't count."""
    crowds, place = Crowds(1), place_of(host, port)
    assert place is not None
    crowds.enter(peer)
    crowds.enter(peer)
    assert crowds.at(place)
    assert not crowds.at(place._replace(port=port + 1))
    crowds.leave(peer)
    assert crowds.at(place)
    crowds.leave(peer)
    assert not crowds.at(place)


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:127.0.0.1:50000",
        "ipv4:127.8.9.1:50000",
        "ipv6:%5B::1%5D:50000",
        "ipv6:[::ffff:127.0.0.1]:50000",
        "unix:",
        "unix:/run/x",
        "unix-abstract:x",
    ],
)
def test_what_comes_from_this_machine_does_not_count(peer: str) -> None:
    crowds = Crowds(1)
    assert [crowds.enter(peer) for _ in range(5)] == [Entry.IN] * 5
    assert not len(crowds)


@given(st.text())
def test_any_peer_counts_for_something_or_not(peer: str) -> None:
    crowds = Crowds(1)
    assert crowds.enter(peer) is Entry.IN
    crowds.leave(peer)
    assert not len(crowds)


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=100))
def test_no_address_has_more_streams_than_allowed_nor_keeps_another_out(
    most: int, steps: list[tuple[bool, int]]
) -> None:
    crowds = Crowds(most)
    inside: dict[int, list[Entry]] = {address: [] for address in (1, 2, 3)}
    for comes, address in steps:
        peer = f"ipv4:10.0.0.{address}:1"
        streams = inside[address]
        if comes:
            entry = crowds.enter(peer)
            there = len(streams)
            assert entry is (Entry.IN if there < most else Entry.LATER if there < 2 * most else Entry.NEVER)
            streams.append(entry)
        elif streams:
            streams.pop()
            crowds.leave(peer)
    assert len(crowds) == sum(bool(streams) for streams in inside.values())
    for address, streams in inside.items():
        for _ in streams:
            crowds.leave(f"ipv4:10.0.0.{address}:2")
    assert not len(crowds)


def test_who_is_told_to_come_back_is_waited_for_up_to_a_limit_as_well() -> None:
    crowds = Crowds(10)
    entries = Counter(crowds.enter("ipv4:10.0.0.1:1") for _ in range(100))
    assert entries == {Entry.IN: 10, Entry.LATER: 10, Entry.NEVER: 80}
