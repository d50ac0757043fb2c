"""Decides when which worker is told to drain, and whether there are others to which its participants can go.

- A worker that has been told to end (SIGTERM) says so, and is told to drain; a rolling restart asks for it.
- If all are to go, one for whose participants instructions wait behind others stays until none do: they would
  have nowhere to go. Those that are moving may land anywhere, so what waits for them holds all.
- While no worker lets anybody in, or those that do are full, who was told to come back isn't missed.

What a worker does about it is its own business (manager/worker.py), its process that of supervisor.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from coordinator.workers.downlink import Downlink, State
from coordinator.workers.transport import LinkTransport, Worker
from manager.core.dispatcher import Dispatcher

GROUP_TIME = 0.1
"""Seconds after which a worker that has been told to end goes: a signal to the whole process group, which is
for the coordinator, too, has come by then."""


class Draining:
    """Of the workers of one coordinator."""

    def __init__(
        self,
        workers: Sequence[Worker],
        dispatcher: Dispatcher,
        transport: LinkTransport,
        orphan_grace: float,
        *,
        share_port: bool = True,
    ) -> None:
        """``orphan_grace`` is how many seconds the calls of a worker that was told to end may go on.

        Unless workers ``share_port``, who is told to reconnect comes back to the same one, or the next there.
        """
        self._workers = workers
        self._dispatcher = dispatcher
        self._transport = transport
        self._orphan_grace = orphan_grace
        self._share_port = share_port
        self._loop = asyncio.get_running_loop()
        self._until = 0.0  # of all
        self._timer: asyncio.TimerHandle | None = None

    def drain(self, worker: Worker, grace: float) -> bool:
        """Asks it to let running instructions finish, send participants away, and exit.

        Asked again it makes it shorter, if at all. False if there is no link to it.
        """
        if worker.downlink.state is not State.OPEN:
            return False
        until = time.monotonic() + grace
        worker.drain_until = until if worker.drain_until is None else min(worker.drain_until, until)
        self.look_for_room()
        self._transport.drain(worker, grace)
        return True

    def drain_all(self, grace: float) -> None:
        """Lets running calls finish, then drains all workers; after ``grace`` seconds in any case.

        Asked again it makes it shorter.
        """
        self._until = time.monotonic() + grace
        drain_already = [worker for worker in self._workers if worker.drain_until is not None]
        self._dispatcher.on_settled = self._drain_those_free
        self._dispatcher.drain()
        self._dispatcher.settle()  # what has just begun is to be known there first
        for worker in drain_already:
            self.drain(worker, grace)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(grace, self._drain_rest)
        self._drain_those_free()

    def _drain_rest(self) -> None:
        for worker in self._workers:
            if worker.drain_until is None:
                self.drain(worker, 0.0)

    def _drain_those_free(self) -> None:
        left = max(0.0, self._until - time.monotonic())
        for worker in self._workers:
            if worker.drain_until is None and not (left and self._dispatcher.queued(worker.members.values())):
                self.drain(worker, left)

    def let_go(self, worker: Worker) -> None:
        """The worker has been told to end. If all are to, it goes when they do."""
        self._loop.call_later(GROUP_TIME, self._let_go, worker, worker.downlink)

    def _let_go(self, worker: Worker, downlink: Downlink) -> None:
        if worker.downlink is downlink and worker.drain_until is None and not self._dispatcher.draining:
            self.drain(worker, self._orphan_grace)

    def greeted(self, worker: Worker, *, leaving: bool) -> None:
        """The link to it is open, or open anew. ``leaving``: it has been told to end, or drains already."""
        if worker.drain_until is not None:  # the order may be lost
            self.drain(worker, max(0.0, worker.drain_until - time.monotonic()))
        elif leaving:
            self.let_go(worker)
        self.look_for_room()

    def look_for_room(self) -> None:
        """The link to a worker has been opened or lost, or it has been told to drain."""
        room = sum(worker.capacity for worker in self._workers if worker.lets_in)
        if not self._share_port and self._any_drains:
            pool = self._dispatcher.pool
            room = min(room, max(0, len(pool) + pool.moving - 1))  # too little, whatever others have
        self._dispatcher.has_room(room)

    def tick(self) -> None:
        """Where there is too little room, others wait for as long as a worker drains, and some time more."""
        if self._any_drains:
            self.look_for_room()

    @property
    def _any_drains(self) -> bool:
        return any(worker.drains for worker in self._workers)
