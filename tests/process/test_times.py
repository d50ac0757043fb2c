"""How long things take at most, as RELIABILITY.md promises. As a rule: benchmarks/recovery.py."""

from __future__ import annotations

import os
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from coordinator import CallTimeout, Coordinator, ParticipantLost, connect
from tests.process.running import again, is_up, kill, killed, start_coordinator
from tests.support import Devices, eventually, instruction

pytestmark = pytest.mark.timed

TIMEOUT = 0.2


def test_timeouts_are_kept_to_a_tenth_of_a_second(tmp_path: Path, devices: Devices) -> None:
    """Whether the participant hangs in the call itself, or in one before it."""
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2", "--grace=0.1") as coordinator:
        count = 5
        joined = devices.join(coordinator.listen, count)
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(count, timeout=20)
            for work in ("hold", "echo"):
                late = []
                for proxy in cohort:
                    began = time.monotonic()
                    with pytest.raises(CallTimeout):
                        proxy.run(instruction(work), timeout=TIMEOUT)
                    late.append(time.monotonic() - began - TIMEOUT)
                assert min(late) > -0.01
                assert statistics.median(late) < 0.1
                assert all(device.holding.is_set() for device in joined)


def test_the_pool_is_whole_two_seconds_after_the_start_of_a_new_coordinator(
    tmp_path: Path, devices: Devices
) -> None:
    with killed(tmp_path / "first.log", "--workers=2") as first:
        devices.join(first.listen, 20)
        eventually(lambda: first.status()["participants"] == 20)
        kill(first)
        began = time.monotonic()
        with start_coordinator(tmp_path / "second.log", "--workers=2", *again(first)) as second:
            eventually(lambda: second.status()["participants"] == 20)
            assert time.monotonic() - began < 2.0


def test_the_participants_of_a_killed_worker_are_lost_and_its_slot_is_filled_again(devices: Devices) -> None:
    with Coordinator(workers=2, listen="127.0.0.1:0", log_level="critical") as coordinator:
        joined = devices.join(coordinator.listen, 12)
        cohort = coordinator.get_participants(12, timeout=20)
        victim = cohort[0].worker
        doomed = {proxy for proxy in cohort if proxy.worker == victim}
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(cohort.run, instruction("hold"))
            assert all(device.holding.wait(20) for device in joined)
            os.kill(coordinator.status().workers[victim].pid, signal.SIGKILL)
            killed_at = time.monotonic()
            eventually(lambda: not any(proxy.connected for proxy in doomed))
            assert time.monotonic() - killed_at < 1.0
            eventually(lambda: is_up(coordinator, victim, incarnation=2))
            assert time.monotonic() - killed_at < 3.0
            for device in joined:
                device.release()
            outcome = call.result(20)
        assert set(outcome.lost) == doomed
        assert set(outcome.results) == set(cohort) - doomed
        with pytest.raises(ParticipantLost):
            next(iter(doomed)).run(instruction("echo"))
        devices.join(coordinator.listen, 30, prefix="later")
        eventually(lambda: coordinator.status().workers[victim].participants > 0)


def test_a_frozen_worker_is_found_and_killed_in_the_liveness_time_and_its_slot_up_three_seconds_later(
    devices: Devices,
) -> None:
    liveness = 1.0
    with Coordinator(
        workers=2, listen="127.0.0.1:0", liveness=liveness, heartbeat=0.2, log_level="critical"
    ) as coordinator:
        devices.join(coordinator.listen, 8)
        cohort = coordinator.get_participants(8, timeout=20)
        victim = cohort[0].worker
        pid = coordinator.status().workers[victim].pid
        os.kill(pid, signal.SIGSTOP)
        frozen_at = time.monotonic()
        eventually(lambda: not cohort[0].connected)
        assert 0.5 < time.monotonic() - frozen_at < 2.5
        eventually(lambda: is_up(coordinator, victim, incarnation=2))
        assert time.monotonic() - frozen_at < liveness + 3.0
        assert not psutil.pid_exists(pid)
