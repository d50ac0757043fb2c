"""Keeps a worker process in every slot: starts them, restarts them, ends them.

restarts.py decides whether and when one is started again; what is said over the links is workers.py's
business, which is told of every start and end, and tells here who has booted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coordinator.errors import WorkerBootError
from coordinator.process import WorkerProcess, describe_exit
from coordinator.restarts import MAX_WAIT, GiveUp, Restart, RestartPolicy
from coordinator.settings import Settings
from manager.cli import EXIT_COULD_NOT_START
from manager.listen import Address

log = logging.getLogger("muster.coordinator")


class Listener(Protocol):
    def starting(self, index: int, incarnation: int, pid: int) -> None: ...

    def ended(self, index: int) -> None: ...


@dataclass(eq=False)
class Slot:
    index: int
    incarnation: int = 0
    process: WorkerProcess | None = None
    booted: bool = False
    given_up: bool = False
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    restart: asyncio.TimerHandle | None = None  # what happens next: a start, or a look whether it booted


class Supervisor:
    """The worker processes of one coordinator."""

    def __init__(
        self,
        settings: Settings,
        listen: Address,
        endpoint: str,
        listener: Listener,
        import_from: Sequence[Path] = (),
    ) -> None:
        """``import_from`` is where workers find the modules of custom reducers."""
        self._settings = settings
        self._import_from = import_from
        self._listen = listen
        self._endpoint = endpoint
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._all_booted: asyncio.Future[None] = self._loop.create_future()
        self._exited = asyncio.Event()
        self.slots = [Slot(index) for index in range(settings.workers)]

    async def start(self) -> None:
        """Spawns all workers; returns when each has booted. Raises WorkerBootError if one can't."""
        for slot in self.slots:
            self._spawn(slot)
        try:
            await asyncio.wait_for(self._all_booted, self._settings.boot_timeout)
        except TimeoutError:
            late = ", ".join(str(slot.index) for slot in self.slots if not slot.booted)
            raise WorkerBootError(
                f"worker {late} said nothing within {self._settings.boot_timeout:g} s of its start"
            ) from None

    def booted(self, index: int) -> None:
        """The worker in this slot has said hello."""
        self.slots[index].booted = True
        if not self._all_booted.done() and all(slot.booted for slot in self.slots):
            self._all_booted.set_result(None)

    def kill(self, index: int) -> None:
        process = self.slots[index].process
        if process is not None:
            process.kill()

    async def stop(self, patience: float) -> None:
        """Ends all workers. Those that have been asked to drain get ``patience`` seconds to exit.

        Then they are terminated, then killed; none is left when this returns.
        """
        self._stopping = True
        for slot in self.slots:
            if slot.restart is not None:
                slot.restart.cancel()
            if slot.process is not None and not slot.booted:
                slot.process.terminate()  # it could not be asked
        if await self._all_exited(patience):
            return
        for action, wait in ((WorkerProcess.terminate, 2.0), (WorkerProcess.kill, 10.0)):
            for slot in self.slots:
                if slot.process is not None:
                    log.warning("worker %d does not stop by itself", slot.index)
                    action(slot.process)
            if await self._all_exited(wait):
                return

    def hurry(self) -> None:
        """Makes a ``stop`` that is under way kill whatever still runs."""
        for slot in self.slots:
            self.kill(slot.index)

    async def _all_exited(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while any(slot.process is not None for slot in self.slots):
            self._exited.clear()
            try:
                await asyncio.wait_for(self._exited.wait(), deadline - time.monotonic())
            except TimeoutError:
                return False
        return True

    def _spawn(self, slot: Slot) -> None:
        slot.restart = None
        slot.booted = False
        slot.incarnation += 1
        process = WorkerProcess(self._arguments(slot), lambda code: self._on_exit(slot, process, code))
        slot.process = process
        self._listener.starting(slot.index, slot.incarnation, process.pid)

    def _respawn(self, slot: Slot) -> None:
        try:
            self._spawn(slot)
        except OSError as error:  # no memory, no processes, no files …
            log.error("worker %d can't be started: %s", slot.index, error)
            slot.restart = self._loop.call_later(MAX_WAIT, self._respawn, slot)
            return
        slot.restart = self._loop.call_later(self._settings.boot_timeout, self._check_boot, slot)

    def _check_boot(self, slot: Slot) -> None:
        slot.restart = None
        if not slot.booted:
            log.error("worker %d said nothing since it was started; it is killed", slot.index)
            self.kill(slot.index)

    def _arguments(self, slot: Slot) -> list[str]:
        settings, listen = self._settings, self._listen
        if not settings.share_port and listen.port:
            listen = Address(listen.host, listen.port + slot.index)
        arguments = [
            f"--coordinator={self._endpoint}",
            f"--index={slot.index}",
            f"--incarnation={slot.incarnation}",
            f"--listen={listen}",
            "--share-port" if settings.share_port else "--own-port",
            f"--orphan-grace={settings.orphan_grace}",
            f"--log-level={settings.log_level}",
            f"--log-format={settings.log_format}",
        ]
        if settings.pin:
            arguments.append(f"--pin={slot.index}")
        arguments += [f"--reducer={path}" for path in settings.reducers]
        arguments += [f"--import-from={path}" for path in self._import_from]
        return arguments

    def _on_exit(self, slot: Slot, process: WorkerProcess, code: int) -> None:
        process.join()
        slot.process = None
        if slot.restart is not None:
            slot.restart.cancel()
        self._exited.set()
        self._listener.ended(slot.index)
        if self._stopping:
            return
        if not self._all_booted.done():
            text = f"worker {slot.index} could not start ({describe_exit(code)})"
            if code == EXIT_COULD_NOT_START:
                text += "; its own message is above"
            self._all_booted.set_exception(WorkerBootError(text))
        elif code == 0 and slot.booted:
            log.info("worker %d has drained; it is started again", slot.index)  # somebody asked it to
            self._respawn(slot)
        else:
            self._restart(slot, code, time.monotonic() - process.started_at)

    def _restart(self, slot: Slot, code: int, lived: float) -> None:
        decision = slot.policy.died(booted=slot.booted, lived=lived, now=time.monotonic())
        match decision:
            case Restart(delay):
                log.warning(
                    "worker %d ended (%s); it is started again in %.1f s",
                    slot.index,
                    describe_exit(code),
                    delay,
                )
                slot.restart = self._loop.call_later(delay, self._respawn, slot)
            case GiveUp(reason):
                slot.given_up = True
                log.error("worker %d ended (%s) and is given up: %s", slot.index, describe_exit(code), reason)
