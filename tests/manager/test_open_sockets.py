"""What is seen of the connections to a port of this process, and what closing one does."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from manager.serving.connections import Connection
from manager.serving.crowds import place_of
from manager.serving.open_sockets import SLICE, OpenSockets
from tests.support import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems don't list a process's files")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Port:
    """One that this process listens at."""

    def __init__(self, stack: ExitStack, host: str = "127.0.0.1", port: int = 0) -> None:
        self._stack = stack
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = stack.enter_context(socket.socket(family))
        self._listening.bind((host, port))
        self._listening.listen(200)
        self.port = self._listening.getsockname()[1]

    def connected(self, host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """Both ends: the one that connects, and the one that was accepted."""
        far = self._stack.enter_context(socket.create_connection((host, self.port), PATIENCE))
        near, _ = self._listening.accept()
        near.settimeout(PATIENCE)
        return far, self._stack.enter_context(near)


def look(sockets: OpenSockets) -> dict[int, Connection]:
    seen: list[Connection] = []
    found = asyncio.run(sockets.look(seen.append))
    assert list(found.values()) == seen
    return found


def place(connection: socket.socket) -> object:
    return place_of(*connection.getsockname()[:2])


def test_connections_that_were_accepted_are_seen_from_where_they_come_until_they_close(
    stack: ExitStack,
) -> None:
    port, other = Port(stack), Port(stack)
    sockets = OpenSockets(port.port)
    other.connected()
    assert look(sockets) == {}
    far, near = port.connected()
    found = look(sockets)
    assert {descriptor: each.place for descriptor, each in found.items()} == {near.fileno(): place(far)}
    more = [port.connected() for _ in range(SLICE)]
    again = look(sockets)
    assert again[near.fileno()] == found[near.fileno()]
    assert len({each.id for each in again.values()}) == len(again) == 1 + SLICE
    for pair in more:
        pair[1].close()
    assert look(sockets) == found


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv4_at_a_port_of_ipv6_is_ipv4(stack: ExitStack) -> None:
    port = Port(stack, "::")
    far, _ = port.connected("127.0.0.1")
    far6, _ = port.connected("::1")
    assert {each.place for each in look(OpenSockets(port.port)).values()} == {place(far), place(far6)}


def test_one_at_the_same_port_of_another_address_is_somebody_elses(stack: ExitStack) -> None:
    first = Port(stack, "127.0.0.1")
    second = Port(stack, "127.0.0.2", first.port)
    far, near = first.connected()
    other, _ = second.connected("127.0.0.2")
    assert look(OpenSockets(first.port, {"127.0.0.1"})).keys() == {near.fileno()}
    assert {each.place for each in look(OpenSockets(first.port)).values()} == {place(far), place(other)}
    assert look(OpenSockets(first.port, {"::1"})) == {}


def test_closing_one_ends_it_for_both_sides_and_no_other(stack: ExitStack) -> None:
    port = Port(stack)
    far, near = port.connected()
    other_far, other_near = port.connected()
    sockets = OpenSockets(port.port)
    sockets.close(near.fileno(), look(sockets)[near.fileno()])
    assert far.recv(1) == near.recv(1) == b""
    other_far.sendall(b"x")
    assert other_near.recv(1) == b"x"


def test_sockets_of_whose_process_this_is_stay_as_they_are(
    stack: ExitStack,
) -> None:
    port = Port(stack)
    port.connected()
    ours, theirs = map(stack.enter_context, socket.socketpair())
    for default in (None, 5.0):
        socket.setdefaulttimeout(default)
        try:
            look(OpenSockets(port.port))
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(ours.fileno())
        assert os.get_blocking(theirs.fileno())


def test_a_descriptor_that_is_somebody_elses_by_now_is_left_alone(stack: ExitStack) -> None:
    port = Port(stack)
    _, near = port.connected()
    sockets = OpenSockets(port.port)
    found = look(sockets)[near.fileno()]
    far, new = port.connected()
    os.dup2(new.fileno(), near.fileno())
    sockets.close(near.fileno(), found)
    far.sendall(b"x")
    assert new.recv(1) == b"x"
    near.close()
    sockets.close(near.fileno(), found)  # nor is it an error that there is none


def test_closing_leaves_no_descriptor_behind_whatever_is_there_by_now(stack: ExitStack) -> None:
    port = Port(stack)
    far, near = port.connected()
    sockets = OpenSockets(port.port)
    found = look(sockets)[near.fileno()]
    reading, writing = os.pipe()
    try:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as the product does
        for _ in range(10):
            sockets.close(reading, found)  # no socket
            sockets.close(far.fileno(), found)  # another one
        far.close()
        sockets.close(near.fileno(), found)  # whose peer has gone
        assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208
    finally:
        os.close(reading)
        os.close(writing)
