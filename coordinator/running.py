"""A coordinator while it runs: address, run directory, workers and control server, brought up and down.

The one place that knows the order of things. ``coordinator.py`` gives it its public faces.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import cast

from coordinator.control.server import ControlServer, check
from coordinator.settings import Settings
from coordinator.workers.downlink import State as LinkState
from coordinator.workers.links import Workers
from coordinator.workers.rolling import RollingRestart
from coordinator.workers.run_dir import InUseError, RunDir, State, default_path
from coordinator.workers.slot import Slot
from coordinator.workers.supervisor import ALL_GIVEN_UP, STOP_SLACK, Supervisor
from manager.core.call import OutcomeKind
from manager.core.dispatcher import Dispatcher
from manager.errors import AddressInUse, StartError
from manager.listen import Address, Reservation, hold, reserve
from manager.usage import allow_many_files, resident_bytes
from protos import control_pb2
from protos.version import VERSION

log = logging.getLogger("muster.coordinator")


class RunningCoordinator:
    """Everything of a coordinator on the running event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.listen = ""
        self._started_at = time.monotonic()
        self._reservation: Reservation | None = None
        self._run_dir: RunDir | None = None
        self._workers: Workers | None = None
        self._supervisor: Supervisor | None = None
        self._rolling: RollingRestart | None = None
        self._control: ControlServer | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stop_at = 0.0
        self.failed = asyncio.Event()
        """Set once every worker has been given up: it stops, for nothing can be served any more."""

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
        """Where the control server listens; empty if there is none."""
        return self._control.address if self._control is not None else ""

    @property
    def workers_up(self) -> int:
        return sum(worker.downlink.state is LinkState.OPEN for worker in self.workers.workers)

    @property
    def addresses(self) -> list[str]:
        """Where participants can connect: one address where the workers share it."""
        if self.settings.share_port:
            return [self.listen]
        return [worker.address for worker in self.workers.workers if worker.address]

    async def start(self) -> None:
        """Returns when all workers are up. After an error nothing is left running."""
        settings = self.settings
        allow_many_files()  # each large answer takes one for a moment, and they come in crowds
        if self._run_dir is not None:
            raise RuntimeError("this coordinator has been started before; make a new one")
        try:
            settings.security.verify()  # said once, and not by each worker
            if (warning := settings.security.warning(settings.listen)) is not None:
                log.warning(warning)
            check(settings)
            listen, earlier = self._settle_down()
            current = earlier.version == VERSION
            self.listen = str(listen)
            import_from = _import_from(settings.reducers)
            run_dir = cast(RunDir, self._run_dir)
            # Tells this life of the coordinator from others. Tags begin here, too: small ones are cheap.
            epoch = 1 + secrets.randbits(29)
            workers = self._workers = Workers(settings, run_dir, epoch)
            supervisor = self._supervisor = Supervisor(
                settings, listen, workers.endpoint, workers, run_dir, import_from
            )
            workers.on_booted, workers.on_departed = supervisor.booted, supervisor.departed
            workers.on_silent = supervisor.wedged
            rolling = self._rolling = RollingRestart(supervisor, settings.grace)
            workers.settled = lambda: not rolling.active
            supervisor.on_all_given_up = self._fail
            workers.open()
            await supervisor.start(earlier.workers)
            self._renewal = asyncio.ensure_future(rolling.renew(everybody=not current))
            if not settings.share_port:
                self.listen = self.addresses[0]
            if settings.control is not None:
                self._control = ControlServer(self)
                await self._control.start(settings.control)
        except BaseException:
            await self.stop(grace=0.0)
            raise

    def _settle_down(self) -> tuple[Address, State]:
        """Takes the run directory and the address for participants, or finds those of an earlier life.

        Returns the address, and what was recorded of that life.
        """
        settings = self.settings
        asked = settings.listen
        if settings.run_dir is not None:
            self._run_dir = _open(settings.run_dir)
        elif asked.port:
            try:
                self._run_dir = RunDir(default_path(asked), private=True)
            except InUseError:
                raise AddressInUse(str(asked)) from None
        earlier = State() if self._run_dir is None else self._run_dir.read()
        if str(asked) in (earlier.asked, earlier.listen) and any(
            worker.lives() for worker in earlier.workers
        ):
            listen = Address.parse(earlier.listen)
            if settings.share_port:  # they hold the port: nobody else can have taken it
                self._reservation = hold(listen)
        else:
            self._reservation = reserve(asked)
            listen = self._reservation.address
        if self._run_dir is None:
            self._run_dir = RunDir(default_path(listen), private=True)
        if not settings.share_port:
            listen = asked  # each worker takes a port of its own
            if self._reservation is not None:
                self._reservation.close()
        self._run_dir.serves(asked, listen)
        return listen, earlier

    def drain(self, grace: float | None = None) -> float:
        """Begins to stop, or shortens a stop under way; returns for how many seconds calls may go on."""
        now = time.monotonic()
        if self._stopping is None:
            self._stop_at = now + (self.settings.grace if grace is None else grace)
            if self._supervisor is not None:
                self._supervisor.begin_to_stop()
            self._stopping = asyncio.ensure_future(self._stop())
        elif grace is not None and now + grace < self._stop_at:
            self._stop_at = now + grace
            if self._workers is not None:
                self._workers.draining.drain_all(grace)
            if self._supervisor is not None:
                self._supervisor.shorten(grace + STOP_SLACK)
        return max(0.0, self._stop_at - now)

    @property
    def stopping(self) -> asyncio.Task[None] | None:
        """Done when everything has ended; None before it has begun to stop."""
        return self._stopping

    async def restart_workers(self) -> AsyncGenerator[Slot]:
        """Drains all workers and starts them again, one after the other; yields each once it is up.

        Raises RuntimeError if that is under way already, Closed if the coordinator stops, and WorkerBootError
        if one does not come up again.
        """
        if self._rolling is not None:
            async with contextlib.aclosing(self._rolling.all()) as restarted:
                async for slot in restarted:
                    yield slot

    async def stop(self, grace: float | None = None) -> None:
        """Lets running calls finish for at most ``grace`` seconds, then ends everything.

        If it is cancelled it doesn't wait for calls any more, but still leaves nothing running.
        """
        self.drain(grace)
        stopping = cast("asyncio.Task[None]", self._stopping)
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            self.hurry()
            await stopping
            raise

    async def _stop(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])
        if self._control is not None:
            self._control.drain()
        if self._workers is not None:
            grace = max(0.0, self._stop_at - time.monotonic())
            self._workers.draining.drain_all(grace)
            if self._supervisor is not None:
                await self._supervisor.stop(grace + STOP_SLACK)
            await self._workers.close()
        if self._control is not None:
            await self._control.stop()
        if self._reservation is not None:
            self._reservation.close()
        if self._run_dir is not None:
            # Without a supervisor the workers of an earlier life, if any, were not found yet and still run.
            earlier = () if self._supervisor is not None else self._run_dir.read().workers
            self._run_dir.close(finished=not any(worker.lives() for worker in earlier))

    def _fail(self) -> None:
        """No worker is left, and none will be: whoever waits for anything is told so."""
        self.failed.set()
        self.workers.dispatcher.failure = f"{ALL_GIVEN_UP}; start it anew once that is mended"
        self.drain(0.0)

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
            version=VERSION,
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
            moving=pool.moving,
            draining=dispatcher.draining,
            refused=self.workers.refused + (Counter() if self._control is None else self._control.closed),
            troubles=self._troubles(),
            refused_scripts=self._control.refused if self._control is not None else 0,
            link_errors=self.workers.link_errors,
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
                    refused=worker.refused,
                    heard_seconds_ago=worker.downlink.silent_for(now) if worker.address else 0.0,
                )
                for worker in self.workers.workers
            ],
        )

    def _troubles(self) -> list[str]:
        """Each once, though several processes use the same files."""
        own = self._control.troubles if self._control is not None else []
        heard = [trouble for worker in self.workers.workers for trouble in worker.heartbeat.troubles]
        return list(dict.fromkeys([*own, *heard]))

    def _state(self, index: int) -> str:
        """The state of a worker in a word for people."""
        if self._supervisor is not None and self._supervisor.slots[index].given_up:
            return "failed"
        worker = self.workers.workers[index]
        if worker.drains:
            return "draining"
        return {LinkState.AWAITED: "starting", LinkState.OPEN: "up", LinkState.GONE: "down"}[
            worker.downlink.state
        ]


def _import_from(reducers: Sequence[str]) -> list[Path]:
    """Directories in which workers find these reducers' modules. Raises StartError if one can't be had."""
    if not reducers:
        return []
    # With NumPy, which a coordinator needs for nothing else:
    from manager.reducing.reducers import check_allowed

    try:
        check_allowed(reducers)
    except ValueError as error:
        raise StartError(str(error)) from None
    packages = {path.partition(":")[0].partition(".")[0] for path in reducers}
    specs = [sys.modules[package].__spec__ for package in packages]
    files = [Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None]
    return sorted({(file.parent if file.name == "__init__.py" else file).parent for file in files})


def _open(path: Path) -> RunDir:
    """The run directory that the user has chosen."""
    try:
        return RunDir(path, private=False)
    except InUseError as error:
        raise StartError(str(error)) from None
