"""Fixtures for tests with real sockets and processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from coordinator import Connection, Coordinator, connect
from manager import ParticipantManager, create_participant_manager
from manager.api.proxy import ParticipantProxy
from manager.core.dispatcher import Dispatcher
from tests.authority import Authority
from tests.process.reducers import REDUCERS
from tests.support import PATIENCE, Devices, eventually, instruction


class Echo(ParticipantProxy):
    """The subclass that all modes share."""

    def echo(self, payload: bytes, timeout: float | None = None) -> bytes:
        return self.run(instruction("echo", payload), timeout).result.payload


Manager = ParticipantManager[Echo] | Coordinator[Echo] | Connection[Echo]


@dataclass
class Served:
    """One way to reach participants, and where they connect."""

    manager: Manager
    address: str
    pooled: Callable[[], int]


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set no deadline comes in this process, however late answers are that it isn't meant for."""
    may_come, until = threading.Event(), time.monotonic() + PATIENCE
    expire = Dispatcher._expire

    def later(dispatcher: Dispatcher) -> None:
        if may_come.is_set() or time.monotonic() > until:
            expire(dispatcher)
        else:
            dispatcher._timer = dispatcher._loop.call_later(0.01, dispatcher._expire)

    monkeypatch.setattr(Dispatcher, "_expire", later)
    return may_come


@pytest.fixture
def devices() -> Iterator[Devices]:
    devices = Devices()
    yield devices
    devices.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Coordinator[Echo]]:
    """Two workers, shared by the tests of a module; each test brings its own participants."""
    with Coordinator(
        workers=2,
        listen="127.0.0.1:0",
        control="127.0.0.1:0",
        participant_proxy_factory=Echo,
        log_level="warning",
        reducers=REDUCERS,
    ) as coordinator:
        yield coordinator
    assert not psutil.Process().children(recursive=True), "worker processes were left behind"


@pytest.fixture(params=["single process", "coordinator", "attached"])
def served(request: pytest.FixtureRequest, devices: Devices) -> Iterator[Served]:
    """The same interface in its three implementations."""
    if request.param == "single process":
        server, manager = create_participant_manager(Echo, listen="127.0.0.1:0", reducers=REDUCERS)
        with server:
            yield Served(manager, server.address, lambda: len(manager))
            devices.clear()
        return
    shared: Coordinator[Echo] = request.getfixturevalue("coordinator")

    def pooled() -> int:
        return shared.status().participants

    if request.param == "coordinator":
        yield Served(shared, shared.listen, pooled)
    else:
        with connect(shared.control, Echo) as connection:
            yield Served(connection, shared.listen, pooled)
    devices.clear()
    eventually(lambda: pooled() == 0, what="an empty pool after the test")

    def left() -> tuple[int, int, int]:
        status = shared.status()
        return status.calls, status.leased, status.waiting

    eventually(lambda: left() == (0, 0, 0), what="nothing left behind by the test")
