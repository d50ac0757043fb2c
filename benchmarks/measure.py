"""Starts processes, measures them from outside, and ends them all: what every benchmark here stands on.

Decides how a process is known to be ready (a JSON line on its stdout), how its cost is counted (CPU seconds
of all threads, by process id; memory is memory.py's) and where results go (benchmarks/results). What is run,
and what the figures mean, is for the benchmarks to say. Whatever happens, no process outlives its ``Bench``,
and no wait is without a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
RESULTS = HERE / "results"

Report = dict[str, Any]
"""A JSON line of a process."""


class MeasurementError(Exception):
    """A process didn't do what the measurement needs. The text says which, and the end of its stderr."""


class Child:
    """A process under measurement, which reports in JSON lines on its stdout."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        # A file, not a pipe: nobody reads it unless something goes wrong.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=HERE.parent,
            start_new_session=True,  # so that its children can be ended with it
        )
        self.pid = self._process.pid
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def report(self, timeout: float) -> Report:
        """The next JSON line that it prints, within so many seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._error(f"has said nothing for {timeout:g} s") from None
            if line is None:
                self._lines.put(None)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)  # so that the exit code is known
                raise self._error("has ended early")
            with contextlib.suppress(ValueError):
                report = json.loads(line)
                if isinstance(report, dict):
                    return report

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def finish(self, timeout: float = 15) -> Report:
        """Asks it to end (SIGTERM) and returns the last thing that it has to say."""
        self.signal(signal.SIGTERM)
        report = self.report(timeout)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"didn't end within {timeout:g} s of SIGTERM") from None
        return report

    def kill(self) -> None:
        """Ends it and all its children at once."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(10)
        self._stderr.close()

    def last_words(self) -> str:
        """The end of its stderr."""
        file = self._stderr.fileno()
        size = os.fstat(file).st_size
        # The process writes where this file's position is: it mustn't move.
        return os.pread(file, 2000, max(0, size - 2000)).decode(errors="replace").strip()

    def _error(self, what: str) -> MeasurementError:
        tail = self.last_words()
        code = self._process.poll()
        ended = "" if code is None else f" (exit code {code})"
        return MeasurementError(f"{self.name} {what}{ended}" + (f"\n{tail}" if tail else ""))


class Bench:
    """The processes of one measurement. A context manager that leaves none behind.

    After ``limit`` seconds it kills them all, and whoever waits for them gets a MeasurementError.
    """

    def __init__(self, limit: float = 120) -> None:
        self._limit = limit
        self._children: list[Child] = []

    def python(self, name: str, module: str, *options: object) -> Child:
        """Starts ``python -m module options``."""
        return self.start(name, [sys.executable, "-m", module, *map(str, options)])

    def loadgen(self, address: str, participants: int, *options: object) -> Child:
        """Starts the load generator with so many participants of the server at ``host:port``."""
        host, _, port = address.rpartition(":")
        command = [str(build_loadgen()), "--host", host, "--port", port, "--participants", str(participants)]
        child = self.start("load generator", [*command, *map(str, options)])
        child.report(timeout=60)  # from now on it hears signals; a message of 1 GiB takes a while to make
        return child

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Starts any other command that reports in JSON lines."""
        child = Child(name, command)
        self._children.append(child)
        return child

    def __enter__(self) -> Self:
        # Thousands of sockets; the processes inherit it.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._timer = threading.Timer(self._limit, self._kill_all)
        self._timer.daemon = True
        self._timer.start()
        # SIGTERM must not skip what __exit__ does.
        self._old_handler = signal.signal(signal.SIGTERM, _terminated)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._kill_all()
        signal.signal(signal.SIGTERM, self._old_handler)

    def _kill_all(self) -> None:
        for child in reversed(self._children):
            child.kill()


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds, user and system, of all threads of these processes so far."""
    try:
        times = [psutil.Process(pid).cpu_times() for pid in pids]
    except psutil.NoSuchProcess as gone:
        raise MeasurementError(f"process {gone.pid} ended while it was measured") from None
    return sum(t.user + t.system for t in times)


def counts(child: Child, timeout: float = 10) -> Report:
    """What the load generator, or a server that hears SIGUSR1, has counted so far."""
    child.signal(signal.SIGUSR1)
    return child.report(timeout)


def wait_until(
    child: Child, what: str, reached: Callable[[Report], object], timeout: float, pause: float = 0.1
) -> Report:
    """Asks for the process's counts until they are as wanted; ``what`` says in words what that is."""
    deadline = time.monotonic() + timeout
    while not reached(now := counts(child)):
        if time.monotonic() > deadline:
            raise MeasurementError(f"not {what} after {timeout:g} s: {now}")
        time.sleep(pause)
    return now


def wait_for_load(loadgen: Child, participants: int, timeout: float = 30) -> None:
    """Waits until each participant has answered once on average."""
    deadline = time.monotonic() + timeout
    while (now := counts(loadgen))["sent"] < participants:
        if now["lost"]:
            raise MeasurementError(f"participants were lost: {now['ends']}")
        if time.monotonic() > deadline:
            raise MeasurementError(f"no load after {timeout:g} s: {now}")
        time.sleep(0.05)


@dataclass(frozen=True)
class Window:
    """What happened between two moments. ``cpu`` is in seconds, by role."""

    round_trips: int
    seconds: float
    cpu: Mapping[str, float]
    others: float
    """How many cores were busy with processes that aren't measured: the noise in the figures."""

    @property
    def per_second(self) -> float:
        return self.round_trips / self.seconds

    def cpu_per_1000(self, role: str) -> float:
        return 1000 * self.cpu[role] / self.round_trips

    def as_dict(self) -> Report:
        return {
            "round_trips": self.round_trips,
            "seconds": round(self.seconds, 3),
            "round_trips_per_second": round(self.per_second, 1),
            "others_cores": round(self.others, 2),
            "cpu_seconds_per_1000": {role: round(self.cpu_per_1000(role), 5) for role in self.cpu},
        }


def observe(
    loadgen: Child,
    roles: Mapping[str, Sequence[int]],
    seconds: float,
    round_size: int = 1,
    limit: float = 60,
) -> Window:
    """Lets the load run for so many seconds and counts round trips and the CPU time of each role's processes.

    The load generator counts the round trips, so they mean the same whatever the server is. Where they come
    in rounds of ``round_size``, with a pause between, the window is made of whole rounds: it gets longer by
    up to two of them, each within ``limit`` seconds.
    """
    pids = {**roles, "load generator": [loadgen.pid]}

    def sample() -> tuple[float, Report, dict[str, float], float]:
        now = counts(loadgen)
        cpu = {role: cpu_seconds(group) for role, group in pids.items()}
        return time.perf_counter(), now, cpu, _busy_seconds()

    def end_of_a_round() -> None:
        rounds = counts(loadgen)["sent"] // round_size
        wait_until(
            loadgen,
            "a round further",
            lambda now: now["lost"] or now["sent"] // round_size > rounds,
            limit,
            pause=0.01,
        )

    end_of_a_round()
    began, before, cpu_before, busy_before = sample()
    time.sleep(seconds)
    end_of_a_round()
    ended, after, cpu_after, busy_after = sample()
    if after["lost"]:
        raise MeasurementError(f"participants were lost: {after['ends']}")
    cpu = {role: cpu_after[role] - cpu_before[role] for role in pids}
    return Window(
        round_trips=after["sent"] - before["sent"],
        seconds=ended - began,
        cpu=cpu,
        others=max(0.0, busy_after - busy_before - sum(cpu.values())) / (ended - began),
    )


def _busy_seconds() -> float:
    """CPU seconds that all cores have been busy so far, or were taken away from this machine."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def build_loadgen() -> Path:
    """Compiles the load generator if its source is newer than the program; returns the program's path."""
    source = HERE / "loadgen"
    program = BUILD / "loadgen"
    newest = max(path.stat().st_mtime for path in source.iterdir())
    if not program.exists() or program.stat().st_mtime < newest:
        BUILD.mkdir(exist_ok=True)
        # Under another name first: a program that is running can't be overwritten.
        fresh = BUILD / f"loadgen.{os.getpid()}"
        command = [
            "g++",
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-o",
            str(fresh),
            str(source / "loadgen.cpp"),
        ]
        try:
            subprocess.run(command, check=True, timeout=120)
        except FileNotFoundError:
            raise MeasurementError("the load generator is in C++: g++ is needed, and isn't there") from None
        fresh.replace(program)
    return program


def write_results(name: str, settings: Mapping[str, object], results: object) -> Path:
    """Keeps the figures as JSON, with what they were measured with."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.json"
    record = {
        "benchmark": name,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "settings": dict(settings),
        "results": results,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table: the first column on the left, the figures on the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if table.columns else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
