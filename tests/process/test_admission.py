"""Herds, and workers that are full: who does as told gets in, and nobody is refused without a hint."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from coordinator import Coordinator, CoordinatorGone, connect
from manager import StartError, create_participant_manager
from manager.limits import Limits
from protos import control_pb2, stream_pb2
from tests.process.running import RunningCoordinator, run, start_coordinator
from tests.support import CONNECT, PATIENCE, Devices, eventually

LEAVE = stream_pb2.ParticipantMessage(leave=stream_pb2.Leave()).SerializeToString()


class Obedient:
    """A participant that comes back when it is told to."""

    def __init__(self, address: str, name: str) -> None:
        hello = stream_pb2.ParticipantMessage(hello=stream_pb2.Hello(participant_id=name))
        self._address = address
        self._hello = hello.SerializeToString()
        self._pooled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.delays: list[float] = []
        self.refused: list[tuple[grpc.StatusCode, str]] = []  # ends without a hint when to come back
        self.task = asyncio.ensure_future(self._live())
        self.call: Any = None

    async def leave(self) -> None:
        await self.call.write(LEAVE)
        await self.call.done_writing()
        await self.task

    async def _live(self) -> None:
        while True:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(self._address, options=options) as channel:
                self.call = channel.stream_stream(CONNECT)()
                try:
                    await self.call.write(self._hello)
                    data = await self.call.read()
                except grpc.aio.AioRpcError:
                    data = grpc.aio.EOF
                if data is grpc.aio.EOF:
                    code = await self.call.code()
                    if code is not grpc.StatusCode.OK:
                        self.refused.append((code, await self.call.details()))
                    return
                delay = stream_pb2.ServerMessage.FromString(data).reconnect.delay_seconds
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self.call.write(LEAVE)
                    await self.call.done_writing()
                await self.call.code()  # UNAVAILABLE if there was no room even for its stream
            self.delays.append(delay)
            await asyncio.sleep(delay)


class Herd:
    """Obedient participants, on the devices' loop."""

    def __init__(self, devices: Devices, address: str, size: int) -> None:
        self._devices = devices
        self.all = devices.run(self._join(address, size))

    async def _join(self, address: str, size: int) -> list[Obedient]:
        return [Obedient(address, f"obedient-{number}") for number in range(size)]

    def leave(self, participant: Obedient) -> None:
        self._devices.run(participant.leave())

    def close(self) -> None:
        async def close() -> None:
            for participant in self.all:
                participant.task.cancel()
            await asyncio.gather(*(each.task for each in self.all), return_exceptions=True)

        self._devices.run(close())


@contextmanager
def herd(devices: Devices, address: str, size: int) -> Iterator[Herd]:
    coming = Herd(devices, address, size)
    try:
        yield coming
    finally:
        coming.close()


@contextmanager
def status_of(coordinator: RunningCoordinator) -> Iterator[Callable[[], control_pb2.Status]]:
    """Asks it over and over; faster than by the command."""
    with connect(coordinator.control) as connection:
        yield connection.status


@pytest.mark.long(6)
def test_a_herd_settles_no_faster_than_allowed_and_nobody_is_refused(
    tmp_path: Path, devices: Devices
) -> None:
    with start_coordinator(tmp_path / "log", "--workers=1", "--max-joins=20") as coordinator:
        since = time.monotonic()
        with herd(devices, coordinator.listen, 160) as coming, status_of(coordinator) as status:

            def settled() -> bool:
                there = status().participants
                assert there <= 60 + 20 * (time.monotonic() - since), "more joined than may"
                return there == 160

            eventually(settled, timeout=3 * PATIENCE)
            took = time.monotonic() - since
            assert took > 4.5
            assert not [refusal for each in coming.all for refusal in each.refused]
            told = sum(len(each.delays) for each in coming.all)
            assert told, "they came so slowly that there was room for all"
            assert all(0.2 <= delay <= 12 for each in coming.all for delay in each.delays)
            assert eventually(lambda: status().workers[0].refused["max_joins"] == told)
            assert status().workers[0].refused.keys() == {"max_joins"}
        lines = [record for record in coordinator.records() if "to come back in" in record["event"]]
        assert 1 <= len(lines) <= 2 + (time.monotonic() - since) / 10, "one line for all"


def test_a_full_worker_tells_the_others_when_to_come_back_and_takes_one_when_one_leaves(
    tmp_path: Path, devices: Devices
) -> None:
    options = ["--workers=1", "--come-back=1-3"]
    variables = {"MUSTER_MAX_PER_WORKER": "10"}
    with (
        start_coordinator(tmp_path / "log", *options, environment=variables) as coordinator,
        herd(devices, coordinator.listen, 30) as coming,
        connect(coordinator.control) as connection,
    ):
        status = connection.status
        eventually(lambda: sum(bool(each.delays) for each in coming.all) == 20)
        first = set(connection.get_participants(10, timeout=PATIENCE).ids)
        assert len(first) == 10
        assert all(1 <= delay <= 3 for each in coming.all for delay in each.delays)
        inside = next(each for each in coming.all if not each.delays)
        coming.leave(inside)
        eventually(
            lambda: set(connection.get_participants(10, timeout=PATIENCE).ids) - first,
            what="somebody in the place of the one that left",
        )
        eventually(lambda: any(len(each.delays) > 1 for each in coming.all))
        assert status().participants == 10
        assert not [refusal for each in coming.all for refusal in each.refused]
        eventually(lambda: status().workers[0].refused["max_per_worker"] > 20)
        assert status().workers[0].refused.keys() == {"max_per_worker"}


class WithFewFiles(RunningCoordinator):
    """A coordinator that may not open more files than a number."""

    def __init__(self, log: Path, files: int, *options: str) -> None:
        """``options`` come last, so they may say where it listens."""
        self._files = files
        super().__init__(log, *options)

    def command(self, options: Sequence[str]) -> list[str]:
        return ["sh", "-c", f"ulimit -n {self._files}; exec {shlex.join(super().command(options))}"]


def test_where_few_files_may_be_open_it_is_said_and_people_are_turned_away_in_time(
    tmp_path: Path, devices: Devices
) -> None:
    coordinator = WithFewFiles(tmp_path / "log", 400, "--workers=1", "--come-back=600-900")
    try:
        warnings = [record["event"] for record in coordinator.records() if record["level"] == "warning"]
        assert len(warnings) == 1
        assert "may open only 400 files here: 204 participants per worker" in warnings[0]
        assert "ulimit -n 65536" in warnings[0]
        assert "LimitNOFILE=" in warnings[0]
        with herd(devices, coordinator.listen, 260) as coming, status_of(coordinator) as status:
            eventually(lambda: status().participants == 204)
            eventually(lambda: sum(bool(each.delays) for each in coming.all) == 56)
            refused = [refusal for each in coming.all for refusal in each.refused]
            assert not refused
            eventually(lambda: sum(status().workers[0].refused.values()) == 56)
            assert status().workers[0].refused.keys() <= {"max_per_worker", "open_files"}
        coordinator.send(signal.SIGTERM)
        assert coordinator.wait() == 0, coordinator.output
    finally:
        coordinator.end()


def test_more_participants_than_there_are_files_for_are_refused_with_what_to_do() -> None:
    done = run("coordinator", "start", "--listen=127.0.0.1:0", "--max-per-worker=100000000")
    assert done.returncode == 2
    assert "100000000 participants per worker are too many for the" in done.stderr
    assert "ulimit -n" in done.stderr
    with pytest.raises(StartError, match=r"100000000 participants per worker .*ulimit -n"):
        create_participant_manager(listen="127.0.0.1:0", limits=Limits(max_per_worker=100_000_000))


def test_a_single_process_has_limits_as_well(devices: Devices) -> None:
    limits = Limits(max_per_worker=2, come_back=(0.5, 1))
    server, manager = create_participant_manager(listen="127.0.0.1:0", limits=limits)
    with server, herd(devices, server.address, 5) as coming:
        assert len(manager.get_participants(2, timeout=PATIENCE)) == 2
        eventually(lambda: sum(bool(each.delays) for each in coming.all) == 3)
        assert server.refused.keys() == {"max_per_worker"}
        assert server.refused["max_per_worker"] >= 3
        assert server.troubles == []
        inside = next(each for each in coming.all if not each.delays)
        coming.leave(inside)
        eventually(lambda: len(manager) == 2)


def test_more_participants_than_wanted_in_all_are_told_when_to_come_back(devices: Devices) -> None:
    limits = Limits(come_back=(7.0, 9.0))
    with Coordinator(
        workers=2, listen="127.0.0.1:0", max_participants=4, limits=limits, log_level="critical"
    ) as coordinator:
        joined = devices.join(coordinator.listen, 7)
        eventually(lambda: sum(device.reconnect is not None for device in joined) == 3)
        turned_away = [device.reconnect.delay_seconds for device in joined if device.reconnect is not None]
        assert all(7.0 <= delay <= 9.0 for delay in turned_away)
        assert len(coordinator.get_participants(4, timeout=20)) == 4
        status = coordinator.status()
        assert (status.participants, dict(status.refused)) == (4, {"max_participants": 3})
        again = next(device for device in joined if device.reconnect is None)
        hello = stream_pb2.Hello(participant_id=again.id)
        newer = devices.one(coordinator.listen, stream_pb2.ParticipantMessage(hello=hello))
        eventually(lambda: again.ended is not None)
        assert newer.reconnect is None, "it takes no other's place"
        assert coordinator.status().participants == 4
        newer.leave()
        eventually(lambda: coordinator.status().participants == 3)
        (late,) = devices.join(coordinator.listen, 1, prefix="late")
        eventually(lambda: coordinator.status().participants == 4)
        assert late.reconnect is None


def test_more_scripts_than_wanted_are_refused_with_a_sentence() -> None:
    with (
        Coordinator(
            workers=1, listen="127.0.0.1:0", control="127.0.0.1:0", max_scripts=1, log_level="critical"
        ) as coordinator,
        connect(coordinator.control),
        pytest.raises(CoordinatorGone, match="1 scripts are attached, as many as --max-scripts allows"),
    ):
        connect(coordinator.control)
