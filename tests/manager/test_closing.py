"""How often connections are looked at: seldom where looking costs much, but not while some have to go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from manager.limits import Limits
from manager.serving.closing import INTERVAL, MOST_INTERVAL, SHARE, Closing
from manager.serving.connections import Connection, Connections
from manager.serving.crowds import place_of
from manager.serving.open_sockets import OpenSockets


class Sockets(OpenSockets):
    """Connections from one address, of which some more are there at each look."""

    def __init__(self, numbers: list[int], took: float) -> None:
        super().__init__(1)
        self._numbers = numbers
        self.took = took
        self.there: dict[int, Connection] = {}
        self._next = 0

    async def look(self, see: Callable[[Connection], None]) -> dict[int, Connection]:
        if not self._numbers:
            raise asyncio.CancelledError
        number = self._numbers.pop(0)
        if number < 0:
            raise OSError("it failed")
        for _ in range(number):
            self._next += 1
            place = place_of("10.0.0.1", self._next)
            assert place is not None
            self.there[self._next] = Connection(self._next, place)
        for connection in self.there.values():
            see(connection)
        return dict(self.there)

    def close(self, descriptor: int, connection: Connection) -> None:
        del self.there[descriptor]


def run(
    numbers: list[int], took: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[Sockets, Connections, list[float]]:
    """Looks so many times; how long it waited after each."""
    limits = Limits(max_per_address=5, idle_timeout=3600.0)
    sockets, connections = Sockets(numbers, took), Connections(limits, 1000, Counter())
    waited: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            waited.append(seconds)
        await really(0)

    async def main() -> None:
        closing = Closing(connections, sockets, lambda place: False)
        monkeypatch.setattr("manager.serving.closing.asyncio.sleep", sleep)
        await closing.run()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    return sockets, connections, waited


@pytest.mark.parametrize(
    ("took", "interval"), [(0.001, INTERVAL), (0.06, 0.06 / SHARE), (2.5, MOST_INTERVAL)]
)
def test_the_more_it_takes_the_less_often_but_never_too_seldom(
    took: float, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, waited = run([1, 1, 1], took, monkeypatch)
    assert waited == [interval] * 3


def test_while_some_are_closed_it_is_looked_again_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sockets, connections, waited = run([5, 300, 400, 1, 0], 2.5, monkeypatch)
    assert waited == [MOST_INTERVAL, INTERVAL, INTERVAL, INTERVAL, MOST_INTERVAL]
    assert len(sockets.there) == 10
    assert connections.refused.total() == 696
    assert "closed 295 connections: one address has more of them than it may" in caplog.text


def test_while_there_are_as_many_as_there_may_be_it_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, _, waited = run([1000, 0], 2.5, monkeypatch)
    assert waited == [INTERVAL, MOST_INTERVAL]
    assert "newcomers are cut off (1000 of them are from 10.0.0.1)" in caplog.text


def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets, _, waited = run([-1, 20], 0.001, monkeypatch)
    assert len(waited) == 2
    assert len(sockets.there) == 10
