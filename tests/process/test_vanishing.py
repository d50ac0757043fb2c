"""Participants that vanish, each in its way: how soon it is known, and that nobody waits for them any longer.

The workers ping after a second of silence here, and take a participant for lost after half of that again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from coordinator import CallTimeout, Connection, ParticipantLost, connect
from tests.process.running import RunningCoordinator, start_coordinator, start_participants
from tests.support import PATIENCE, Devices, eventually, instruction

pytestmark = pytest.mark.timed

KEEPALIVE = 1.0
FOUND = 1.5 * KEEPALIVE
"""Seconds after which a participant that doesn't answer pings is lost …"""

SLACK = 1.0
"""… and what a busy machine may take longer."""

TIMEOUT = 0.2
"""Seconds, of calls that are not answered."""

PROMPT = 0.3
"""Seconds in which a call ends after its timeout, at most. The promise is 0.1; test machines are noisy."""


class Line:
    """A TCP proxy: the line between a participant and the workers, which can be cut without a word."""

    def __init__(self, devices: Devices, address: str) -> None:
        self._devices = devices
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._whole = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.address = devices.run(self._open())

    def cut(self) -> None:
        """From now on nothing comes through, in either direction, and no socket is closed."""
        self._devices.loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """What was under way comes through after all."""
        self._devices.loop.call_soon_threadsafe(self._whole.set)

    def close(self) -> None:
        self._devices.run(self._close())

    async def _open(self) -> str:
        self._whole.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, there_writer]
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.ensure_future(self._forward(source, sink))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                await self._whole.wait()
                sink.write(data)
                await sink.drain()
            await self._whole.wait()  # an end doesn't come through, either
            sink.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(each.wait_closed() for each in self._writers), return_exceptions=True)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCoordinator]:
    log = tmp_path_factory.mktemp("vanishing") / "log"
    with start_coordinator(log, "--workers=2", f"--keepalive={KEEPALIVE}") as coordinator:
        yield coordinator


@pytest.fixture
def connection(coordinator: RunningCoordinator) -> Iterator[Connection[Any]]:
    with connect(coordinator.control) as connection:
        yield connection
        eventually(lambda: connection.status().participants == 0, what="an empty pool after the test")


@pytest.fixture
def line(coordinator: RunningCoordinator, devices: Devices) -> Iterator[Line]:
    line = Line(devices, coordinator.listen)
    yield line
    devices.clear()
    line.close()


@pytest.fixture
def processes(connection: Connection[Any]) -> Iterator[ExitStack]:
    """Ends participants' processes before the pool is looked at."""
    with ExitStack() as stack:
        yield stack


def seconds_until(condition: Callable[[], object]) -> float:
    since = time.monotonic()
    eventually(condition)
    return time.monotonic() - since


def test_one_that_leaves_is_gone_at_once(
    connection: Connection[Any], coordinator: RunningCoordinator, devices: Devices
) -> None:
    (device,) = devices.join(coordinator.listen)
    (proxy,) = connection.get_participants(1, timeout=20)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(proxy.run, instruction("hold"))
        assert device.holding.wait(PATIENCE)
        since = time.monotonic()
        device.leave()
        with pytest.raises(ParticipantLost):
            call.result(PATIENCE)
        assert time.monotonic() - since < SLACK
    eventually(lambda: device.ended is not None)
    assert device.ended is not None
    assert device.ended[0].name == "OK"


def test_a_process_that_stops_on_purpose_leaves(
    connection: Connection[Any], coordinator: RunningCoordinator, processes: ExitStack, tmp_path: Path
) -> None:
    process = start_participants(processes, tmp_path / "log", coordinator.listen, "left", 3)
    cohort = connection.get_participants(3, timeout=20)
    process.send(signal.SIGTERM)
    assert seconds_until(lambda: not any(proxy.connected for proxy in cohort)) < SLACK
    assert process.wait() == 0


def test_a_process_that_is_killed_is_lost_at_once(
    connection: Connection[Any], coordinator: RunningCoordinator, processes: ExitStack, tmp_path: Path
) -> None:
    process = start_participants(processes, tmp_path / "log", coordinator.listen, "killed", 3)
    cohort = connection.get_participants(3, timeout=20)
    process.send(signal.SIGKILL)
    assert seconds_until(lambda: not any(proxy.connected for proxy in cohort)) < SLACK


def test_behind_a_line_that_is_cut_idle_and_busy_ones_are_lost_within_the_time(
    connection: Connection[Any], line: Line, devices: Devices
) -> None:
    joined = devices.join(line.address, 4)
    cohort = connection.get_participants(4, timeout=20)
    (idle,) = (proxy for proxy in cohort if proxy.id == "device-0")
    busy = [proxy for proxy in cohort if proxy is not idle]
    with ThreadPoolExecutor(len(busy)) as threads:
        calls = [threads.submit(proxy.run, instruction("hold")) for proxy in busy]
        assert all(device.holding.wait(PATIENCE) for device in joined[1:])
        line.cut()
        since = time.monotonic()
        for call in calls:
            with pytest.raises(ParticipantLost):
                call.result(PATIENCE)
        eventually(lambda: not idle.connected)
        took = time.monotonic() - since
    assert FOUND - KEEPALIVE - 0.1 < took < FOUND + SLACK


def test_a_line_that_stood_still_for_a_moment_costs_nobody_anything(
    connection: Connection[Any], line: Line, devices: Devices
) -> None:
    devices.join(line.address, 2)
    cohort = connection.get_participants(2, timeout=20)
    with ThreadPoolExecutor(1) as threads:
        line.cut()
        call = threads.submit(cohort.run, instruction("echo", b"late"))
        since = time.monotonic()
        eventually(lambda: time.monotonic() > since + 0.3)  # less than a ping may take
        line.mend()
        assert len(call.result(PATIENCE).results) == 2
    assert all(proxy.connected for proxy in cohort)


def test_a_participant_that_is_frozen_is_lost_and_back_by_itself_when_it_thaws(
    connection: Connection[Any], coordinator: RunningCoordinator, processes: ExitStack, tmp_path: Path
) -> None:
    process = start_participants(processes, tmp_path / "log", coordinator.listen, "lid", 2)
    cohort = connection.get_participants(2, timeout=20)
    process.send(signal.SIGSTOP)  # a laptop's lid is closed
    try:
        took = seconds_until(lambda: not any(proxy.connected for proxy in cohort))
        assert FOUND - KEEPALIVE - 0.1 < took < FOUND + SLACK
    finally:
        process.send(signal.SIGCONT)
    back = connection.get_participants(2, timeout=20)
    assert sorted(back.ids) == ["lid-0", "lid-1"]
    assert not set(back) & set(cohort), "it is another session"
    outcome = back.run(instruction("echo"), timeout=10)
    assert len(outcome.results) + len(outcome.failures) == 2


@pytest.mark.parametrize("attempt", range(3))
def test_a_call_to_one_that_is_stuck_ends_with_its_timeout_and_the_late_answer_is_dropped(
    connection: Connection[Any], coordinator: RunningCoordinator, devices: Devices, attempt: int
) -> None:
    (device,) = devices.join(coordinator.listen)
    (proxy,) = connection.get_participants(1, timeout=20)
    assert proxy.run(instruction("echo", b"1"), timeout=20).result.payload == b"1"
    late = connection.status().counters.late
    since = time.monotonic()
    with pytest.raises(CallTimeout):
        proxy.run(instruction("hold", b"2"), timeout=TIMEOUT)
    took = time.monotonic() - since
    assert TIMEOUT <= took < TIMEOUT + PROMPT
    device.release()
    eventually(lambda: connection.status().counters.late == late + 1)
    assert proxy.run(instruction("echo", b"3"), timeout=20).result.payload == b"3"
    devices.clear()


def test_a_call_behind_a_line_that_is_cut_ends_with_its_timeout(
    connection: Connection[Any], line: Line, devices: Devices
) -> None:
    devices.join(line.address)
    (proxy,) = connection.get_participants(1, timeout=20)
    large = instruction("echo", bytes(2 * 1024**2))  # more than gRPC sends ahead
    line.cut()
    since = time.monotonic()
    with pytest.raises(CallTimeout):
        proxy.run(large, timeout=TIMEOUT)
    assert TIMEOUT <= time.monotonic() - since < TIMEOUT + PROMPT
    line.mend()
