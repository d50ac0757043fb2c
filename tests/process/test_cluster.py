"""A whole cluster as a user runs it: coordinator start, participants in processes, an attached script."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator import (
    Connection,
    CoordinatorGone,
    NotEnoughParticipants,
    ParticipantProxy,
    aio,
    connect,
)
from coordinator.commands.certs import make
from protos.messages import instruction
from tests.process.running import (
    RunningCoordinator,
    attached_script,
    command,
    own_port,
    run,
    start_coordinator,
    start_participants,
)
from tests.support import Devices, eventually
from tests.support import instruction as device_instruction


def test_two_hundred_participants_on_four_workers_each_answer_every_instruction_once(tmp_path: Path) -> None:
    with ExitStack() as stack, start_coordinator(tmp_path / "coordinator.log", "--workers=4") as coordinator:
        processes = [
            start_participants(stack, tmp_path / f"{prefix}.log", coordinator.listen, prefix, 50)
            for prefix in ("a", "b", "c", "d")
        ]
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(200, timeout=60)
            assert len(cohort) == 200
            status = json.loads(
                command("coordinator", "status", "--json", f"--control={coordinator.control}")
            )
            assert status["participants"] == 200
            assert len(status["workers"]) == 4
            assert sum(worker["participants"] for worker in status["workers"]) == 200
            assert all(worker["state"] == "up" for worker in status["workers"])
            for number in range(20):
                outcome = cohort.run(instruction("echo", config={"number": number}), timeout=30)
                assert len(outcome.results) == 200, str(outcome)
                for proxy, message in outcome.results.items():
                    assert message.result.status == proxy.id
                    assert message.result.metrics["number"].int_value == number
                    assert message.result.metrics["times"].int_value == 1
            assert coordinator.status()["counters"]["results"] == 200 * 20

            table = command(
                "coordinator", "participants", f"--control={coordinator.control}", "--where=group=a"
            )
            ids = [line.split()[0] for line in table.splitlines()[1:]]
            assert ids == sorted(f"a-{number}" for number in range(50))
        for process in processes:
            process.send(signal.SIGTERM)
        assert [process.wait() for process in processes] == [0] * 4
        eventually(lambda: coordinator.status()["participants"] == 0)


def test_a_killed_participant_process_is_lost_at_once(tmp_path: Path) -> None:
    options = ["--workers=2", "--keepalive=600"]  # found without asking
    with ExitStack() as stack, start_coordinator(tmp_path / "coordinator.log", *options) as coordinator:
        process = start_participants(stack, tmp_path / "a.log", coordinator.listen, "a", 5)
        start_participants(stack, tmp_path / "b.log", coordinator.listen, "b", 5)
        with connect(coordinator.control) as connection:
            connection.get_participants(10, timeout=60)
            process.send(signal.SIGKILL)
            eventually(lambda: connection.status().participants == 5)
            assert {proxy.attributes["group"] for proxy in connection.get_participants(5)} == {"b"}


def test_several_scripts_can_be_attached_at_once(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        devices.join(coordinator.listen, 4)
        with connect(coordinator.control) as one, connect(coordinator.control) as two:
            assert len(one.get_participants(4, timeout=20)) == 4
            with one.lease(3), pytest.raises(NotEnoughParticipants):
                two.lease(2, timeout=0.2)
            with two.lease(2, timeout=20) as cohort:
                assert len(cohort.run(device_instruction("echo"), timeout=20).results) == 2
            assert coordinator.status()["attached"] == 2
        eventually(lambda: coordinator.status()["attached"] == 0)


SCRIPT = """
import sys
from coordinator import connect
from tests.support import instruction
connection = connect(sys.argv[1])
cohort = connection.lease(2, timeout=20)
print("leased", flush=True)
cohort.run(instruction("hold"))
"""


def test_what_a_script_had_is_free_as_soon_as_it_is_killed(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        joined = devices.join(coordinator.listen, 2)
        with connect(coordinator.control) as connection:
            connection.get_participants(2, timeout=20)
            with attached_script(SCRIPT, coordinator.control) as output:
                assert output.readline() == b"leased\n"
                assert all(device.holding.wait(20) for device in joined)
                assert connection.status().leased == 2
            eventually(lambda: connection.status().leased == 0)
            eventually(lambda: connection.status().calls == 0)
            assert all(device.cancelled.wait(20) for device in joined), "nobody told them to stop"
            for device in joined:
                device.release()
            with connection.lease(2, timeout=20) as cohort:
                assert len(cohort.run(device_instruction("echo"), timeout=20).results) == 2


def test_a_large_call_that_is_given_up_early_costs_its_script_nothing_else(
    tmp_path: Path, devices: Devices
) -> None:
    """The coordinator may open the instruction only later: it must be there until then."""

    async def script(coordinator: RunningCoordinator) -> None:
        async with aio.connect(coordinator.control) as connection:
            cohort = await connection.get_participants(2, timeout=20)
            coordinator.send(signal.SIGSTOP)  # it could as well be busy for a moment
            call = asyncio.ensure_future(cohort.run(device_instruction("echo", bytes(1_000_000)), timeout=20))
            await asyncio.sleep(0)
            while (writing := connection._link._writer._task) is not None:
                await writing  # then it is on its way
            call.cancel()
            await asyncio.wait([call])
            del call
            gc.collect()
            coordinator.send(signal.SIGCONT)
            outcome = await cohort.run(device_instruction("echo", b"small"), timeout=20)
            assert len(outcome.results) == 2

    with start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator:
        devices.join(coordinator.listen, 2)
        try:
            asyncio.run(script(coordinator))
        finally:
            coordinator.send(signal.SIGCONT)


def test_it_can_be_started_again_at_once_where_scripts_were_attached(
    tmp_path: Path, devices: Devices
) -> None:
    control = f"127.0.0.1:{own_port()}"
    for attempt in range(3):
        with start_coordinator(
            tmp_path / f"{attempt}.log", "--workers=1", f"--control={control}"
        ) as coordinator:
            connection = connect(control)
            coordinator.send(signal.SIGTERM)  # it closes first, so its end of the connection lingers
            assert coordinator.wait() == 0, coordinator.output
            connection.close()


def test_an_attached_script_learns_that_the_coordinator_is_gone(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator:
        devices.join(coordinator.listen, 1)
        with connect(coordinator.control) as connection:
            connection.get_participants(1, timeout=20)
            coordinator.send(signal.SIGTERM)
            with pytest.raises(CoordinatorGone, match=r"is (gone|draining).* attach again"):
                connection.get_participants(2, timeout=20)
            assert coordinator.wait() == 0
            eventually(lambda: says_gone(connection))


def says_gone(connection: Connection[ParticipantProxy]) -> bool:
    with pytest.raises(CoordinatorGone) as caught:
        connection.get_participants(1)
    return "is gone" in str(caught.value)


def test_attaching_where_nobody_is_fails_with_a_sentence() -> None:
    def says_refused() -> bool:
        with pytest.raises(CoordinatorGone, match=r"no coordinator answers at 127\.0\.0\.1:1 ") as caught:
            connect("127.0.0.1:1", timeout=0.5)
        return "(connection refused)" in str(caught.value)  # or "(no answer in time)"

    eventually(says_refused)


@pytest.mark.parametrize("timeout", [float("nan"), -1.0, "10"])
def test_a_timeout_of_attaching_that_is_none_is_refused(timeout: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="timeout must be None or seconds"):
        connect("127.0.0.1:1", timeout=timeout)


def test_attaching_waits_for_a_coordinator_that_comes_up(tmp_path: Path) -> None:
    control = f"127.0.0.1:{own_port()}"
    with ThreadPoolExecutor(1) as threads:
        attaching = threads.submit(lambda: connect(control, timeout=60))
        log = tmp_path / "coordinator.log"
        with (
            start_coordinator(log, "--workers=1", f"--control={control}"),
            attaching.result(60) as connection,
        ):
            assert connection.status().workers[0].state == "up"


def test_attaching_to_the_participants_port_says_so(tmp_path: Path) -> None:
    with (
        start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator,
        pytest.raises(CoordinatorGone, match="not a control address"),
    ):
        connect(coordinator.listen, timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_cleanly(tmp_path: Path, devices: Devices, number: signal.Signals) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2") as coordinator:
        joined = devices.join(coordinator.listen, 3)
        eventually(lambda: coordinator.status()["participants"] == 3)
        workers = coordinator.children()
        assert len(workers) == 2
        # A terminal sends Ctrl-C to the workers, too.
        os.killpg(coordinator.pid, number) if number == signal.SIGINT else coordinator.send(number)
        assert coordinator.wait() == 0
        assert not any(worker.is_running() for worker in workers)
        eventually(lambda: all(device.reconnect is not None for device in joined))
    if "Traceback" in coordinator.output:
        pytest.fail(coordinator.output)


def test_running_calls_finish_before_it_stops(tmp_path: Path, devices: Devices) -> None:
    options = ["--workers=2", "--grace=60"]
    with start_coordinator(tmp_path / "coordinator.log", *options) as coordinator:
        (device, _) = devices.join(coordinator.listen, 2)
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(2, timeout=20)
            proxy = next(proxy for proxy in cohort if proxy.id == device.id)
            with ThreadPoolExecutor(1) as threads:
                running = threads.submit(proxy.run, device_instruction("hold", b"last"))
                assert device.holding.wait(20)
                coordinator.send(signal.SIGTERM)
                eventually(lambda: "stopping" in coordinator.output)
                device.release()
                assert running.result(20).result.payload == b"last"
        assert coordinator.wait() == 0


def test_a_second_coordinator_on_the_same_port_is_refused(tmp_path: Path) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator:
        second = run("coordinator", "start", f"--listen={coordinator.listen}", "--control=127.0.0.1:0")
        assert second.returncode == 1
        assert second.stderr.startswith(f"Error: {coordinator.listen} is in use: by another")
        assert second.stderr.endswith("or take another port with --listen\n")
        assert len(second.stderr.splitlines()) == 1
        third = run("coordinator", "start", "--listen=127.0.0.1:0", f"--control={coordinator.control}")
        assert third.returncode == 1
        assert f"{coordinator.control} is in use" in third.stderr
        assert third.stderr.endswith("or take another port with --control\n")


def test_workers_that_cannot_share_a_port_take_consecutive_ones(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=2", "--own-ports") as coordinator:
        status = coordinator.status()
        addresses = {worker["address"] for worker in status["workers"]}
        assert len(addresses) == 2
        assert "spread participants over the addresses" in coordinator.output
        for number, address in enumerate(sorted(addresses)):
            devices.join(address, 2, prefix=f"port{number}")
        eventually(lambda: [worker["participants"] for worker in coordinator.status()["workers"]] == [2, 2])


def test_a_tcp_link_serves_as_well_as_ipc(tmp_path: Path, devices: Devices) -> None:
    keys = f"--link-keys={make(tmp_path / 'certs').link}"
    with start_coordinator(
        tmp_path / "coordinator.log", "--workers=2", "--link=tcp://127.0.0.1:0", keys
    ) as coordinator:
        devices.join(coordinator.listen, 4)
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(4, timeout=20)
            assert len(cohort.run(device_instruction("echo", bytes(200_000)), timeout=20).results) == 4


def test_options_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    config = tmp_path / "muster.toml"
    config.write_text("workers = 3\nlog-level = 'warning'\n")
    with start_coordinator(
        tmp_path / "coordinator.log",
        f"--config={config}",
        "--log-level=info",
        environment={"MUSTER_PIN": "1"},
    ) as coordinator:
        status = coordinator.status()
        assert len(status["workers"]) == 3
        pinned = [psutil.Process(worker["pid"]).cpu_affinity() for worker in status["workers"]]
        assert all(len(cpus or ()) == 1 for cpus in pinned)


def test_workers_import_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("manager.py", "protos.py", "logging.py"):
        (tmp_path / name).write_text("raise SystemExit('not what was meant')")
    monkeypatch.chdir(tmp_path)
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator:
        assert coordinator.status()["workers"][0]["state"] == "up"


def test_two_coordinators_do_not_share_a_run_directory(tmp_path: Path) -> None:
    option = f"--run-dir={tmp_path / 'run'}"
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1", option):
        second = run("coordinator", "start", "--listen=127.0.0.1:0", "--control=127.0.0.1:0", option)
        assert second.returncode == 1
        assert second.stderr == f"Error: another coordinator uses the run directory {tmp_path / 'run'}\n"
    with start_coordinator(tmp_path / "again.log", "--workers=1", option):
        pass
    done = run(
        "coordinator", "start", "--listen=127.0.0.1:0", "--control=127.0.0.1:0", "--run-dir=/dev/null/x"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: can't use /dev/null/x as the run directory")


def test_looking_where_nobody_is_says_what_to_do() -> None:
    for name in ("status", "participants"):
        done = run("coordinator", name, "--control=127.0.0.1:1")
        assert done.returncode == 1
        assert done.stderr == (
            "Error: no coordinator answers at 127.0.0.1:1; is `coordinator start` running?\n"
        )


def test_a_host_that_nobody_knows_is_said_to_be_unknown() -> None:
    done = run("coordinator", "status", "--control=nowhere.invalid:50050")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: no coordinator answers at nowhere.invalid:50050: the name nowhere.invalid isn't known here; "
        "is that what --control is to be?\n"
    )
    with pytest.raises(CoordinatorGone, match=r":50050 \(the name nowhere.invalid isn't known here\); is"):
        connect("nowhere.invalid:50050", timeout=2)


def test_asking_at_the_participants_port_says_so(tmp_path: Path) -> None:
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1") as coordinator:
        done = run("coordinator", "status", f"--control={coordinator.listen}")
        assert done.returncode == 1
        assert "is not a control address" in done.stderr
