"""Addresses are read, and one address belongs to one cluster. The only unit tests with sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.errors import AddressInUse, StartError
from manager.listen import CAN_SHARE_PORT, Address, reserve

needs_sharing = pytest.mark.skipif(not CAN_SHARE_PORT, reason="this platform has no SO_REUSEPORT")

LOOPBACK = "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("localhost:0", "localhost", 0),
        ("  a.example.org:65535\n", "a.example.org", 65535),
        ("[::1]:50051", "::1", 50051),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("0.0.0.0:00080", "0.0.0.0", 80),  # noqa: S104 - only read
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write host:port"),
        (":", "write host:port"),
        ("localhost", "write host:port"),
        (":50051", "write host:port"),
        ("[]:50051", "write host:port"),
        ("::1", "in brackets"),
        ("::1:50051", "in brackets"),
        ("a:b:1", "in brackets"),
        ("localhost:", "a number from 0 to 65535"),
        ("localhost:http", "a number from 0 to 65535"),
        ("localhost:-1", "a number from 0 to 65535"),
        ("localhost:+1", "a number from 0 to 65535"),
        ("localhost: 1", "a number from 0 to 65535"),
        ("localhost:1.5", "a number from 0 to 65535"),
        ("localhost:65536", "a number from 0 to 65535"),
        ("localhost:" + "9" * 5_000, "a number from 0 to 65535"),
        ("localhost:\N{ARABIC-INDIC DIGIT ONE}", "a number from 0 to 65535"),
        ("localhost:\N{SUPERSCRIPT TWO}", "a number from 0 to 65535"),
        ("[::1]", "in brackets"),
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Address.parse(text)
    assert repr(text) in str(caught.value)


HOSTS = st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True) | st.ip_addresses(v=6).map(str)


@given(HOSTS, st.integers(0, 65535))
def test_an_address_is_read_as_it_is_written(host: str, port: int) -> None:
    address = Address(host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost"])
def test_loopback_is_known(host: str) -> None:
    assert Address(host, 1).is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",  # noqa: S104
        "::",
        "10.0.0.1",
        "fe80::1%eth0",
        "localhost.example.org",
        "example.org",
        "127.0.0.1.nip.io",
        "::1%2eexample.org",
    ],
)
def test_whatever_else_there_is_may_be_reached_from_elsewhere(host: str) -> None:
    assert not Address(host, 1).is_loopback


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert address.host
    assert 0 <= address.port <= 65535


@pytest.fixture
def address() -> Iterator[Address]:
    """A reserved address, port chosen by the system."""
    reservation = reserve(Address(LOOPBACK, 0))
    yield reservation.address
    reservation.close()


def test_port_0_becomes_a_real_one(address: Address) -> None:
    assert address.host == LOOPBACK
    assert address.port > 0


@needs_sharing
def test_a_reserved_address_is_reserved_once(address: Address) -> None:
    with pytest.raises(AddressInUse, match=str(address)):
        reserve(address)


@needs_sharing
def test_it_is_also_taken_for_whoever_listens_everywhere(address: Address) -> None:
    with pytest.raises(AddressInUse):
        reserve(Address("0.0.0.0", address.port))  # noqa: S104


@needs_sharing
def test_workers_can_share_a_reserved_address_and_get_all_connections(address: Address) -> None:
    with socket.socket() as worker, socket.socket() as client:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind((LOOPBACK, address.port))
        worker.listen()
        worker.settimeout(5)
        client.settimeout(5)
        client.connect((LOOPBACK, address.port))
        worker.accept()[0].close()
        with pytest.raises(AddressInUse):
            reserve(address)


@needs_sharing
def test_even_one_who_would_share_is_in_the_way() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((LOOPBACK, 0))
        other.listen()
        with pytest.raises(AddressInUse):
            reserve(Address(LOOPBACK, other.getsockname()[1]))


def test_an_address_can_be_reserved_again_once_it_is_let_go() -> None:
    first = reserve(Address(LOOPBACK, 0))
    first.close()
    first.close()
    second = reserve(first.address)
    second.close()
    assert second.address == first.address


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0..1", id="an empty label"),
        pytest.param("a" * 64 + ".example", id="a label too long"),
        pytest.param("a\0b", id="a null character"),
        pytest.param("192.0.2.1", id="not this machine's"),
    ],
)
def test_a_host_that_can_not_be_listened_on_is_named(host: str) -> None:
    with pytest.raises(StartError, match="can't listen on"):
        reserve(Address(host, 0))
