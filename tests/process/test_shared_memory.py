"""The memory that processes share is freed, whoever dies when."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator import Coordinator, connect
from manager.api.proxy import ParticipantProxy
from manager.payloads.blobs import CAN_SHARE, SHARE_SIZE
from tests.process.running import attached_script, start_coordinator
from tests.support import PATIENCE, Devices, eventually, instruction

pytestmark = pytest.mark.skipif(not CAN_SHARE, reason="this platform has no memory to share")

LARGE = bytes(4 * SHARE_SIZE)

SCRIPT = """
import sys
from coordinator import connect
from tests.support import instruction
connection = connect(sys.argv[1])
cohort = connection.get_participants(3, timeout=20)
outcome = cohort.run(instruction("echo", bytes(1_000_000)), timeout=20)
assert len(outcome.results) == 3, str(outcome)
print("has them", flush=True)
cohort.run(instruction("hold", bytes(1_000_000)))
"""


def shared_memory(pids: list[int]) -> list[str]:
    """What these processes hold of it, by descriptor or mapped."""
    held: list[str] = []
    for pid in pids:
        held += Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed in this moment
                held.append(str(descriptor.readlink()))
    return [name for name in held if "memfd:muster" in name]


@pytest.mark.long(7)
def test_a_script_that_is_killed_leaves_none_behind(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        joined = devices.join(coordinator.listen, 3)
        with connect(coordinator.control) as connection:
            connection.get_participants(3, timeout=20)
        eventually(lambda: coordinator.status()["attached"] == 0)
        pids = [coordinator.pid, *(worker.pid for worker in coordinator.children())]
        before = len(shared_memory(pids))
        with attached_script(SCRIPT, coordinator.control) as output:
            assert output.readline() == b"has them\n"
            assert all(device.holding.wait(20) for device in joined)
            assert len(shared_memory(pids)) > before, "the instruction isn't shared"
        for device in joined:
            device.release()
        eventually(lambda: len(shared_memory(pids)) == before, what="memory that is given back")


FEW_FILES = f"""
import resource, sys, time
from contextlib import nullcontext
from coordinator import Coordinator, connect
from protos.messages import instruction

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, hard))
few()
with Coordinator(workers=1, listen="127.0.0.1:0", control="127.0.0.1:0", log_level="error") as coordinator:
    few() if sys.argv[1] == "attached" else None
    with connect(coordinator.control) if sys.argv[1] == "attached" else nullcontext(coordinator) as asked:
        print(coordinator.listen, flush=True)
        cohort = asked.get_participants(100, timeout=60)
        answers = cohort.stream(instruction("echo", payload=bytes({SHARE_SIZE})), timeout=60)
        with answers:
            arriving = iter(answers)
            next(arriving)
            while answers.progress.answered < 100:
                time.sleep(0.01)
            assert len(list(arriving)) == 99, str(answers)
"""


@pytest.mark.parametrize("how", ["embedded", "attached"])
def test_more_large_answers_than_files_may_be_open_by_default(devices: Devices, how: str) -> None:
    """They wait for somebody who is slow to fetch them."""
    with subprocess.Popen(
        [sys.executable, "-c", FEW_FILES, how], stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        try:
            listen = script.stdout.readline().strip()
            devices.join(listen, 100)
            assert script.wait(3 * PATIENCE) == 0
        finally:
            script.kill()


def test_results_outlive_the_worker_that_they_came_through(devices: Devices) -> None:
    with Coordinator[ParticipantProxy](workers=1, listen="127.0.0.1:0", log_level="error") as coordinator:
        devices.join(coordinator.listen, 2)
        cohort = coordinator.get_participants(2, timeout=20)
        outcome = cohort.run(instruction("echo", LARGE), timeout=20)
        (worker,) = coordinator.status().workers
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: not any(proxy.connected for proxy in cohort))
        assert [message.result.payload == LARGE for message in outcome.results.values()] == [True, True]
