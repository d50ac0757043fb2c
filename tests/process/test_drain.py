"""Drain and rolling restart: what runs finishes, participants move, and a training notices nothing."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from coordinator import (
    CallTimeout,
    Cohort,
    Coordinator,
    CoordinatorGone,
    Outcome,
    ParticipantLost,
    ParticipantProxy,
    connect,
)
from manager.core.pool import Pool
from manager.serving.folding import INLINE_SIZE
from manager.timeouts import CLOSE_TIMEOUT, GOODBYE_TIMEOUT
from protos import messages
from protos.messages import from_scalars
from protos.messages import instruction as make_instruction
from tests.process.running import (
    BIN,
    RunningCoordinator,
    command,
    killed,
    run,
    start_coordinator,
    start_participants,
)
from tests.support import PATIENCE, Device, Devices, eventually, instruction, tensors


@contextmanager
def held_call(
    coordinator: RunningCoordinator, devices: Devices
) -> Iterator[tuple[Device, Future[Outcome[ParticipantProxy]]]]:
    """A script's call, and its one participant, which holds the answer back."""
    (device,) = devices.join(coordinator.listen, 1)
    with connect(coordinator.control) as connection, ThreadPoolExecutor(1) as threads:
        cohort = connection.get_participants(1, timeout=20)
        running = threads.submit(cohort.run, instruction("hold"))
        assert device.holding.wait(20)
        yield device, running


def test_drain_lets_running_calls_finish_and_says_when_it_is_done(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        (device, other) = devices.join(coordinator.listen, 2)
        with connect(coordinator.control) as connection, ThreadPoolExecutor(3) as threads:
            cohort = connection.get_participants(2, timeout=20)
            asking = threads.submit(connection.get_participants, 3)
            eventually(lambda: coordinator.status()["waiting"] == 1)
            proxy = next(proxy for proxy in cohort if proxy.id == device.id)
            running = threads.submit(proxy.run, instruction("hold", b"last"))
            assert device.holding.wait(20)
            draining = threads.submit(
                command, "coordinator", "drain", "--grace=60", f"--control={coordinator.control}"
            )
            eventually(lambda: coordinator.status()["draining"])
            eventually(lambda: other.reconnect is not None)
            with pytest.raises(CoordinatorGone, match="is draining"):
                asking.result(20)
            with pytest.raises(CoordinatorGone, match="is draining: what runs may finish"):
                cohort.run(instruction("echo"))
            with pytest.raises(CoordinatorGone, match="is draining"):
                connection.get_participants(1)
            assert not draining.done()
            device.release()
            assert running.result(20).result.payload == b"last"
            said = draining.result(20)
        assert "1 running call has 60 s to finish" in said
        assert f"the coordinator at {coordinator.control} (pid {coordinator.pid}) has stopped" in said
        assert coordinator.wait() == 0, coordinator.output
        eventually(lambda: device.reconnect is not None)


def test_stop_does_not_wait(tmp_path: Path, devices: Devices) -> None:
    with (
        start_coordinator(tmp_path / "coordinator.log", "--workers=1", "--grace=600") as coordinator,
        held_call(coordinator, devices) as (_, running),
    ):
        command("coordinator", "stop", f"--control={coordinator.control}")
        assert coordinator.wait() == 0, coordinator.output
        with contextlib.suppress(CoordinatorGone):  # it may close before it can tell
            assert len(running.result(20).lost) == 1


@pytest.mark.long(6)
def test_what_is_being_folded_when_the_grace_is_over_is_not_lost(
    tmp_path: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDING", str(tmp_path / "folding"))
    with (
        Coordinator(
            workers=1,
            listen="127.0.0.1:0",
            log_level="critical",
            reducers=["tests.process.reducers:Slow"],
        ) as coordinator,
        ThreadPoolExecutor(1) as threads,
    ):
        devices.join(coordinator.listen, 1)
        cohort = coordinator.get_participants(1, timeout=20)
        large = tensors({"x": np.ones(INLINE_SIZE // 8 + 1000)})  # folded in a thread
        call = threads.submit(cohort.reduce, large, reducer="tests.process.reducers:Slow")
        eventually(lambda: (tmp_path / "folding").exists())
        coordinator.stop(grace=0.2)
        assert set(call.result(20).folded) == set(cohort)


@pytest.mark.parametrize("how", ["stop", "signal"])
def test_a_long_drain_can_be_shortened(tmp_path: Path, devices: Devices, how: str) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1", "--grace=0.5") as coordinator:
        with held_call(coordinator, devices) as (_, running), ThreadPoolExecutor(1) as threads:
            arguments = ["coordinator", "drain", "--grace=600", f"--control={coordinator.control}"]
            draining = threads.submit(command, *arguments)
            eventually(lambda: coordinator.status()["draining"])
            if how == "stop":
                command("coordinator", "stop", f"--control={coordinator.control}")
            else:
                coordinator.send(signal.SIGTERM)
            assert coordinator.wait() == 0, coordinator.output
            said = draining.result(20)
            assert "1 running call has 600 s to finish" in said
            assert "has stopped" in said
            with contextlib.suppress(CoordinatorGone):
                assert len(running.result(20).lost) == 1
        assert "does not stop by itself" not in coordinator.output, "it was killed, not asked"


def test_a_hang_up_that_comes_with_a_sigterm_shortens_nothing(tmp_path: Path, devices: Devices) -> None:
    """systemd sends both, if it is told to."""
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1", "--grace=600") as coordinator:
        with held_call(coordinator, devices) as (device, running):
            coordinator.send(signal.SIGTERM)
            eventually(lambda: coordinator.status()["draining"])
            coordinator.send(signal.SIGHUP)
            for _ in range(3):  # the signal has come by then, and what it leads to
                assert coordinator.status()["calls"] == 1
            device.release()
            assert len(running.result(20).results) == 1
        assert coordinator.wait() == 0, coordinator.output


def test_the_last_results_wait_for_a_coordinator_that_is_held_up(tmp_path: Path, devices: Devices) -> None:
    """For longer than one that is well would take to acknowledge them. Nothing else keeps the worker:
    its participant has left by itself."""
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1", "--grace=600") as coordinator:
        with held_call(coordinator, devices) as (device, running):
            (worker,) = coordinator.children()
            coordinator.send(signal.SIGTERM)
            eventually(lambda: coordinator.status()["workers"][0]["state"] == "draining")
            coordinator.send(signal.SIGSTOP)
            try:
                device.send(messages.result(status="done").SerializeToString())
                device.leave()
                with pytest.raises(psutil.TimeoutExpired):
                    worker.wait(CLOSE_TIMEOUT + 2 * GOODBYE_TIMEOUT)
                assert worker.status() != psutil.STATUS_ZOMBIE, "nobody could take note of its end"
            finally:
                coordinator.send(signal.SIGCONT)
            (result,) = running.result(20).results.values()
            assert result.result.status == "done"
        assert coordinator.wait() == 0, coordinator.output


def test_there_must_be_somebody_to_be_drained() -> None:
    for name in ("drain", "stop", "restart-workers"):
        done = run("coordinator", name, "--control=127.0.0.1:1")
        assert done.returncode == 1
        assert (
            done.stderr == "Error: no coordinator answers at 127.0.0.1:1; is `coordinator start` running?\n"
        )


class Training:
    """A script that calls a whole cohort round by round, and writes down how each participant ended."""

    def __init__(self, cohort: Cohort) -> None:
        self.rounds = 0
        self.kinds: Counter[str] = Counter()
        self.times: Counter[int] = Counter()
        self._cohort = cohort
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.is_set():
            self.rounds += 1
            message = make_instruction("echo", config={"number": self.rounds})
            outcome = self._cohort.run(message, timeout=30)
            self.kinds["results"] += len(outcome.results)
            self.kinds["others"] += len(self._cohort) - len(outcome.results)
            for proxy, answer in outcome.results.items():
                assert answer.result.status == proxy.id
                self.times[int(from_scalars(answer.result.metrics)["times"])] += 1

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()


def test_a_training_notices_nothing_of_a_rolling_restart(tmp_path: Path) -> None:
    with ExitStack() as stack, start_coordinator(tmp_path / "coordinator.log", "--workers=3") as coordinator:
        start_participants(stack, tmp_path / "participants.log", coordinator.listen, "p", 30)
        connection = stack.enter_context(connect(coordinator.control))
        training = Training(connection.get_participants(30, timeout=60))
        before = [worker["pid"] for worker in coordinator.status()["workers"]]
        with training.going_on():
            eventually(lambda: training.rounds > 3)
            arguments = ["coordinator", "restart-workers", f"--control={coordinator.control}"]
            with ThreadPoolExecutor(1) as threads:
                restarting = threads.submit(command, *arguments, patience=120)
                found = {30}
                while not restarting.done():
                    found.add(len(connection.get_participants(1, timeout=PATIENCE)))
            output = restarting.result()
            rounds = training.rounds
            eventually(lambda: training.rounds > rounds + 3)
        status = coordinator.status()
        assert [line.rpartition(", ")[2] for line in output.splitlines()] == ["1 of 3", "2 of 3", "3 of 3"]
        assert not set(before) & {worker["pid"] for worker in status["workers"]}
        assert [worker["incarnation"] for worker in status["workers"]] == [2, 2, 2]
        assert training.kinds == {"results": 30 * training.rounds, "others": 0}
        assert set(training.times) == {1}, "a participant was given an instruction twice"
        assert found == {30}, "who moves was missed by one who asks anew in each round"


def test_a_worker_that_is_told_to_stop_costs_a_training_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack, start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        start_participants(stack, tmp_path / "participants.log", coordinator.listen, "p", 20)
        connection = stack.enter_context(connect(coordinator.control))
        cohort = connection.lease(20, timeout=60)
        training = Training(cohort)
        with training.going_on():
            eventually(lambda: training.rounds > 3)
            os.kill(coordinator.status()["workers"][0]["pid"], signal.SIGTERM)
            eventually(lambda: coordinator.status()["workers"][0]["incarnation"] == 2, 3 * PATIENCE)
            rounds = training.rounds
            eventually(lambda: training.rounds > rounds + 3)
            assert coordinator.status()["leased"] == 20
        assert training.kinds["others"] == 0
        cohort.release()
        eventually(lambda: coordinator.status()["leased"] == 0)


def test_who_moves_while_the_coordinator_is_held_up_is_not_lost(tmp_path: Path) -> None:
    """They must not be back before the coordinator knows that they were told to go."""
    with ExitStack() as stack, start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        start_participants(stack, tmp_path / "participants.log", coordinator.listen, "p", 20)
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(20, timeout=60)
            pid = coordinator.status()["workers"][0]["pid"]
            worker = psutil.Process(pid)
            coordinator.send(signal.SIGSTOP)

            def drains() -> bool:
                worker.terminate()  # at the second signal it asks nobody
                return not listens(worker)

            eventually(drains)
            coordinator.send(signal.SIGCONT)
            outcome = cohort.run(make_instruction("echo", config={"number": 1}), timeout=20)
            assert len(outcome.results) == 20, str(outcome)


def listens(process: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("tcp"))


def test_workers_are_restarted_only_once_at_a_time(tmp_path: Path, devices: Devices) -> None:
    with (
        start_coordinator(tmp_path / "coordinator.log", "--workers=1", "--grace=60") as coordinator,
        held_call(coordinator, devices) as (device, running),
        ThreadPoolExecutor(1) as threads,
    ):
        arguments = ["coordinator", "restart-workers", f"--control={coordinator.control}"]
        first = threads.submit(run, *arguments, patience=120)
        eventually(lambda: "all workers are restarted" in coordinator.output)
        second = run(*arguments)
        assert second.returncode == 1
        assert "the workers are being restarted already" in second.stderr
        device.release()
        assert len(running.result(20).results) == 1
        assert first.result().returncode == 0


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_rolling_restart_whose_coordinator_ends_says_so(tmp_path: Path, devices: Devices, how: str) -> None:
    with (
        killed(
            tmp_path / "coordinator.log", "--workers=1", "--grace=60", f"--run-dir={tmp_path}/run"
        ) as coordinator,
        ThreadPoolExecutor(2) as threads,
    ):
        (device,) = devices.join(coordinator.listen, 1)
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(1, timeout=20)
            running = threads.submit(cohort.run, instruction("hold"))
            assert device.holding.wait(20)
            restart = threads.submit(
                run, "coordinator", "restart-workers", f"--control={coordinator.control}"
            )
            eventually(lambda: "all workers are restarted" in coordinator.output)
            if how == "killed":
                coordinator.send(signal.SIGKILL)
                why = "has ended, or can't be reached any more, when 0 of 1 workers were up again"
            else:
                coordinator.send(signal.SIGTERM)
                why = "refuses: the coordinator is stopping"
            done = restart.result()
            assert done.returncode == 1
            assert done.stderr == f"Error: the coordinator at {coordinator.control} {why}\n"
            device.release()
            running.exception(20)


def test_after_a_rolling_restart_was_interrupted_the_next_can_begin_at_once(
    tmp_path: Path, devices: Devices
) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1", "--grace=60") as coordinator:
        (device,) = devices.join(coordinator.listen, 1)
        arguments = ["coordinator", "restart-workers", f"--control={coordinator.control}"]
        with connect(coordinator.control) as connection, ThreadPoolExecutor(2) as threads:
            cohort = connection.get_participants(1, timeout=20)
            running = threads.submit(cohort.run, instruction("hold"))
            assert device.holding.wait(20)
            with subprocess.Popen([str(BIN / arguments[0]), *arguments[1:]]) as client:
                eventually(lambda: "all workers are restarted" in coordinator.output)
                client.send_signal(signal.SIGINT)
                assert client.wait(20) != 0
            second = threads.submit(run, *arguments)
            eventually(lambda: second.done() or coordinator.output.count("all workers are restarted") == 2)
            device.release()
            assert len(running.result(20).results) == 1
            assert second.result().returncode == 0, second.result().stderr
            assert "worker 0 is up again" in second.result().stdout
            (worker,) = coordinator.status()["workers"]
            assert (worker["state"], worker["incarnation"]) == ("up", 2)


def test_a_participant_that_does_not_come_back_is_lost_to_those_who_wait_for_it(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, missing = threading.Event(), Pool.missing
    monkeypatch.setattr("manager.core.pool.RETURN_TIME", 0.5)
    # Not before the rest has been looked at, however long that takes:
    monkeypatch.setattr(Pool, "missing", lambda pool, now: missing(pool, now) if over.is_set() else [])
    with Coordinator(workers=2, listen="127.0.0.1:0", log_level="critical") as coordinator:
        devices.join(coordinator.listen, 1)  # they never come back
        cohort = coordinator.get_participants(1, timeout=20)
        (proxy,) = cohort
        os.kill(coordinator.status().workers[proxy.worker].pid, signal.SIGTERM)
        eventually(lambda: coordinator.status().moving == 1)
        with pytest.raises(CallTimeout):
            proxy.run(instruction("echo"), timeout=0.2)
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(cohort.run, instruction("echo"), timeout=20)
            eventually(lambda: coordinator.status().calls == 1)
            over.set()
            assert list(call.result(20).lost) == [proxy]
        assert coordinator.status().moving == 0
        with pytest.raises(ParticipantLost):
            proxy.run(instruction("echo"))


def test_top_shows_a_running_coordinator(tmp_path: Path) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator:
        ours, its = pty.openpty()
        command_line = [str(BIN / "coordinator"), "top", f"--control={coordinator.control}"]
        with subprocess.Popen(command_line, stderr=its, stdout=its, stdin=subprocess.DEVNULL) as top:
            os.close(its)
            seen = b""
            while b"busy" not in seen:
                seen += os.read(ours, 65536)
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 0
        os.close(ours)
        done = run("coordinator", "top", f"--control={coordinator.control}")
        assert done.returncode == 2
        assert "coordinator status" in done.stderr
