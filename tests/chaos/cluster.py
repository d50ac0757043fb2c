"""The processes of a run: the coordinator, the participants' processes, the training scripts.

Each is started with the same arguments as often as it takes, and all of them, and whatever they start, bear a
mark in their environment, by which those are found at the end that should not be there any more.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.observer import Observer
from tests.chaos.proxy import FaultProxy
from tests.process.running import BIN

MARK = "MUSTER_TESTS_CHAOS_RUN"

GRACE = 5.0
"""Seconds that running calls get when the coordinator drains."""

KEEPALIVE = 2
"""Half-open connections are found in 1.5 times so many seconds. With less, a machine under load that holds a
process up for half a second would look like a network that was cut."""


class ChaosError(Exception):
    """The run can't go on. The text says why."""


@dataclass(frozen=True)
class Shape:
    workers: int = 3
    groups: int = 4
    per_group: int = 16
    scripts: int = 2

    @property
    def participants(self) -> int:
        return self.groups * self.per_group


class Cluster:
    def __init__(self, directory: Path, seed: int, shape: Shape) -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.shape = shape
        self.run_dir.mkdir(mode=0o700)
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self._seed = seed
        self._mark = secrets.token_hex(8)
        self._environment = {**os.environ, MARK: self._mark, "TMPDIR": str(self.temporary)}
        listen, control = _free_ports()
        self.listen, self.control = f"127.0.0.1:{listen}", f"127.0.0.1:{control}"
        self.proxy = FaultProxy(("127.0.0.1", listen))
        self.observer = Observer(self.control)
        self.commands, self._options = _what_it_can_do()
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.groups: list[subprocess.Popen[bytes] | None] = [None] * shape.groups
        self.scripts: list[subprocess.Popen[bytes] | None] = [None] * shape.scripts
        self.life_of: dict[int, str] = {}
        """The names of the present lives of the scripts."""
        self._lives = [0] * shape.scripts

    @property
    def adopts(self) -> bool:
        """Whether a coordinator that was killed can be started again at once."""
        return (self.run_dir / "state.json").exists()

    @property
    def keepalive(self) -> bool:
        """Whether half-open streams are found fast."""
        return any(option.startswith("--keepalive") for option in self._options)

    async def start(self) -> None:
        self._participants_connect_to = await self.proxy.start()
        self._observing = asyncio.ensure_future(self.observer.run())
        await self.start_coordinator()
        for index in range(self.shape.groups):
            self.start_group(index)

    async def start_coordinator(self) -> None:
        """Returns when it says that it is ready. Raises ChaosError if it ends instead."""
        self.coordinator = self._spawn(
            "coordinator",
            str(BIN / "coordinator"),
            "start",
            f"--workers={self.shape.workers}",
            f"--listen={self.listen}",
            f"--control={self.control}",
            f"--run-dir={self.run_dir}",
            f"--grace={GRACE}",
            "--log-format=json",
            *self._options,
        )
        process, deadline = self.coordinator, time.monotonic() + 30.0
        while self.observer.status.pid != process.pid:
            ready = await self.observer.until(lambda: self.observer.status.pid == process.pid, 0.2)
            if ready is not None or (process.poll() is None and time.monotonic() < deadline):
                continue
            raise ChaosError(
                f"coordinator start is not ready (exit code {process.poll()}):\n"
                + "\n".join(self.log("coordinator").splitlines()[-20:])
            )

    def start_group(self, index: int) -> None:
        self.groups[index] = self._spawn(
            f"participants-{index}",
            sys.executable,
            "-m",
            "tests.chaos.participants",
            f"--connect={self._participants_connect_to}",
            f"--logs={self.directory}",
            f"--first={index * self.shape.per_group}",
            f"--count={self.shape.per_group}",
        )

    def start_script(self, index: int) -> None:
        self._lives[index] += 1
        name = self.life_of[index] = f"s{index}.{self._lives[index]}"
        self.scripts[index] = self._spawn(
            f"script-{index}",
            sys.executable,
            "-m",
            "tests.chaos.script",
            f"--control={self.control}",
            f"--name={name}",
            f"--seed={self._seed}/{name}",
            f"--slots={self.shape.participants}",
            f"--journal={self.directory / f'script-{name}.jsonl'}",
        )

    def worker(self, index: int) -> int:
        """The pid of the worker in this slot, as far as is known; 0 if there is none."""
        status = self.observer.status
        pid = status.workers[index].pid if index < len(status.workers) else 0
        return pid if pid and self.is_ours(pid) else 0

    def is_ours(self, pid: int) -> bool:
        """Whether this is a living process of this run."""
        try:
            return f"{MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def processes(self) -> list[psutil.Process]:
        """All that bear the mark."""
        return [process for process in psutil.process_iter() if self.is_ours(process.pid)]

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    async def command(self, *arguments: str, timeout: float = 60.0) -> tuple[int, str]:
        """Runs a subcommand of ``coordinator``; its exit code and output."""
        process = await asyncio.create_subprocess_exec(
            str(BIN / "coordinator"),
            *arguments,
            f"--control={self.control}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), timeout)
        except TimeoutError:
            process.kill()
            await process.wait()
            return -1, f"no end after {timeout:g} s"
        return process.returncode or 0, output.decode(errors="replace")

    async def ended(self, process: subprocess.Popen[bytes], timeout: float) -> int | None:
        """Its exit code; None if it still runs after so long."""
        deadline = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        return process.poll()

    async def end(self) -> None:
        """Kills everything that is left; for cleaning up."""
        self._observing.cancel()
        await asyncio.gather(self._observing, return_exceptions=True)
        await self.proxy.stop()
        for process in self.processes():
            send(process, signal.SIGKILL)
        for popen in (self.coordinator, *self.groups, *self.scripts):
            if popen is not None:
                popen.wait()

    def _spawn(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as output:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Sends a signal to a process that may have ended; whether it was still there."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _free_ports() -> tuple[int, int]:
    """They must stay the same over restarts, so they are chosen before."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _what_it_can_do() -> tuple[set[str], list[str]]:
    """The subcommands that there are, and the options of ``start`` that this run gives if there are."""

    def help_of(*arguments: str) -> str:
        return subprocess.run(
            [str(BIN / "coordinator"), *arguments, "--help"], capture_output=True, text=True, check=True
        ).stdout

    commands = {
        words[0] for line in help_of().partition("Commands:")[2].splitlines() if (words := line.split())
    }
    options = [f"--keepalive={KEEPALIVE}"] if "--keepalive" in help_of("start") else []
    return commands, options


def exceptions_in(log: str) -> list[str]:
    """Tracebacks in a process's output, one string each."""
    found: list[str] = []
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("{"):
            with_exception = json.loads(line).get("exception") if line.endswith("}") else None
            if with_exception:
                found.append(f"{json.loads(line).get('message')}: {with_exception}")
        elif "Traceback (most recent call last)" in line:
            found.append("\n".join(lines[max(0, number - 2) : number + 40]))
    return found
