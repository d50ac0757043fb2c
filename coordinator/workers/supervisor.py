"""Keeps a worker process in every slot: adopts or starts them, restarts them, ends them.

restarts.py decides whether and when one is started again, rolling.py restarts those that live; what is said
over the links is links.py's business, which is told of every start and end, and tells here who has booted.
Who is in which slot is recorded in the run directory at every start, so that another life of the coordinator
finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from coordinator.errors import WorkerBootError
from coordinator.settings import Settings
from coordinator.workers.patience import LOOK, Patience
from coordinator.workers.process import (
    KILL,
    AdoptedProcess,
    SpawnedProcess,
    WorkerProcess,
    arguments_of,
    describe_exit,
)
from coordinator.workers.restarts import MAX_WAIT, GiveUp, Restart, RestartPolicy
from coordinator.workers.run_dir import Recorded, RunDir
from coordinator.workers.slot import Slot
from manager.cli import EXIT_COULD_NOT_START
from manager.listen import Address
from manager.liveness import AWAY_TIME, LATE
from manager.timeouts import EXIT_TIMEOUT, GOODBYE_TIMEOUT, OVERTIME

log = logging.getLogger("muster.coordinator")


ADOPTION_TIME = 3.0
"""Seconds in which a worker that is adopted must say hello (or the liveness time, if that is longer)."""

ABORT_TIME = 0.5
"""Seconds that a wedged worker gets to write down where it hangs, before it is killed."""

STOP_SLACK = OVERTIME + EXIT_TIMEOUT + 1.0
"""Seconds beyond the grace period after which a worker that should drain is killed: until then it may fold in
large answers that came in time, and say where it hangs."""

EXIT_TIME = GOODBYE_TIMEOUT + EXIT_TIMEOUT + 2.0
"""Seconds after its goodbye after which a worker that has drained is killed."""

ALL_GIVEN_UP = "all workers have died too often and were given up; why is in the lines above"


class Listener(Protocol):
    def adopting(self, index: int, incarnation: int, pid: int) -> None: ...

    def starting(self, index: int, incarnation: int, pid: int) -> None: ...

    def ended(self, index: int) -> None: ...

    def drain(self, index: int, grace: float) -> bool:
        """Asks a worker over its link to drain; False if it has none."""
        ...


class Supervisor:
    """The worker processes of one coordinator."""

    def __init__(
        self,
        settings: Settings,
        listen: Address,
        endpoint: str,
        listener: Listener,
        run_dir: RunDir,
        import_from: Sequence[Path] = (),
    ) -> None:
        """``import_from`` is where workers find the modules of custom reducers."""
        self._run_dir = run_dir
        self._settings = settings
        self._import_from = import_from
        self._listen = listen
        self._endpoint = endpoint
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.stopping = False
        """Whether nothing is started any more."""
        self._patience = Patience(0.0, 0.0)  # of a stop
        self._all_booted: asyncio.Future[None] = self._loop.create_future()
        self._changed = asyncio.Event()
        self.on_all_given_up: Callable[[], None] = lambda: None
        self._dismissed: list[WorkerProcess] = []  # of an earlier life, and not needed
        self.slots = [Slot(index) for index in range(settings.workers)]

    async def start(self, earlier: Sequence[Recorded] = ()) -> None:
        """Adopts the workers of an ``earlier`` life that still run, and spawns the others.

        Returns when those that were adopted, or else all, have booted: participants that are there needn't
        wait for a missing worker. Raises WorkerBootError if nobody was adopted and one can't boot.
        """
        by_index = {recorded.index: recorded for recorded in earlier}
        for slot in self.slots:
            recorded = by_index.pop(slot.index, None)
            slot.incarnation = recorded.incarnation if recorded is not None else 0
            if recorded is not None:
                self._adopt(slot, recorded)
        self._record()  # once all are known: until then the earlier record is the better one
        for recorded in by_index.values():  # there are fewer slots than there were
            self._dismiss(recorded)
        for slot in self.slots:
            if slot.process is None:
                self._respawn(slot) if self.adopted else self._spawn_first(slot)
        try:
            await asyncio.wait_for(self._all_booted, self._settings.boot_timeout)
        except TimeoutError:
            late = ", ".join(str(slot.index) for slot in self.adopted or self.slots if not slot.booted)
            raise WorkerBootError(
                f"worker {late} said nothing within {self._settings.boot_timeout:g} s of its start"
            ) from None

    def booted(self, index: int) -> None:
        """The worker in this slot has said hello."""
        slot = self.slots[index]
        slot.booted = True
        slot.forget_timers()
        self._changed.set()
        self._check_started()

    @property
    def adopted(self) -> list[Slot]:
        return [slot for slot in self.slots if isinstance(slot.process, AdoptedProcess)]

    def _check_started(self) -> None:
        if not self._all_booted.done() and all(slot.booted for slot in self.adopted or self.slots):
            self._all_booted.set_result(None)

    def departed(self, index: int) -> None:
        """The worker in this slot has drained, and is about to exit."""
        slot = self.slots[index]
        slot.drained = True
        self._expect_exit(slot, EXIT_TIME)

    def _expect_exit(self, slot: Slot, seconds: float) -> None:
        """Kills its worker, of which nobody hears any more, unless it exits by itself: it may be frozen."""
        slot.forget_timers()
        self._check_after(seconds, slot, self.kill)

    def _check_after(self, seconds: float, slot: Slot, check: Callable[[Slot], None]) -> None:
        """Calls it unless the slot's timers are forgotten; later if this process was stopped meanwhile."""
        due = self._loop.time() + seconds

        def fire() -> None:
            if self._loop.time() - due > LATE:  # what was said meanwhile hasn't been read yet
                slot.check = self._loop.call_later(AWAY_TIME, check, slot)
            else:
                check(slot)

        slot.check = self._loop.call_later(seconds, fire)

    def wedged(self, index: int) -> None:
        """The worker in this slot is silent: it is killed, once it has said where it hangs."""
        slot = self.slots[index]
        process = slot.process
        if process is not None:
            process.send_signal(signal.SIGABRT)
            # While it lives, the system goes on to give it a share of the new connections.
            self._loop.call_later(ABORT_TIME, process.send_signal, KILL)

    def outdated(self, slot: Slot) -> bool:
        """Whether its worker runs with other settings than these."""
        return slot.arguments != self._arguments(slot)

    def lets_others_in(self, slot: Slot) -> bool:
        """Whether its worker goes by other rules of who may take part, and of what others may hear."""
        return not set(self._settings.security.arguments()) <= set(slot.arguments)

    def renew(self, slot: Slot, grace: float) -> None:
        """Asks the worker of this slot to make room for the next; starts that if the slot was given up."""
        if slot.given_up:
            slot.given_up, slot.policy = False, RestartPolicy()
            self._respawn(slot)
        elif slot.process is not None and not self._listener.drain(slot.index, grace):
            slot.process.send_signal(signal.SIGTERM)

    async def changed(self, timeout: float) -> None:
        """Returns when something has booted, ended or been given up, or after so many seconds."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    def begin_to_stop(self) -> None:
        """Starts nothing from now on; ``stop`` is to follow."""
        self.stopping = True
        self._changed.set()

    async def stop(self, patience: float) -> None:
        """Ends all workers. Those that have been asked to drain get ``patience`` seconds to exit.

        Then they are terminated, then killed; none is left when this returns.
        """
        self.begin_to_stop()
        for slot in self.slots:
            if slot.process is not None and not slot.booted:
                slot.process.send_signal(signal.SIGTERM)  # it could not be asked
                self._expect_exit(slot, STOP_SLACK)
            elif not slot.drained:
                slot.forget_timers()
        if await self._all_exited_within(patience):
            return
        for number, wait in ((signal.SIGTERM, 2.0), (KILL, 10.0)):
            for process in self._running:
                log.warning("the worker with pid %d does not stop by itself", process.pid)
                process.send_signal(number)
            if await self._all_exited_within(wait):
                return

    def shorten(self, patience: float) -> None:
        """Makes a ``stop`` that is under way wait for so many seconds at most."""
        self._patience.shorten(patience, time.monotonic())
        self._changed.set()

    def hurry(self) -> None:
        """Makes a ``stop`` that is under way kill whatever still runs."""
        for process in self._running:
            process.send_signal(KILL)

    @property
    def _running(self) -> list[WorkerProcess]:
        """All that there are, dismissed ones included."""
        return [slot.process for slot in self.slots if slot.process is not None] + self._dismissed

    def kill(self, slot: Slot) -> None:
        if slot.process is not None:
            slot.process.send_signal(KILL)

    async def _all_exited_within(self, patience: float) -> bool:
        self._patience = Patience(patience, time.monotonic())
        while self._running:
            left = self._patience.left(time.monotonic())
            if left <= 0:
                return False
            await self.changed(min(left, LOOK))
        return True

    def _adopt(self, slot: Slot, recorded: Recorded) -> None:
        """Does nothing if that process isn't there any more, or can't reach this coordinator."""
        if f"--coordinator={self._endpoint}" not in recorded.arguments:
            self._dismiss(recorded)
            return
        try:
            process = AdoptedProcess(
                recorded.pid, lambda code: self._on_exit(slot, process, code), recorded.lives
            )
        except OSError:
            return
        log.info("worker %d (pid %d) is still there", slot.index, recorded.pid)
        slot.process, slot.arguments = process, recorded.arguments
        self._listener.adopting(slot.index, slot.incarnation, process.pid)
        # One that was wedged already will not say so.
        wait = max(ADOPTION_TIME, self._settings.liveness)
        self._check_after(wait, slot, self._check_boot)

    def _dismiss(self, recorded: Recorded) -> None:
        """A worker of an earlier life that nobody needs: it drains."""

        def gone(_code: int | None) -> None:
            again.cancel()
            killing.cancel()
            process.join()
            self._dismissed.remove(process)
            self._changed.set()

        try:
            process = AdoptedProcess(recorded.pid, gone, recorded.lives)
        except OSError:
            return
        log.info("worker %d (pid %d) of an earlier life is not needed", recorded.index, recorded.pid)
        self._dismissed.append(process)
        process.send_signal(signal.SIGTERM)
        # It would wait for its coordinator, which is gone (worker.py).
        again = self._loop.call_later(1.0, process.send_signal, signal.SIGTERM)
        # It may be frozen, and would swallow newcomers.
        wait = self._settings.orphan_grace + STOP_SLACK
        killing = self._loop.call_later(wait, process.send_signal, signal.SIGKILL)

    def _spawn(self, slot: Slot) -> None:
        slot.forget_timers()
        slot.booted = slot.drained = False
        slot.incarnation += 1
        slot.arguments = self._arguments(slot)
        self._record()  # so that nobody takes its incarnation for another's, should this end right now
        process = SpawnedProcess(slot.arguments, lambda code: self._on_exit(slot, process, code))
        slot.process = process
        self._listener.starting(slot.index, slot.incarnation, process.pid)
        self._record()

    def _spawn_first(self, slot: Slot) -> None:
        try:
            self._spawn(slot)
        except OSError as error:
            raise WorkerBootError(f"worker {slot.index} can't be started: {_why(error)}") from None

    def _record(self) -> None:
        try:
            self._run_dir.record(
                [
                    Recorded(s.index, s.incarnation, s.process.pid if s.process else 0, s.arguments)
                    for s in self.slots
                ]
            )
        except OSError as error:
            log.warning("can't record the workers: %s; after a crash they would not be found again", error)

    def _respawn(self, slot: Slot) -> None:
        try:
            self._spawn(slot)
        except OSError as error:  # no memory, no processes, no files …
            log.error("worker %d can't be started: %s", slot.index, _why(error))
            slot.next_start = self._loop.call_later(MAX_WAIT, self._respawn, slot)
            return
        self._check_after(self._settings.boot_timeout, slot, self._check_boot)

    def _check_boot(self, slot: Slot) -> None:
        slot.check = None
        if not slot.booted:
            since = "adopted" if isinstance(slot.process, AdoptedProcess) else "started"
            log.error("worker %d said nothing since it was %s; it is killed", slot.index, since)
            self.kill(slot)

    def _arguments(self, slot: Slot) -> tuple[str, ...]:
        return arguments_of(
            slot.index, slot.incarnation, self._settings, self._listen, self._endpoint, self._import_from
        )

    def _on_exit(self, slot: Slot, process: WorkerProcess, code: int | None) -> None:
        process.join()
        slot.process = None
        slot.forget_timers()
        self._changed.set()
        self._listener.ended(slot.index)
        if self.stopping:
            return
        adopted = isinstance(process, AdoptedProcess)
        self._check_started()
        if not self._all_booted.done() and not adopted and not self.adopted:
            text = f"worker {slot.index} could not start ({describe_exit(code)})"
            if code == EXIT_COULD_NOT_START:
                text += "; its own message is above"
            self._all_booted.set_exception(WorkerBootError(text))
        elif slot.booted and (code == 0 or slot.drained):
            log.info("worker %d has drained; it is started again", slot.index)  # somebody asked it to
            self._respawn(slot)
        else:
            self._restart(slot, code, time.monotonic() - process.started_at, booted=slot.booted or adopted)

    def _restart(self, slot: Slot, code: int | None, lived: float, *, booted: bool) -> None:
        decision = slot.policy.died(booted=booted, lived=lived, now=time.monotonic())
        match decision:
            case Restart(delay):
                log.warning(
                    "worker %d ended (%s); it is started again in %.1f s",
                    slot.index,
                    describe_exit(code),
                    delay,
                )
                slot.next_start = self._loop.call_later(delay, self._respawn, slot)
            case GiveUp(reason):
                slot.given_up = True
                self._changed.set()
                all_are = all(each.given_up for each in self.slots)
                log.error(
                    "worker %d ended (%s) and is given up: %s%s",
                    slot.index,
                    describe_exit(code),
                    reason,
                    "" if all_are else "; `coordinator restart-workers` tries it again",
                )
                if all_are:
                    if not self._all_booted.done():
                        self._all_booted.set_exception(WorkerBootError(ALL_GIVEN_UP))
                    self.on_all_given_up()


def _why(error: OSError) -> str:
    return error.strerror or str(error)
