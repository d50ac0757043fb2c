"""Workers that live, drained and started again one after the other: on request, or because they are outdated.

Decides in which order, what is waited for, and when one that does not go is killed. The processes themselves
are supervisor.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence

from coordinator.errors import WorkerBootError
from coordinator.workers.patience import LOOK, Patience
from coordinator.workers.slot import Slot
from coordinator.workers.supervisor import STOP_SLACK, Supervisor
from manager.errors import Closed

log = logging.getLogger("muster.coordinator")


class RollingRestart:
    """Of the workers of one supervisor; one at a time."""

    def __init__(self, supervisor: Supervisor, grace: float) -> None:
        """``grace`` is how many seconds the calls of a worker may go on."""
        self._supervisor = supervisor
        self._grace = grace
        self.active = False
        """Whether workers are being restarted, one after the other."""

    async def all(self) -> AsyncGenerator[Slot]:
        """Drains each worker and starts it again, one after the other; yields each once it is up.

        One that has been given up is tried again. Raises RuntimeError if this is under way already, Closed if
        the coordinator stops, and WorkerBootError if one does not come up again.
        """
        self._check()
        if self.active:
            raise RuntimeError("the workers are being restarted already")
        log.info("all workers are restarted, one after the other")
        async with contextlib.aclosing(self._in_turn(self._supervisor.slots)) as restarted:
            async for slot in restarted:
                yield slot

    async def renew(self, *, everybody: bool) -> None:
        """Restarts the workers that were adopted and run with other settings than these, one by one.

        Those that let in who is to be kept out from now on, all at once, and without waiting for calls: those
        of the earlier life are lost anyway. ``everybody``: all that were adopted, for they are of another
        version.
        """
        supervisor = self._supervisor
        outdated = [slot for slot in supervisor.adopted if everybody or supervisor.outdated(slot)]
        for slot in outdated:
            what = "is of another version" if everybody else "runs with other settings"
            log.info("worker %d %s; it is started again", slot.index, what)
        lax = [slot for slot in outdated if supervisor.lets_others_in(slot)]
        try:
            await self._together(lax)
            async for _ in self._in_turn([slot for slot in outdated if slot not in lax]):
                pass
        except Closed:
            pass  # they all end
        except WorkerBootError as error:
            log.error("%s; those that are left go on as they are", error)

    async def _together(self, slots: Sequence[Slot]) -> None:
        self.active = True
        try:
            done = await asyncio.gather(*(self._one(slot, 0.0) for slot in slots), return_exceptions=True)
        finally:
            self.active = False
        for error in done:
            if isinstance(error, WorkerBootError):
                log.error("%s", error)
            elif isinstance(error, BaseException):
                raise error

    async def _in_turn(self, slots: Sequence[Slot]) -> AsyncGenerator[Slot]:
        self.active = True
        try:
            for slot in slots:
                await self._one(slot, self._grace)
                yield slot
        finally:
            self.active = False

    async def _one(self, slot: Slot, grace: float) -> None:
        supervisor = self._supervisor
        self._check()
        while slot.process is not None and not slot.booted:  # it couldn't be asked, and a signal would end it
            await self._look_again(slot)
        before = slot.incarnation
        supervisor.renew(slot, grace)
        patience = Patience(grace + STOP_SLACK, time.monotonic())
        while not (slot.booted and slot.incarnation > before):
            over = patience.left(time.monotonic()) <= 0
            if over and slot.incarnation == before and slot.process is not None:
                log.warning("worker %d does not stop by itself", slot.index)
                supervisor.kill(slot)
            await self._look_again(slot)

    async def _look_again(self, slot: Slot) -> None:
        """Returns when something may have changed."""
        await self._supervisor.changed(LOOK)
        self._check()
        if slot.given_up:
            raise WorkerBootError(f"worker {slot.index} does not come up again")

    def _check(self) -> None:
        if self._supervisor.stopping:
            raise Closed("the coordinator is stopping")
