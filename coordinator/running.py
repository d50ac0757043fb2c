"""A coordinator while it runs: address, run directory, workers and control server, brought up and down.

The one place that knows the order of things. ``coordinator.py`` gives it its public faces.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from coordinator.control import ControlServer
from coordinator.downlink import State
from coordinator.settings import Settings
from coordinator.supervisor import Supervisor
from coordinator.workers import Workers
from manager.call import OutcomeKind
from manager.dispatcher import Dispatcher
from manager.errors import StartError
from manager.listen import Reservation, probe, reserve
from manager.reducers import check_allowed
from manager.usage import resident_bytes
from protos import control_pb2

log = logging.getLogger("muster.coordinator")


class RunningCoordinator:
    """Everything of a coordinator on the running event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.listen = ""
        self._started_at = time.monotonic()
        self._reservation: Reservation | None = None
        self._run_dir: Path | None = None
        self._lock_file: TextIO | None = None
        self._workers: Workers | None = None
        self._supervisor: Supervisor | None = None
        self._control: ControlServer | None = None

    @property
    def workers(self) -> Workers:
        if self._workers is None:
            raise RuntimeError("the coordinator isn't started")
        return self._workers

    @property
    def dispatcher(self) -> Dispatcher:
        return self.workers.dispatcher

    @property
    def control(self) -> str:
        """``host:port`` of the control server; empty if there is none."""
        return self._control.address if self._control is not None else ""

    @property
    def addresses(self) -> list[str]:
        """Where participants can connect: one address where the workers share it."""
        if self.settings.share_port:
            return [self.listen]
        return [worker.address for worker in self.workers.workers if worker.address]

    async def start(self) -> None:
        """Returns when all workers are up. After an error nothing is left running."""
        settings = self.settings
        if self._reservation is not None:
            raise RuntimeError("this coordinator has been started before; make a new one")
        try:
            self._reservation = reserve(settings.listen)
            if settings.control is not None:
                probe(settings.control)  # so that nobody waits for workers in vain
            listen = self._reservation.address
            if not settings.share_port:
                self._reservation.close()  # each worker takes a port of its own
                listen = settings.listen
            self.listen = str(listen)
            import_from = _import_from(settings.reducers)
            self._run_dir = _make_run_dir(settings.run_dir)
            self._lock_file = _lock(self._run_dir)
            # Tells this life of the coordinator from others. Tags begin here, too: small ones are cheap.
            epoch = 1 + secrets.randbits(29)
            workers = self._workers = Workers(settings, self._run_dir, epoch)
            supervisor = self._supervisor = Supervisor(
                settings, listen, workers.endpoint, workers, import_from
            )
            workers.on_booted, workers.on_silent = supervisor.booted, supervisor.kill
            workers.open()
            await supervisor.start()
            if not settings.share_port:
                self.listen = self.addresses[0]
            if settings.control is not None:
                self._control = ControlServer(self.dispatcher, self.status)
                await self._control.start(settings.control)
        except BaseException:
            await self.stop(grace=0.0)
            raise

    async def stop(self, grace: float | None = None) -> None:
        """Lets running calls finish for at most ``grace`` seconds, then ends everything.

        If it is cancelled it doesn't wait for calls any more, but still leaves nothing running.
        """
        stopping = asyncio.ensure_future(self._stop(self.settings.grace if grace is None else grace))
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            self.hurry()
            await stopping
            raise

    async def _stop(self, grace: float) -> None:
        if self._workers is not None:
            self._workers.drain(grace)
            if self._supervisor is not None:
                await self._supervisor.stop(grace + 2.0)
            await self._workers.close()
        if self._control is not None:
            await self._control.stop()
        if self._reservation is not None:
            self._reservation.close()
        if self._lock_file is not None and self._run_dir is not None:
            (self._run_dir / "link.sock").unlink(missing_ok=True)
            self._lock_file.close()
        if self._run_dir is not None and self._run_dir != self.settings.run_dir:
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def hurry(self) -> None:
        """Makes a ``stop`` that is under way wait no longer."""
        if self._supervisor is not None:
            self._supervisor.hurry()

    def status(self) -> control_pb2.Status:
        """A snapshot of what there is and what goes on."""
        now = time.monotonic()
        dispatcher = self.dispatcher
        pool, calls = dispatcher.pool, dispatcher.calls
        counters = calls.counters
        return control_pb2.Status(
            version=version("muster"),
            listen=", ".join(self.addresses),
            control=self.control,
            pid=os.getpid(),
            uptime_seconds=now - self._started_at,
            participants=len(pool),
            busy=sum(member.busy for member in pool),
            leased=pool.leased,
            waiting=pool.waiting,
            attached=self._control.attached if self._control is not None else 0,
            calls=len(calls),
            cpu_seconds=time.process_time(),
            rss_bytes=resident_bytes(),
            counters=control_pb2.Counters(
                results=counters[OutcomeKind.RESULT],
                failures=counters[OutcomeKind.FAILURE],
                lost=counters[OutcomeKind.LOST],
                timed_out=counters[OutcomeKind.TIMED_OUT],
                cancelled=counters[OutcomeKind.CANCELLED],
                late=calls.late,
            ),
            workers=[
                control_pb2.Worker(
                    index=worker.index,
                    incarnation=worker.downlink.incarnation,
                    pid=worker.pid,
                    state=self._state(worker.index),
                    address=worker.address,
                    participants=len(worker.members),
                    cpu_seconds=worker.heartbeat.cpu_seconds,
                    rss_bytes=worker.heartbeat.rss_bytes,
                    violations=worker.heartbeat.violations,
                    heard_seconds_ago=worker.downlink.silent_for(now) if worker.address else 0.0,
                )
                for worker in self.workers.workers
            ],
        )

    def _state(self, index: int) -> str:
        """The state of a worker in a word for people."""
        if self._supervisor is not None and self._supervisor.slots[index].given_up:
            return "failed"
        return {State.AWAITED: "starting", State.OPEN: "up", State.GONE: "down"}[
            self.workers.workers[index].downlink.state
        ]


def _import_from(reducers: Sequence[str]) -> list[Path]:
    """Directories in which workers find these reducers' modules. Raises StartError if one can't be had."""
    try:
        check_allowed(reducers)
    except ValueError as error:
        raise StartError(str(error)) from None
    packages = {path.partition(":")[0].partition(".")[0] for path in reducers}
    specs = [sys.modules[package].__spec__ for package in packages]
    files = [Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None]
    return sorted({(file.parent if file.name == "__init__.py" else file).parent for file in files})


def _make_run_dir(wanted: Path | None) -> Path:
    """A directory that only this user can enter, for the link's socket."""
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="muster-"))
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"can't use {wanted} as the run directory: {error.strerror or error}") from None
    return wanted


def _lock(run_dir: Path) -> TextIO:
    """Holds the directory until the file is closed: a second coordinator in it would steal the link's socket.

    Raises StartError if another coordinator has it.
    """
    try:
        file = (run_dir / "lock").open("w")
    except OSError as error:
        raise StartError(f"can't write to the run directory {run_dir}: {error.strerror or error}") from None
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StartError(f"another coordinator uses the run directory {run_dir}") from None
    return file
