"""Runs the command lines as real processes, and ends them whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import psutil

from coordinator import Coordinator
from coordinator.commands.view import as_dict
from coordinator.control_address import parse, target
from protos import control_pb2
from protos.control_pb2_grpc import ControlStub
from tests.support import PATIENCE, eventually

BIN = Path(sys.executable).parent


class Process:
    """A command that runs, its output going to a file."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        try:
            return self.popen.wait(3 * PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running; it says:\n{self.output}") from None

    def end(self) -> None:
        """Kills it and all that it started; for cleaning up."""
        if self.popen.poll() is None:
            for child in self.children():
                child.kill()
            self.popen.kill()
        self.popen.wait()


class RunningCoordinator(Process):
    """A ``coordinator start`` on free ports; ``listen`` and ``control`` are its addresses."""

    def __init__(self, log: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        super().__init__(self.command(options), log, environment)
        try:
            ready = eventually(self._ready, 3 * PATIENCE, f"a coordinator with {' '.join(options)}")
        except BaseException:
            self.end()
            raise
        self.listen: str = ready["listen"]
        self.control: str = ready["control"]

    def command(self, options: Sequence[str]) -> list[str]:
        addresses = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
        return [str(BIN / "coordinator"), "start", *addresses, "--log-format=json", *options]

    def records(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def refused(self, cause: str) -> int:
        """How many participants, streams or connections were, so far."""
        return int(self.status()["refused"].get(cause, 0))

    def status(self) -> dict[str, Any]:
        """What ``coordinator status --json`` shows, without a process for each look."""
        with grpc.insecure_channel(target(parse(self.control))) as channel:
            status = ControlStub(channel).GetStatus(control_pb2.StatusRequest(), timeout=PATIENCE)
        return as_dict(status)

    def _ready(self) -> dict[str, Any] | None:
        if self.popen.poll() is not None:
            raise AssertionError(f"it ended with {self.popen.returncode}:\n{self.output}")
        return next((record for record in self.records() if "control" in record), None)


def link_endpoint(run_dir: Path) -> str:
    """Where the workers of this run directory's coordinator connect."""
    recorded = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))
    (endpoint,) = {
        argument.removeprefix("--coordinator=")
        for worker in recorded["workers"]
        for argument in worker["arguments"]
        if argument.startswith("--coordinator=")
    }
    return str(endpoint)


@contextmanager
def start_coordinator(
    log: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[RunningCoordinator]:
    """Ends it with SIGTERM at the end of the block if it still runs; it must then leave nothing behind."""
    coordinator = RunningCoordinator(log, *options, environment=environment)
    workers: list[psutil.Process] = []
    try:
        yield coordinator
        if coordinator.popen.poll() is None:
            workers = coordinator.children()
            coordinator.send(signal.SIGTERM)
            assert coordinator.wait() == 0, coordinator.output
            assert not any(worker.is_running() for worker in workers)
    finally:
        coordinator.end()


def again(coordinator: RunningCoordinator) -> list[str]:
    """The options by which the next one finds its workers.

    Not its control address: nobody holds that meanwhile, so the system may give it to somebody else.
    """
    return [f"--listen={coordinator.listen}"]


def own_port() -> int:
    """A free one that the system gives to nobody by itself, so it can be left for a while."""
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port was free")


def kill(coordinator: RunningCoordinator) -> None:
    """Kills it, but not its workers."""
    coordinator.send(signal.SIGKILL)
    coordinator.popen.wait()


@contextmanager
def killed(log: Path, *options: str) -> Iterator[RunningCoordinator]:
    """A coordinator that the block must kill, and whose workers do not outlive the block for long."""
    coordinator = RunningCoordinator(log, *options)
    workers = coordinator.children()
    try:
        yield coordinator
    finally:
        coordinator.end()
        for worker in workers:
            if worker.is_running():
                worker.kill()


def is_up(coordinator: Coordinator[Any], index: int, incarnation: int) -> bool:
    """Whether this incarnation of a worker is."""
    worker = coordinator.status().workers[index]
    return (worker.state, worker.incarnation) == ("up", incarnation)


@contextmanager
def attached_script(source: str, control: str) -> Iterator[IO[bytes]]:
    """A training script in a process of its own, killed at the end of the block. Gives its output."""
    with subprocess.Popen(
        [sys.executable, "-c", source, control],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as script:
        try:
            assert script.stdout is not None
            yield script.stdout
        finally:
            script.kill()


def start_participants(stack: ExitStack, log: Path, listen: str, prefix: str, count: int) -> Process:
    """``count`` participants of tests/process/echo_app.py in a process, killed with the stack."""
    process = Process(
        [
            str(BIN / "participant"),
            "start",
            "--app=tests.process.echo_app:participants",
            f"--connect={listen}",
        ],
        log,
        {"ECHO_PREFIX": prefix, "ECHO_COUNT": str(count)},
    )
    stack.callback(process.end)
    return process


def run(
    *arguments: str, environment: dict[str, str] | None = None, patience: float = 3 * PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours to its end."""
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def command(*arguments: str, patience: float = 3 * PATIENCE) -> str:
    """The output of a command that must succeed."""
    done = run(*arguments, patience=patience)
    assert done.returncode == 0, done.stderr
    return done.stdout
