"""What is known of the worker in one slot: its process, how far that is, and what is waited for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from coordinator.workers.process import WorkerProcess
from coordinator.workers.restarts import RestartPolicy


@dataclass(eq=False)
class Slot:
    index: int
    incarnation: int = 0
    process: WorkerProcess | None = None
    arguments: tuple[str, ...] = ()
    booted: bool = False
    drained: bool = False  # it has said goodbye
    given_up: bool = False
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    next_start: asyncio.TimerHandle | None = None  # while it waits to be started again
    check: asyncio.TimerHandle | None = None  # while it boots, or has said goodbye: when it is too late

    def forget_timers(self) -> None:
        for timer in (self.next_start, self.check):
            if timer is not None:
                timer.cancel()
        self.next_start = self.check = None
