"""A ``coordinator start`` under measurement: started, looked at through its control port, killed, started
again.

Decides how it is known from outside what the cluster is like now (GetStatus, asked in short intervals, so
that times are known to about the interval), and that nothing of it is left behind. What happens to it, and
what the times mean, is for the benchmarks to say.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import psutil

from benchmarks.measure import Bench, Child, MeasurementError
from coordinator.control.server import CONTROL_OPTIONS
from protos import control_pb2
from protos.control_pb2_grpc import ControlStub

START_LIMIT = 60.0
"""Seconds in which all workers have to be up."""

ASK_LIMIT = 2.0
"""Seconds that one look may take."""

PAUSE = 0.005
"""Seconds between two looks."""

_QUICK = [(f"grpc.{which}_reconnect_backoff_ms", 20) for which in ("initial", "min", "max")]
"""A coordinator that is started again has to be seen at once."""

_COMMAND = [sys.executable, "-m", "coordinator", "start"]


def offered_options() -> str:
    """What ``coordinator start`` says of its options."""
    done = subprocess.run([*_COMMAND, "--help"], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


class Cluster:
    """A coordinator with its workers, on ports of its own. A context manager; up once it is entered."""

    def __init__(self, bench: Bench, workers: int, *options: object) -> None:
        self.workers = workers
        self._bench = bench
        self._directory = tempfile.TemporaryDirectory(prefix="muster-bench-")
        self.run_dir = Path(self._directory.name)
        self.listen, self.control = (f"127.0.0.1:{port}" for port in _free_ports(2))
        self._options = [
            f"--workers={workers}",
            f"--listen={self.listen}",
            f"--control={self.control}",
            f"--run-dir={self.run_dir}",
            "--log-format=json",
            *map(str, options),
        ]
        self._seen: dict[int, psutil.Process] = {}
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The coordinator's."""
        if self._child is None:
            raise MeasurementError("the coordinator isn't started")
        return self._child.pid

    def worker_pids(self) -> list[int]:
        status = self.look()
        if status is None:
            raise MeasurementError("the coordinator doesn't answer")
        return [worker.pid for worker in status.workers]

    def start(self) -> None:
        """Starts the coordinator; with the same arguments each time."""
        self._child = self._bench.start("coordinator", [*_COMMAND, *self._options])

    def kill(self) -> None:
        """SIGKILL to the coordinator alone."""
        process = psutil.Process(self.pid)
        process.kill()
        process.wait(10)

    def look(self) -> Any:
        """What GetStatus says; None if nobody answers."""
        try:
            status = self._stub.GetStatus(control_pb2.StatusRequest(), timeout=ASK_LIMIT)
        except grpc.RpcError:
            return None
        for worker in status.workers:
            if worker.pid and worker.pid not in self._seen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._seen[worker.pid] = psutil.Process(worker.pid)
        return status

    def names(self) -> list[str]:
        """The ids of all that are pooled."""
        pages = self._stub.ListParticipants(control_pb2.ListParticipantsRequest(), timeout=ASK_LIMIT)
        return [participant.id for page in pages for participant in page.participants]

    def when(
        self, what: str, reached: Callable[[Any], object], timeout: float, pause: float = PAUSE
    ) -> tuple[float, Any]:
        """Looks until it is as wanted; ``what`` says in words what that is. Returns when, and the status."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.look()
            now = time.monotonic()
            if status is not None and reached(status):
                return now, status
            if now > deadline:
                raise MeasurementError(f"not {what} after {timeout:g} s: {brief(status)}")
            time.sleep(pause)

    def wait_until_whole(self, participants: int, timeout: float, pause: float = PAUSE) -> tuple[float, Any]:
        """All workers are up and all participants pooled."""
        return self.when(
            f"whole ({participants} participants)", lambda now: is_whole(now, participants), timeout, pause
        )

    def __enter__(self) -> Self:
        self._channel = grpc.insecure_channel(self.control, options=[*CONTROL_OPTIONS, *_QUICK])
        self._stub = ControlStub(self._channel)
        try:
            self.start()
            self.wait_until_whole(0, START_LIMIT, pause=0.05)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, MeasurementError) and self._child is not None:
            error.add_note(f"the coordinator's last words:\n{self._child.last_words()}")
        self._close()

    def _close(self) -> None:
        self.look()  # to know the workers of late
        with contextlib.suppress(psutil.NoSuchProcess, MeasurementError):
            coordinator = psutil.Process(self.pid)
            self._seen.update({child.pid: child for child in coordinator.children(recursive=True)})
            coordinator.kill()
            coordinator.wait(10)
        for worker in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()  # psutil knows a process id that was given to another
        self._channel.close()
        self._directory.cleanup()


def is_whole(status: Any, participants: int) -> bool:
    return status.participants == participants and all(worker.state == "up" for worker in status.workers)


def spread(status: Any) -> list[int]:
    """Participants by worker."""
    return [worker.participants for worker in status.workers]


def brief(status: Any) -> str:
    if status is None:
        return "nobody answers"
    workers = ", ".join(f"{worker.state} with {worker.participants}" for worker in status.workers)
    return f"{status.participants} participants; workers: {workers}"


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to outgoing connections, of which there are thousands: one of them
    could take the port of a coordinator that is about to be started again."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(15_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in found:
                found.append(port)
    return found
