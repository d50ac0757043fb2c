"""A coordinator that is killed and started again finds its workers, and they their participants."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from coordinator import CoordinatorGone, connect
from protos.version import VERSION
from tests.process.running import (
    BIN,
    RunningCoordinator,
    again,
    kill,
    killed,
    own_port,
    run,
    start_coordinator,
)
from tests.support import PATIENCE, Devices, eventually, instruction


def pids(coordinator: RunningCoordinator) -> list[int]:
    return [worker["pid"] for worker in coordinator.status()["workers"]]


@pytest.mark.parametrize("ports", ["--share-port", "--own-ports"])
def test_it_has_all_participants_back_and_no_stream_was_cut(
    tmp_path: Path, devices: Devices, ports: str
) -> None:
    control = f"--control=127.0.0.1:{own_port()}"
    with killed(tmp_path / "first.log", "--workers=2", ports, f"--run-dir={tmp_path}/run", control) as first:
        joined = devices.join(first.listen, 12)
        eventually(lambda: first.status()["participants"] == 12)
        before = pids(first)
        kill(first)
        with start_coordinator(
            tmp_path / "second.log",
            "--workers=2",
            ports,
            f"--run-dir={tmp_path}/run",
            control,
        ) as second:
            eventually(lambda: second.status()["participants"] == 12)
            assert second.listen == first.listen
            assert pids(second) == before
            assert [worker["incarnation"] for worker in second.status()["workers"]] == [1, 1]
            with connect(second.control) as connection:
                cohort = connection.get_participants(12, timeout=20)
                assert len(cohort.run(instruction("echo"), timeout=20).results) == 12
            assert not any(device.ended for device in joined)
    assert not (tmp_path / "run" / "state.json").exists()


def test_it_is_found_by_its_address_alone(tmp_path: Path, devices: Devices) -> None:
    with killed(tmp_path / "first.log", "--workers=1") as first:
        devices.join(first.listen, 2)
        eventually(lambda: first.status()["participants"] == 2)
        kill(first)
        with start_coordinator(tmp_path / "second.log", "--workers=1", *again(first)) as second:
            eventually(lambda: second.status()["participants"] == 2)


def test_only_missing_workers_are_started(tmp_path: Path, devices: Devices) -> None:
    with killed(tmp_path / "first.log", "--workers=3") as first:
        devices.join(first.listen, 12)
        eventually(lambda: first.status()["participants"] == 12)
        before = pids(first)
        kill(first)
        os.kill(before[1], signal.SIGKILL)
        with start_coordinator(tmp_path / "second.log", "--workers=3", *again(first)) as second:
            eventually(lambda: [w["incarnation"] for w in second.status()["workers"]] == [1, 2, 1])
            after = pids(second)
            assert (after[0], after[2]) == (before[0], before[2])
            assert after[1] != before[1]


@pytest.mark.long(7)
def test_a_worker_that_is_wedged_by_then_is_replaced(tmp_path: Path, devices: Devices) -> None:
    with killed(tmp_path / "first.log", "--workers=2") as first:
        before = pids(first)
        kill(first)
        os.kill(before[0], signal.SIGSTOP)
        with start_coordinator(tmp_path / "second.log", "--workers=2", *again(first)) as second:
            eventually(lambda: [w["incarnation"] for w in second.status()["workers"]] == [2, 1])
            eventually(lambda: not psutil.pid_exists(before[0]))


def test_with_fewer_workers_the_others_send_their_participants_on(tmp_path: Path, devices: Devices) -> None:
    with killed(tmp_path / "first.log", "--workers=2") as first:
        joined = devices.join(first.listen, 12)
        eventually(lambda: first.status()["participants"] == 12)
        before = pids(first)
        kill(first)
        with start_coordinator(tmp_path / "second.log", "--workers=1", *again(first)) as second:
            eventually(lambda: not psutil.pid_exists(before[1]))
            stayed = second.status()["participants"]
            eventually(lambda: sum(device.reconnect is not None for device in joined) == 12 - stayed)
            assert pids(second) == before[:1]


def test_those_others_do_not_outlive_it(tmp_path: Path) -> None:
    with killed(tmp_path / "first.log", "--workers=2") as first:
        before = pids(first)
        kill(first)
        os.kill(before[1], signal.SIGSTOP)  # it can't drain
        with start_coordinator(tmp_path / "second.log", "--workers=1", *again(first)) as second:
            assert "of an earlier life is not needed" in second.output
            second.send(signal.SIGTERM)
            eventually(lambda: "stopping" in second.output)
            second.send(signal.SIGTERM)  # doesn't wait
            second.wait()
            eventually(lambda: not psutil.pid_exists(before[1]))


def test_workers_with_other_settings_are_renewed_one_by_one(tmp_path: Path, devices: Devices) -> None:
    with killed(tmp_path / "first.log", "--workers=2") as first:
        devices.join(first.listen, 6)
        before = pids(first)
        kill(first)
        with start_coordinator(
            tmp_path / "second.log", "--workers=2", *again(first), "--log-level=debug"
        ) as second:
            eventually(lambda: [w["incarnation"] for w in second.status()["workers"]] == [2, 2], 3 * PATIENCE)
            eventually(lambda: [w["state"] for w in second.status()["workers"]] == ["up", "up"])
            assert not set(pids(second)) & set(before)


def test_workers_of_another_version_are_renewed(tmp_path: Path, devices: Devices) -> None:
    state = tmp_path / "run" / "state.json"
    with killed(tmp_path / "first.log", "--workers=1", f"--run-dir={tmp_path}/run") as first:
        before = pids(first)
        kill(first)
        state.write_text(state.read_text().replace(f'"version": "{VERSION}"', '"version": "0.0.1"'))
        with start_coordinator(
            tmp_path / "second.log", "--workers=1", *again(first), f"--run-dir={tmp_path}/run"
        ) as second:
            eventually(lambda: [w["incarnation"] for w in second.status()["workers"]] == [2], 3 * PATIENCE)
            eventually(lambda: [w["state"] for w in second.status()["workers"]] == ["up"])
            assert pids(second) != before
            assert "worker 0 is of another version; it is started again" in second.output


def test_a_call_that_ran_is_told_to_its_script_and_its_answer_disturbs_nobody(
    tmp_path: Path, devices: Devices
) -> None:
    with killed(tmp_path / "first.log", "--workers=2") as first:
        joined = devices.join(first.listen, 4)
        with connect(first.control) as connection, ThreadPoolExecutor(1) as threads:
            cohort = connection.get_participants(4, timeout=20)
            call = threads.submit(cohort.run, instruction("hold"))
            assert all(device.holding.wait(20) for device in joined)
            kill(first)
            with pytest.raises(CoordinatorGone, match=r"attach again with coordinator\.connect"):
                call.result(20)
            with pytest.raises(CoordinatorGone):
                cohort.run(instruction("echo"))
        with start_coordinator(tmp_path / "second.log", "--workers=2", *again(first)) as second:
            eventually(lambda: second.status()["participants"] == 4)
            assert second.status()["busy"] == 4
            assert all(device.cancelled.wait(20) for device in joined), "nobody told them to stop"
            with connect(second.control) as connection, ThreadPoolExecutor(1) as threads:
                cohort = connection.get_participants(4, timeout=20)
                call = threads.submit(cohort.run, instruction("echo", b"new"), 20.0)
                eventually(lambda: second.status()["calls"] == 1)
                for device in joined:
                    device.release()
                outcome = call.result(20)
                assert {message.result.payload for message in outcome.results.values()} == {b"new"}
                assert len(outcome.results) == 4
            assert second.status()["counters"]["late"] == 4


EMBEDDED = """
import sys
from pathlib import Path
from coordinator import Coordinator
from tests.support import instruction
options = {"run_dir": Path(sys.argv[2]), "log_level": "critical", "liveness": 10.0}
with Coordinator(workers=1, listen=sys.argv[1], **options) as coordinator:
    print(coordinator.listen, coordinator.status().workers[0].pid, flush=True)
    cohort = coordinator.get_participants(2, timeout=20)
    print(len(cohort.run(instruction("echo"), timeout=20).results), flush=True)
    sys.stdin.read()
"""


def test_a_script_that_runs_the_workers_itself_finds_them_too(tmp_path: Path, devices: Devices) -> None:
    def script() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", EMBEDDED, "127.0.0.1:0", str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    with script() as first:
        assert first.stdout is not None
        listen, pid = first.stdout.readline().split()
        joined = devices.join(listen, 2)
        assert first.stdout.readline() == "2\n"
        first.kill()
    with script() as second:
        assert second.stdout is not None
        assert second.stdout.readline().split() == [listen, pid]
        assert second.stdout.readline() == "2\n"
        assert not any(device.ended for device in joined)
        second.communicate("")
        assert second.returncode == 0
    eventually(lambda: not psutil.pid_exists(int(pid)))


def test_nothing_is_left_when_the_whole_group_is_killed_and_the_next_start_is_fresh(
    tmp_path: Path, devices: Devices
) -> None:
    with killed(tmp_path / "first.log", "--workers=2") as first:
        before = pids(first)
        os.killpg(first.pid, signal.SIGKILL)
        first.popen.wait()
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in before))
        with start_coordinator(tmp_path / "second.log", "--workers=2", *again(first)) as second:
            assert [worker["incarnation"] for worker in second.status()["workers"]] == [2, 2]


def test_when_the_terminal_is_gone_everything_ends_as_if_it_were_asked_to(
    tmp_path: Path, devices: Devices
) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        joined = devices.join(coordinator.listen, 3)
        eventually(lambda: coordinator.status()["participants"] == 3)
        workers = coordinator.children()
        os.killpg(coordinator.pid, signal.SIGHUP)  # what a terminal that is closed sends to all
        assert coordinator.wait() == 0, coordinator.output
        assert not any(worker.is_running() for worker in workers)
        eventually(lambda: all(device.reconnect is not None for device in joined))


IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def start_in_a_terminal(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A ``coordinator start`` whose controlling terminal this is; gives the process and our end of it."""
    ours, its = pty.openpty()
    arguments = [str(BIN / "coordinator"), "start", "--listen=127.0.0.1:0", "--control=127.0.0.1:0", *options]
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    ) as process:
        os.close(its)
        try:
            yield process, ours
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.close(ours)


def test_a_terminal_that_is_closed_leaves_nothing_behind() -> None:
    with start_in_a_terminal("--workers=2") as (process, terminal):
        seen = b""
        while b"participants connect to" not in seen:
            seen += os.read(terminal, 65536)
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        os.close(terminal)
        assert process.wait(PATIENCE) == 0
        eventually(lambda: not any(worker.is_running() for worker in workers))


def test_an_interrupt_while_workers_boot_is_no_traceback() -> None:
    with start_in_a_terminal("--workers=2") as (process, terminal):
        coordinator = psutil.Process(process.pid)
        eventually(lambda: len(coordinator.children()) == 2)
        os.write(terminal, b"\x03")
        seen = b""
        with contextlib.suppress(OSError):  # its end is closed
            while data := os.read(terminal, 65536):
                seen += data
        assert process.wait(PATIENCE) == 0, seen
        assert b"Traceback" not in seen, seen


@pytest.mark.long(11)
def test_workers_wait_for_the_next_coordinator_only_so_long(tmp_path: Path, devices: Devices) -> None:
    with killed(tmp_path / "first.log", "--workers=2", "--orphan-grace=6") as first:
        joined = devices.join(first.listen, 3)
        eventually(lambda: first.status()["participants"] == 3)
        before = pids(first)
        kill(first)
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in before))
        eventually(lambda: all(device.ended is not None for device in joined))
        assert all(device.reconnect is not None for device in joined), "they were cut off, not sent elsewhere"
        with start_coordinator(tmp_path / "second.log", "--workers=2", *again(first)) as second:
            assert second.status()["participants"] == 0


def test_while_workers_wait_another_coordinator_is_refused_their_port(tmp_path: Path) -> None:
    with killed(tmp_path / "first.log", "--workers=1", f"--run-dir={tmp_path}/run") as first:
        kill(first)
        options = ["--control=127.0.0.1:0", "--workers=1", f"--run-dir={tmp_path}/other"]
        other = run("coordinator", "start", *again(first), *options)
        assert other.returncode == 1
        assert other.stderr.startswith(f"Error: {first.listen} is in use: by another")


def test_workers_that_drain_for_a_coordinator_that_was_killed_make_room_for_new_ones(
    tmp_path: Path, devices: Devices
) -> None:
    """The calls that they wait for are gone with it."""
    options = ["--workers=1", f"--run-dir={tmp_path}/run"]
    with killed(tmp_path / "first.log", *options) as first, ThreadPoolExecutor(2) as threads:
        (device,) = devices.join(first.listen, 1)
        with connect(first.control) as connection:
            cohort = connection.get_participants(1, timeout=PATIENCE)
            call = threads.submit(cohort.run, instruction("hold"))
            assert device.holding.wait(PATIENCE)
            drain = threads.submit(run, "coordinator", "drain", "--grace=600", f"--control={first.control}")
            eventually(lambda: first.status()["draining"])
            kill(first)
            assert isinstance(call.exception(PATIENCE), CoordinatorGone)
        drain.result(3 * PATIENCE)
        with start_coordinator(tmp_path / "second.log", *again(first), *options) as second:
            eventually(lambda: [w["incarnation"] for w in second.status()["workers"]] == [2])
            eventually(lambda: [w["state"] for w in second.status()["workers"]] == ["up"])


def test_a_garbled_record_is_as_good_as_none(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(
            killed(tmp_path / "first.log", "--workers=1", f"--run-dir={tmp_path}/run")
        )
        os.killpg(first.pid, signal.SIGKILL)
        first.popen.wait()
        (tmp_path / "run" / "state.json").write_text('{"workers": [{"index": "x"')
        second = stack.enter_context(
            start_coordinator(tmp_path / "second.log", "--workers=1", f"--run-dir={tmp_path}/run")
        )
        assert second.status()["workers"][0]["state"] == "up"
