"""Carries faults out, and measures how long each takes to be known and to be over.

For the audit it keeps whom each fault may have touched: everybody whose session isn't the same, on the same
worker, before and after. That is more than those it was meant for, and never less.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from tests.chaos.cluster import GRACE, Cluster
from tests.chaos.history import Disturbance
from tests.chaos.journal import Journal
from tests.chaos.observer import Session
from tests.chaos.participants import participant_name
from tests.chaos.proxy import Pipe
from tests.chaos.schedule import KINDS, Fault

PATIENCE = 40.0
"""Seconds after which what should recover counts as broken: participants wait up to 30 s between attempts."""

RETURN = 20.0
"""Seconds in which the return of participants is waited for, to measure it."""

EFFECTS = 0.5
"""Seconds after its end in which a fault may still have effects: answers that are on their way."""


@dataclass
class Measured:
    """When a fault was made, known and, if it was not for the cluster to do, repaired; and when all was well
    again. None: it was not seen."""

    kind: str
    start: float
    detected: float | None
    repaired: float
    recovered: float | None


class Injector:
    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._observer = cluster.observer
        self._dice = random.Random(f"faults {seed}")
        self._journal = Journal(cluster.directory / "faults.jsonl")
        self.made: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.disturbances: list[Disturbance] = []
        self.killed: dict[str, float] = {}
        self.measured: list[Measured] = []
        self.problems: list[str] = []
        self._hit: set[tuple[str, int]] = set()
        self._does: Mapping[str, Callable[[Fault], Coroutine[Any, Any, bool]]] = {
            "worker-kill": self._worker_dies,
            "worker-stop": self._worker_dies,
            "worker-pause": self._worker_pause,
            "worker-term": self._worker_term,
            "participants-kill": self._participants_end,
            "participants-term": self._participants_end,
            "participants-pause": self._participants_pause,
            "script-kill": self._script_kill,
            "cut-some": self._cut,
            "cut-all": self._cut,
            "freeze": self._freeze,
            "coordinator-pause": self._coordinator_pause,
            "coordinator-kill": self._coordinator_kill,
            "restart-workers": self._restart_workers,
            "workers-term": self._workers_term,
            "drain": self._drain,
        }

    async def run(self, faults: Collection[Fault]) -> None:
        """All of them at their times; returns when the last is over."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                group.create_task(self._carry_out(fault))

    def note_sessions(self, sessions: Mapping[str, Session]) -> None:
        """For whoever wants to know why a participant had no outcome."""
        self._journal.write("sessions", **{id: vars(session) for id, session in sessions.items()})

    async def _carry_out(self, fault: Fault) -> None:
        """Unless what it would hit has not recovered yet."""
        target = KINDS[fault.kind].hits, fault.target
        if target in self._hit and target[0] != "connections":
            self.skipped[fault.kind] += 1
            return
        self._hit.add(target)
        start = self._journal.write("fault", **vars(fault))
        try:
            done = await self._does[fault.kind](fault)
        except BaseException:  # the run can't go on; what has come of this fault nobody knows
            self.disturbances.append(Disturbance(fault.kind, start, math.inf, None, "coordinator"))
            raise
        (self.made if done else self.skipped)[fault.kind] += 1
        self._hit.discard(target)
        self._journal.write("over", kind=fault.kind, target=fault.target, done=done)

    # Workers

    async def _worker_dies(self, fault: Fault) -> bool:
        """Killed; or stopped, and then found and killed by the coordinator."""
        pid, before = self._cluster.worker(fault.target), self._observer.sessions
        # One that freezes before it is up is found by the boot timeout, which this run has no time for.
        if not pid or (fault.kind == "worker-stop" and self._state(fault.target, pid) != "up"):
            return False
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL if fault.kind == "worker-kill" else signal.SIGSTOP)
        detected = await self._observer.until(lambda: self._state(fault.target, pid) != "up", PATIENCE, start)
        recovered = await self._until_another_is_up(fault, pid, start)
        await self._touched(fault, start, before, self._on_worker(before, fault.target), "worker")
        self._measure(fault, start, detected, start, recovered)
        return True

    async def _worker_pause(self, fault: Fault) -> bool:
        pid, before = self._cluster.worker(fault.target), self._observer.sessions
        if not pid:
            return False
        start = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(fault.lasts)
        if self._cluster.worker(fault.target) == pid:
            os.kill(pid, signal.SIGCONT)
        await self._touched(fault, start, before, None, "worker")
        return True

    async def _worker_term(self, fault: Fault) -> bool:
        pid, before = self._cluster.worker(fault.target), self._observer.sessions
        if not pid:
            return False
        start = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        recovered = await self._until_another_is_up(fault, pid, start)
        targets = None if self._moves else self._on_worker(before, fault.target)
        await self._touched(fault, start, before, targets, "worker")
        self._measure(fault, start, None, start, recovered)
        return True

    # Participants, scripts, connections

    async def _participants_end(self, fault: Fault) -> bool:
        process, before = self._cluster.groups[fault.target], self._observer.sessions
        if process is None:
            return False
        start = time.monotonic()
        process.send_signal(signal.SIGKILL if fault.kind == "participants-kill" else signal.SIGTERM)
        code = await self._cluster.ended(process, 15.0)
        if fault.kind == "participants-term" and code != 0:
            self.problems.append(f"participants {fault.target} ended with {code} after a SIGTERM, not with 0")
        await asyncio.sleep(fault.lasts)
        again = time.monotonic()
        self._cluster.start_group(fault.target)
        ids = self._group(fault.target)
        back = await self._until_back(ids, before)
        await self._touched(fault, start, before, ids)
        self._measure(fault, start, None, again, back)
        return True

    async def _participants_pause(self, fault: Fault) -> bool:
        process, before = self._cluster.groups[fault.target], self._observer.sessions
        if process is None:
            return False
        start = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(fault.lasts)
        process.send_signal(signal.SIGCONT)
        # Those who were given up in the meantime find out, and come back.
        await asyncio.sleep(2.0)
        await self._until_listed(self._group(fault.target))
        await self._touched(fault, start, before, self._group(fault.target))
        return True

    async def _script_kill(self, fault: Fault) -> bool:
        process = self._cluster.scripts[fault.target]
        if process is None:
            return False
        process.kill()
        await self._cluster.ended(process, 5.0)
        self.killed[self._cluster.life_of[fault.target]] = time.monotonic()
        await asyncio.sleep(fault.lasts)
        self._cluster.start_script(fault.target)
        return True

    async def _cut(self, fault: Fault) -> bool:
        before = self._observer.sessions
        pipes = self._pick(fault.share)
        ids = self._behind(before, pipes)
        start = time.monotonic()
        self._cluster.proxy.cut(pipes, reset=not fault.politely)
        back = await self._until_back(ids, before)
        await self._touched(fault, start, before, ids)
        self._measure(fault, start, None, start, back)
        return bool(pipes)

    async def _freeze(self, fault: Fault) -> bool:
        before = self._observer.sessions
        pipes = self._pick(fault.share)
        ids = self._behind(before, pipes)
        peers = {before[id].peer for id in ids}
        start = time.monotonic()
        for pipe in pipes:
            pipe.freeze()

        def unknown() -> bool:
            return not any(session.peer in peers for session in self._observer.sessions.values())

        detected = await self._observer.until(unknown, fault.lasts, start)
        await asyncio.sleep(max(0.0, start + fault.lasts - time.monotonic()))
        over = time.monotonic()
        for pipe in pipes:
            if not fault.politely:
                pipe.cut(reset=True)
            pipe.thaw()
        back = await self._until_listed(ids)
        await self._touched(fault, start, before, ids)
        self._measure(fault, start, detected, over, back)
        return bool(pipes)

    # The coordinator

    async def _coordinator_pause(self, fault: Fault) -> bool:
        process, before = self._cluster.coordinator, self._observer.sessions
        if process is None:
            return False
        start = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(fault.lasts)
        process.send_signal(signal.SIGCONT)
        await self._touched(fault, start, before, None, "coordinator")
        return True

    async def _coordinator_kill(self, fault: Fault) -> bool:
        process, before = self._cluster.coordinator, self._observer.sessions
        if process is None:
            return False
        workers = self._workers()
        start = time.monotonic()
        process.kill()
        await self._cluster.ended(process, 5.0)
        await asyncio.sleep(fault.lasts)
        again = time.monotonic()
        await self._cluster.start_coordinator()

        def whole() -> bool:
            """Everybody whose connection still stands is there again."""
            standing = {pipe.peer for pipe in self._cluster.proxy.open()}
            sessions = self._observer.sessions
            return all(id in sessions for id, session in before.items() if session.peer in standing)

        recovered = await self._observer.until(whole, PATIENCE, again)
        if recovered is None:
            self.problems.append(f"the pool wasn't whole {PATIENCE:g} s after a new coordinator's start")
        known = {worker.pid for worker in self._observer.status.workers}
        for index, pid in workers.items():
            if pid not in known and self._cluster.is_ours(pid):
                self.problems.append(
                    f"worker {index} (pid {pid}) lives and wasn't adopted by the new coordinator"
                )
        await self._touched(fault, start, before, set(before), "coordinator")
        self._measure(fault, start, None, again, recovered)
        return True

    async def _restart_workers(self, fault: Fault) -> bool:
        before, workers = self._observer.sessions, self._workers()
        start = time.monotonic()
        code, output = await self._cluster.command("restart-workers")
        if code != 0:
            self.problems.append(f"restart-workers ended with {code}: {output.strip()}")
        stayed = set(workers.values()) & {worker.pid for worker in self._observer.status.workers}
        if stayed and code == 0:
            self.problems.append(f"restart-workers succeeded, and workers {sorted(stayed)} are still there")
        end = await self._touched(fault, start, before, None, "worker")
        self._measure(fault, start, None, start, end)
        return True

    async def _workers_term(self, fault: Fault) -> bool:
        before, workers = self._observer.sessions, self._workers()
        start = time.monotonic()
        for pid in workers.values():
            os.kill(pid, signal.SIGTERM)

        def all_are_others() -> bool:
            now = self._observer.status.workers
            return all(worker.state == "up" for worker in now) and not set(workers.values()) & {
                worker.pid for worker in now
            }

        recovered = await self._observer.until(all_are_others, PATIENCE, start)
        if recovered is None:
            self.problems.append(f"{fault.kind}: not all workers again after {PATIENCE:g} s")
        await self._touched(fault, start, before, None, "worker")
        self._measure(fault, start, None, start, recovered)
        return True

    async def _drain(self, fault: Fault) -> bool:
        process, before = self._cluster.coordinator, self._observer.sessions
        if process is None:
            return False
        start = time.monotonic()
        code, output = await self._cluster.command("drain")
        if code != 0:
            self.problems.append(f"drain ended with {code}: {output.strip()}")
        ended = await self._cluster.ended(process, GRACE + 10.0)
        exited = time.monotonic()
        if ended != 0:
            self.problems.append(f"a coordinator that was told to drain ended with {ended}, not with 0")
            process.kill()
            await self._cluster.ended(process, 5.0)
        await asyncio.sleep(fault.lasts)
        again = time.monotonic()
        await self._cluster.start_coordinator()
        back = await self._until_listed(set(before))
        # It costs nobody anything but what is not over by then.
        await self._touched(fault, start, before, None, "coordinator")
        if exited >= start + GRACE:
            self.disturbances.append(Disturbance("grace over", start + GRACE, exited + EFFECTS, None))
        self._measure(fault, start, None, again, back)
        return True

    # What they share

    @property
    def _moves(self) -> bool:
        """Whether participants that are told to reconnect stay members meanwhile."""
        return "restart-workers" in self._cluster.commands

    def _measure(
        self, fault: Fault, start: float, detected: float | None, repaired: float, recovered: float | None
    ) -> None:
        measured = Measured(fault.kind, start, detected, repaired, recovered)
        self.measured.append(measured)
        self._journal.write("measured", **vars(measured))

    async def _touched(
        self,
        fault: Fault,
        start: float,
        before: Mapping[str, Session],
        targets: Collection[str] | None,
        holds_up: str = "",
    ) -> float:
        """Takes the fault down, and whom it may have cost their session: nobody if ``targets`` is None."""
        after = await self._observer.listing()
        end = time.monotonic()
        touched: set[str] = set()
        if targets is not None:
            everybody = {participant_name(slot) for slot in range(self._cluster.shape.participants)}
            touched = {
                id for id in everybody if id in targets or id not in before or before[id] != after.get(id)
            }
        self.disturbances.append(Disturbance(fault.kind, start, end + EFFECTS, frozenset(touched), holds_up))
        return end

    async def _until_another_is_up(self, fault: Fault, pid: int, since: float) -> float | None:
        def another() -> bool:
            worker = self._observer.status.workers[fault.target]
            return worker.pid != pid and worker.state == "up"

        recovered = await self._observer.until(another, PATIENCE, since)
        if recovered is None:
            self.problems.append(f"{fault.kind}: no worker {fault.target} again after {PATIENCE:g} s")
        return recovered

    async def _until_back(self, ids: Collection[str], before: Mapping[str, Session]) -> float | None:
        """When each of them has had a new session; None if they take too long."""
        old = {before[id] for id in ids if id in before}
        return await self._until_seen(ids, lambda session: session not in old)

    async def _until_listed(self, ids: Collection[str]) -> float | None:
        return await self._until_seen(ids, lambda _: True)

    async def _until_seen(self, ids: Collection[str], counts: Callable[[Session], bool]) -> float | None:
        """Not at the same time, for other faults go on; nor without fail: who was hit several times in a row
        waits up to 30 s until it tries again. That all are back is for the end of the run to see."""
        missing = set(ids)

        def all_seen() -> bool:
            sessions = self._observer.sessions
            missing.difference_update({id for id in missing if id in sessions and counts(sessions[id])})
            return not missing

        return await self._observer.until(all_seen, RETURN, time.monotonic())

    def _state(self, index: int, pid: int) -> str:
        """The state of this very worker process."""
        worker = self._observer.status.workers[index]
        return worker.state if worker.pid == pid else "gone"

    def _workers(self) -> dict[int, int]:
        found = {index: self._cluster.worker(index) for index in range(self._cluster.shape.workers)}
        return {index: pid for index, pid in found.items() if pid}

    def _pick(self, share: float) -> list[Pipe]:
        pipes = self._cluster.proxy.open()
        return self._dice.sample(pipes, max(1, round(share * len(pipes)))) if pipes else []

    def _group(self, index: int) -> set[str]:
        size = self._cluster.shape.per_group
        return {participant_name(slot) for slot in range(index * size, (index + 1) * size)}

    @staticmethod
    def _on_worker(sessions: Mapping[str, Session], index: int) -> set[str]:
        return {id for id, session in sessions.items() if session.worker == index}

    @staticmethod
    def _behind(sessions: Mapping[str, Session], pipes: Collection[Pipe]) -> set[str]:
        peers = {pipe.peer for pipe in pipes}
        return {id for id, session in sessions.items() if session.peer in peers}
