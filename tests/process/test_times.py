"""How long things take at most, as RELIABILITY.md promises. As a rule: benchmarks/recovery.py."""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from coordinator import CallTimeout, Coordinator, connect
from tests.process.running import again, is_up, kill, killed, start_coordinator
from tests.support import Devices, eventually, instruction

pytestmark = pytest.mark.timed

TIMEOUT = 0.2


@pytest.mark.parametrize("work", ["hold", "echo"])
def test_timeouts_are_kept_to_a_tenth_of_a_second(tmp_path: Path, devices: Devices, work: str) -> None:
    """Whether the participant hangs in the call itself, or in one before it."""
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2", "--grace=0.1") as coordinator:
        count = 5
        joined = devices.join(coordinator.listen, count)
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(count, timeout=20)
            if work == "echo":
                assert len(cohort.run(instruction("hold"), timeout=TIMEOUT).timed_out) == count
                assert all(device.holding.is_set() for device in joined)
            late = []
            for proxy in cohort:
                began = time.monotonic()
                with pytest.raises(CallTimeout):
                    proxy.run(instruction(work), timeout=TIMEOUT)
                late.append(time.monotonic() - began - TIMEOUT)
        assert min(late) > -0.01
        assert statistics.median(late) < 0.1


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


def test_the_slot_of_a_killed_worker_is_up_again_in_three_seconds() -> None:
    with Coordinator(workers=2, listen="127.0.0.1:0", log_level="critical") as coordinator:
        os.kill(coordinator.status().workers[1].pid, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: is_up(coordinator, 1, incarnation=2))
        assert time.monotonic() - began < 3.0


def test_a_frozen_worker_is_killed_and_its_slot_up_again_three_seconds_after_the_liveness_time() -> None:
    liveness = 1.0
    with Coordinator(
        workers=2, listen="127.0.0.1:0", liveness=liveness, heartbeat=0.2, log_level="critical"
    ) as coordinator:
        os.kill(coordinator.status().workers[1].pid, signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: is_up(coordinator, 1, incarnation=2))
        assert time.monotonic() - began < liveness + 3.0
