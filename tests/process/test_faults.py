"""Processes that die or freeze: what becomes of participants, of calls, and of what they started."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from coordinator import (
    AddressInUse,
    Closed,
    Coordinator,
    CoordinatorGone,
    ParticipantProxy,
    WorkerBootError,
    connect,
)
from coordinator.workers.restarts import MAX_DEATHS
from coordinator.workers.run_dir import default_path
from manager.listen import Address
from manager.serving.folding import INLINE_SIZE
from tests.process.running import own_port, start_coordinator, start_participants
from tests.support import PATIENCE, Devices, eventually, instruction, tensors


def test_a_worker_that_is_asked_to_stop_finishes_its_work_and_is_started_again(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or others are moved, too: those who go stay away.
    monkeypatch.setattr("coordinator.workers.balance.TIME", 0.0)
    with Coordinator(workers=2, listen="127.0.0.1:0", log_level="critical") as coordinator:
        joined = devices.join(coordinator.listen, 8)
        cohort = coordinator.get_participants(8, timeout=20)
        victim = cohort[0].worker
        pid = coordinator.status().workers[victim].pid
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(cohort.run, instruction("hold"))
            assert all(device.holding.wait(20) for device in joined)
            os.kill(pid, signal.SIGTERM)
            for device in joined:
                device.release()
            assert len(call.result(20).results) == 8, "an answer was lost"
        eventually(lambda: coordinator.status().workers[victim].incarnation == 2)
        eventually(lambda: coordinator.status().workers[victim].state == "up")
        moved = {proxy.id for proxy in cohort if proxy.worker == victim}
        eventually(lambda: {device.id for device in joined if device.reconnect is not None} == moved)


@pytest.mark.timed
def test_a_worker_whose_loop_is_blocked_says_where_it_hangs_before_it_is_killed(
    devices: Devices, capfd: pytest.CaptureFixture[str]
) -> None:
    with Coordinator(
        workers=1,
        listen="127.0.0.1:0",
        liveness=1.0,
        heartbeat=0.2,
        log_level="critical",
        reducers=["tests.process.reducers:Hanging"],
    ) as coordinator:
        devices.join(coordinator.listen, 2)
        cohort = coordinator.get_participants(2, timeout=20)
        asked_at = time.monotonic()
        reduced = cohort.reduce(
            tensors({"x": np.ones(3)}), reducer="tests.process.reducers:Hanging", timeout=20
        )
        assert time.monotonic() - asked_at < 5.0, "it was not noticed, or not killed"
        assert set(reduced.lost) == set(cohort)
        eventually(lambda: coordinator.status().workers[0].incarnation == 2)
        eventually(lambda: coordinator.status().workers[0].state == "up")
    said = capfd.readouterr().err
    assert "Fatal Python error: Aborted" in said
    assert 'reducers.py", line' in said, "the stack dump does not show where it hangs"


@pytest.mark.long(15)
def test_a_worker_that_has_drained_exits_though_a_reducer_hangs_in_its_thread(
    devices: Devices, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def says(text: str) -> bool:
        said.append(capfd.readouterr().err)
        return text in "".join(said)

    with Coordinator(
        workers=1,
        listen="127.0.0.1:0",
        orphan_grace=6.0,  # also how long it may drain
        log_level="critical",
        reducers=["tests.process.reducers:Hanging"],
    ) as coordinator:
        devices.join(coordinator.listen, 1)
        cohort = coordinator.get_participants(1, timeout=20)
        pid = coordinator.status().workers[0].pid
        with ThreadPoolExecutor(1) as threads:
            large = tensors({"x": np.ones(INLINE_SIZE // 8 + 1000)})  # folded in the thread
            call = threads.submit(
                cohort.reduce, large, reducer="tests.process.reducers:Hanging", timeout=None
            )
            eventually(lambda: says("hangs"))
            os.kill(pid, signal.SIGTERM)
            assert set(call.result(40).lost) == set(cohort)
        eventually(lambda: not psutil.pid_exists(pid), timeout=40)
        eventually(lambda: coordinator.status().workers[0].incarnation == 2)
    assert says('reducers.py", line'), "it does not say where it hung"


@pytest.mark.long(10)
def test_workers_that_die_again_and_again_are_given_up_visibly(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.workers.restarts.PERIOD", 600.0)  # it may take long to start so many
    with Coordinator(workers=2, listen="127.0.0.1:0", log_level="critical") as coordinator:
        for _ in range(MAX_DEATHS + 1):
            eventually(lambda: coordinator.status().workers[0].state == "up", timeout=60)
            pid = coordinator.status().workers[0].pid
            os.kill(pid, signal.SIGKILL)
            eventually(partial(is_gone, coordinator, pid))
        eventually(lambda: coordinator.status().workers[0].state == "failed")
        devices.join(coordinator.listen, 4)
        cohort = coordinator.get_participants(4, timeout=20)
        assert {proxy.worker for proxy in cohort} == {1}, "the other one serves on"
        assert len(cohort.run(instruction("echo"), timeout=20).results) == 4


def is_gone(coordinator: Coordinator[ParticipantProxy], pid: int) -> bool:
    """The first worker was that process."""
    worker = coordinator.status().workers[0]
    return worker.state != "up" or worker.pid != pid


@pytest.mark.long(8)
def test_without_any_worker_left_the_coordinator_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator:
        while coordinator.popen.poll() is None:
            for worker in coordinator.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
            eventually(lambda: coordinator.popen.poll() is not None or coordinator.children(), timeout=60)
        assert coordinator.popen.wait() == 1
        assert "worker 0 ended (killed by SIGKILL) and is given up" in coordinator.output
        assert "Error: all workers have died too often" in coordinator.output


def test_without_any_worker_left_who_waits_in_a_script_is_told_so(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.workers.restarts.MAX_DEATHS", 0)
    with (
        Coordinator(workers=1, listen="127.0.0.1:0", log_level="critical") as coordinator,
        ThreadPoolExecutor(2) as threads,
    ):
        (device,) = devices.join(coordinator.listen, 1)
        cohort = coordinator.get_participants(1, timeout=20)
        call = threads.submit(cohort.run, instruction("hold"))
        assert device.holding.wait(20)
        waiting = threads.submit(coordinator.get_participants, 2)
        eventually(lambda: coordinator.status().waiting == 1)
        os.kill(coordinator.status().workers[0].pid, signal.SIGKILL)
        with pytest.raises(Closed, match="all workers have died too often"):
            waiting.result(20)
        assert len(call.result(20).lost) == 1
        for ask in (coordinator.get_participants, coordinator.lease):
            with pytest.raises(Closed, match="all workers have died too often"):
                ask(1)


@pytest.mark.parametrize("wanted", [False, True])
def test_workers_write_core_files_only_if_that_is_wanted(
    wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if not before[1]:
        pytest.skip("core files are forbidden here anyway")
    if wanted:
        monkeypatch.setenv("MUSTER_CORE_DUMPS", "1")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with Coordinator(workers=1, listen="127.0.0.1:0", log_level="critical") as coordinator:
            worker = psutil.Process(coordinator.status().workers[0].pid)
            assert worker.rlimit(psutil.RLIMIT_CORE) == (before[1] if wanted else 0, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_a_start_that_fails_leaves_no_run_directory() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(AddressInUse):
            Coordinator(workers=1, listen=str(listen)).start()
        assert not default_path(listen).exists()


def test_the_pool_is_evened_out_once_a_worker_is_back(tmp_path: Path) -> None:
    with ExitStack() as stack, start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        start_participants(stack, tmp_path / "participants.log", coordinator.listen, "p", 60)
        eventually(lambda: coordinator.status()["participants"] == 60, timeout=60)
        os.kill(coordinator.status()["workers"][0]["pid"], signal.SIGKILL)

        def even() -> bool:
            status = coordinator.status()
            counts = [int(worker["participants"]) for worker in status["workers"]]
            back = status["workers"][0]["incarnation"] == 2 and sum(counts) == 60
            return back and max(counts) <= 1.3 * 30

        eventually(even, timeout=60)


FROZEN = """
import sys
from coordinator import Coordinator
options = {"liveness": 2.0, "heartbeat": 0.2, "log_level": "critical"}
with Coordinator(workers=2, listen="127.0.0.1:0", control="127.0.0.1:0", **options) as c:
    print(c.listen, c.control, flush=True)
    sys.stdin.read()
"""


def test_a_coordinator_that_was_frozen_keeps_its_workers(devices: Devices) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FROZEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as script:
        try:
            assert script.stdout is not None
            assert script.stdin is not None
            listen, control = script.stdout.readline().split()
            devices.join(listen, 4)
            with connect(control) as connection:
                connection.get_participants(4, timeout=20)
                before = [worker.pid for worker in connection.status().workers]
                script.send_signal(signal.SIGSTOP)
                frozen = psutil.Process(script.pid)
                eventually(lambda: frozen.status() == psutil.STATUS_STOPPED)
                since = time.monotonic()
                eventually(lambda: time.monotonic() > since + 2.5)  # longer than the liveness time
                script.send_signal(signal.SIGCONT)
                status = connection.status()
                assert [worker.pid for worker in status.workers] == before
                assert [worker.incarnation for worker in status.workers] == [1, 1]
                assert status.participants == 4
            script.stdin.close()
            assert script.wait(20) == 0
        finally:
            script.kill()


ORPHANS = """
import sys, time
from coordinator import Coordinator
from pathlib import Path
options = {"orphan_grace": 6.0, "liveness": 10.0, "log_level": "critical", "run_dir": Path(sys.argv[1])}
with Coordinator(workers=2, listen="127.0.0.1:0", control="127.0.0.1:0", **options) as c:
    print(c.listen, c.control, flush=True)
    time.sleep(600)
"""


@pytest.mark.long(10)
def test_a_killed_coordinator_is_told_to_callers_and_not_outlived_by_workers(
    tmp_path: Path, devices: Devices
) -> None:
    arguments = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as script:
        try:
            assert script.stdout is not None
            listen, control = script.stdout.readline().split()
            workers = psutil.Process(script.pid).children()
            assert len(workers) == 2
            joined = devices.join(listen, 4)
            with connect(control) as connection, ThreadPoolExecutor(1) as threads:
                cohort = connection.get_participants(4, timeout=20)
                call = threads.submit(cohort.run, instruction("hold"))
                assert all(device.holding.wait(20) for device in joined)
                script.kill()
                with pytest.raises(CoordinatorGone):
                    call.result(20)
                for device in joined:
                    device.release()
        finally:
            script.kill()
    eventually(lambda: not any(worker.is_running() for worker in workers))
    eventually(lambda: all(device.ended is not None for device in joined))
    assert all(device.reconnect is not None for device in joined), "they were cut off, not sent elsewhere"


def test_a_second_start_is_refused_and_does_no_harm() -> None:
    with Coordinator(workers=1, listen="127.0.0.1:0", log_level="critical") as coordinator:
        with pytest.raises(RuntimeError, match="has been started before"):
            coordinator.start()
        assert coordinator.status().workers[0].state == "up"


FORGETFUL = """
from coordinator import Coordinator
coordinator = Coordinator(workers=1, listen="127.0.0.1:0", log_level="critical")
coordinator.start()
print(coordinator.status().workers[0].pid)
"""


def test_a_script_that_forgets_to_stop_leaves_nothing_running() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not psutil.pid_exists(int(done.stdout))


INTERRUPTED = """
import os, signal, threading
from coordinator import Coordinator
from tests.support import Devices, eventually, instruction
devices = Devices()
coordinator = Coordinator(
    workers=2, listen="127.0.0.1:0", log_level="critical", grace=600, liveness=10.0
)
coordinator.start()
busy, idle = devices.join(coordinator.listen, 2)
cohort = coordinator.get_participants(2, timeout=20)
(proxy,) = [proxy for proxy in cohort if proxy.id == busy.id]
threading.Thread(target=proxy.run, args=[instruction("hold")], daemon=True).start()
assert busy.holding.wait(20)

def interrupt():
    eventually(lambda: idle.reconnect)  # the stop is under way
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    coordinator.stop()  # would wait ten minutes for the device
except KeyboardInterrupt:
    print("interrupted")
devices.close()
"""


def test_a_stop_that_is_interrupted_leaves_nothing_running() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as script:
        workers: set[psutil.Process] = set()

        def has_ended() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                workers.update(psutil.Process(script.pid).children())
            return script.poll() is not None

        try:
            eventually(has_ended, 3 * PATIENCE)
        finally:
            script.kill()
        assert script.stdout is not None
        assert script.stdout.read() == "interrupted\n"
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)


@contextlib.contextmanager
def taken_port_after_a_free_one() -> Iterator[int]:
    """The free one of two neighbouring ports; somebody listens on the next."""
    for _ in range(100):
        port = own_port()
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port + 1))
            taken.listen()
            yield port
            return
    raise AssertionError("no two neighbouring ports were free")


def test_a_worker_that_cannot_start_halts_the_start_with_its_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    with (
        taken_port_after_a_free_one() as port,  # free for the first worker, taken for the second
        pytest.raises(WorkerBootError, match=r"worker 1 could not start \(exit code 3\)"),
        Coordinator(workers=2, listen=f"127.0.0.1:{port}", share_port=False),
    ):
        pass
    assert f"worker 1 can't start: can't listen on 127.0.0.1:{port + 1}" in capfd.readouterr().err
    assert not psutil.Process().children(recursive=True)
