"""Calls that wait for a participant, behind another call or until it is back, when its worker is to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from coordinator import Coordinator, CoordinatorGone, connect
from manager import CallTimeout, Closed, create_participant_manager
from manager.limits import Limits
from protos.messages import instruction as make_instruction
from tests.process.running import (
    RunningCoordinator,
    command,
    is_up,
    killed,
    start_coordinator,
    start_participants,
)
from tests.support import PATIENCE, Devices, eventually, instruction


def drain(coordinator: RunningCoordinator) -> None:
    command("coordinator", "drain", "--grace=60", f"--control={coordinator.control}")


def terminate(coordinator: RunningCoordinator) -> None:
    coordinator.send(signal.SIGTERM)
    coordinator.wait()


def terminate_all(coordinator: RunningCoordinator) -> None:
    """As process managers do, and the workers have it before the coordinator."""
    for worker in coordinator.children():
        worker.terminate()
    coordinator.send(signal.SIGTERM)
    coordinator.wait()


@pytest.mark.parametrize("how", [drain, terminate, terminate_all])
def test_a_drain_waits_for_calls_that_wait_behind_others(
    tmp_path: Path, devices: Devices, how: Callable[[RunningCoordinator], None]
) -> None:
    with (
        start_coordinator(
            tmp_path / "coordinator.log", "--workers=2", "--grace=60", "--orphan-grace=5"
        ) as coordinator,
        ThreadPoolExecutor(3) as threads,
        connect(coordinator.control) as connection,
    ):
        held, other = devices.join(coordinator.listen, 2)
        cohort = connection.get_participants(2, timeout=20)
        calls = [threads.submit(cohort.run, instruction("hold", b"first"))]
        assert held.holding.wait(20)
        assert other.holding.wait(20)
        calls.append(threads.submit(cohort.run, instruction("echo", b"second")))
        eventually(lambda: coordinator.status()["calls"] == 2)
        draining = threads.submit(how, coordinator)
        eventually(lambda: coordinator.status()["draining"])
        other.release()  # its worker may go, and that of the other one must not
        eventually(lambda: other.received[b"second"] == 1)
        held.release()
        for call, payload in zip(calls, [b"first", b"second"], strict=True):
            outcome = call.result(PATIENCE)
            assert {answer.result.payload for answer in outcome.results.values()} == {payload}
            assert len(outcome.results) == 2, str(outcome)
        draining.result(PATIENCE)
        assert coordinator.wait() == 0, coordinator.output
        assert "does not stop by itself" not in coordinator.output


def test_a_single_process_that_stops_waits_for_them_too(devices: Devices) -> None:
    server, manager = create_participant_manager(listen="127.0.0.1:0")
    with ThreadPoolExecutor(2) as threads, server:
        (device,) = devices.join(server.address, 1)
        cohort = manager.get_participants(1, timeout=20)
        calls = [threads.submit(cohort.run, instruction("hold"))]
        assert device.holding.wait(20)
        calls.append(threads.submit(cohort.run, instruction("echo", b"second")))
        eventually(lambda: len(manager._dispatcher.calls) == 2)
        with ThreadPoolExecutor(1) as stopping:
            stopped = stopping.submit(server.stop, 60.0)
            eventually(lambda: manager._dispatcher.draining)
            with pytest.raises(Closed, match="draining"):
                cohort.run(instruction("echo"))
            device.release()
            assert [len(call.result(20).results) for call in calls] == [1, 1]
            stopped.result(20)


def test_a_drain_waits_for_calls_to_those_who_move(tmp_path: Path, devices: Devices) -> None:
    with (
        start_coordinator(tmp_path / "coordinator.log", "--workers=2", "--grace=60") as coordinator,
        ThreadPoolExecutor(2) as threads,
        connect(coordinator.control) as connection,
    ):
        devices.join(coordinator.listen, 1)  # comes back only when told to by this test
        (proxy,) = cohort = connection.get_participants(1, timeout=20)
        os.kill(coordinator.status()["workers"][proxy.worker]["pid"], signal.SIGTERM)
        eventually(lambda: coordinator.status()["moving"] == 1)
        call = threads.submit(cohort.run, instruction("echo", b"late"))
        eventually(lambda: coordinator.status()["calls"] == 1)
        eventually(lambda: [worker["state"] for worker in coordinator.status()["workers"]] == ["up", "up"])
        draining = threads.submit(drain, coordinator)
        eventually(lambda: coordinator.status()["draining"])
        assert coordinator.status()["moving"] == 1
        devices.join(coordinator.listen, 1)
        assert len(call.result(20).results) == 1
        draining.result(PATIENCE)
        assert coordinator.wait() == 0, coordinator.output


def test_who_moves_is_not_missed_while_there_is_no_worker_to_move_to(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling restart of a single worker, on which somebody works for longer than others are waited for."""
    monkeypatch.setattr("manager.core.pool.RETURN_TIME", 0.1)
    with (
        Coordinator(workers=1, listen="127.0.0.1:0", log_level="critical") as coordinator,
        ThreadPoolExecutor(2) as threads,
    ):
        held, _ = devices.join(coordinator.listen, 2)
        cohort = coordinator.get_participants(2, timeout=20)
        holds = next(proxy for proxy in cohort if proxy.id == held.id)
        working = threads.submit(holds.run, instruction("hold"))
        assert held.holding.wait(20)
        (worker,) = coordinator.status().workers
        os.kill(worker.pid, signal.SIGTERM)
        eventually(lambda: coordinator.status().moving == 1)
        assert coordinator.status().workers[0].state == "draining"
        waiting = threads.submit(cohort.run, instruction("echo", b"all"))
        (moves,) = (proxy for proxy in cohort if proxy is not holds)
        with pytest.raises(CallTimeout):  # and not ParticipantLost
            moves.run(instruction("echo"), timeout=1.0)
        held.release()
        assert working.result(20)
        eventually(lambda: is_up(coordinator, 0, incarnation=2))
        devices.join(coordinator.listen, 2)
        assert len(waiting.result(20).results) == 2


def test_who_finds_no_room_is_waited_for_until_there_is_some(
    tmp_path: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places are taken, and a worker is renewed."""
    monkeypatch.setattr("manager.core.pool.RETURN_TIME", 0.1)
    with (
        Coordinator(
            workers=2,
            listen="127.0.0.1:0",
            log_level="critical",
            limits=Limits(max_per_worker=2, come_back=(0.2, 0.5)),
        ) as coordinator,
        ThreadPoolExecutor(2) as threads,
        ExitStack() as stack,
    ):
        (device,) = devices.join(coordinator.listen, 1)
        (holds,) = coordinator.get_participants(1, timeout=20)
        start_participants(stack, tmp_path / "participants.log", coordinator.listen, "p", 3)
        cohort = coordinator.get_participants(4, timeout=60)
        moves = next(proxy for proxy in cohort if proxy.worker == holds.worker and proxy is not holds)
        working = threads.submit(holds.run, instruction("hold"))
        assert device.holding.wait(20)
        os.kill(coordinator.status().workers[holds.worker].pid, signal.SIGTERM)
        eventually(lambda: coordinator.status().moving == 1)
        refused = coordinator.status().refused["max_per_worker"]
        waiting = threads.submit(moves.run, make_instruction("echo", config={"number": 1}), timeout=60)
        eventually(lambda: coordinator.status().refused["max_per_worker"] > refused + 1)
        device.release()
        assert working.result(20)
        assert waiting.result(PATIENCE).result.status == moves.id


def test_a_worker_without_a_coordinator_ends_at_the_second_signal(tmp_path: Path, devices: Devices) -> None:
    """It doesn't wait for its coordinator, which is gone, and can't say when to go."""
    with killed(
        tmp_path / "coordinator.log", "--workers=1", "--orphan-grace=600", f"--run-dir={tmp_path}/run"
    ) as coordinator:
        (device,) = devices.join(coordinator.listen, 1)
        eventually(lambda: coordinator.status()["participants"] == 1)
        (worker,) = coordinator.children()
        coordinator.send(signal.SIGKILL)
        coordinator.popen.wait()

        def gone() -> bool:
            worker.terminate()
            return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE

        eventually(gone)
        eventually(lambda: device.ended is not None)


def test_what_waits_is_lost_once_the_grace_is_over(tmp_path: Path, devices: Devices) -> None:
    with (
        start_coordinator(tmp_path / "coordinator.log", "--workers=1", "--grace=0.3") as coordinator,
        ThreadPoolExecutor(2) as threads,
        connect(coordinator.control) as connection,
    ):
        (device,) = devices.join(coordinator.listen, 1)
        cohort = connection.get_participants(1, timeout=20)
        calls: list[Future[object]] = [threads.submit(cohort.run, instruction("hold"))]
        assert device.holding.wait(20)
        calls.append(threads.submit(cohort.run, instruction("echo")))
        eventually(lambda: coordinator.status()["calls"] == 2)
        coordinator.send(signal.SIGTERM)
        assert coordinator.wait() == 0, coordinator.output
        for call in calls:
            if not isinstance(call.exception(20), CoordinatorGone):
                assert len(call.result().lost) == 1  # type: ignore[attr-defined]
        assert "does not stop by itself" not in coordinator.output
