"""One chaos run: the start of the cluster, the faults, and what must hold when all is quiet again."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from coordinator import MusterError, aio
from protos.messages import from_scalars, instruction
from tests.chaos.audit import SLACK, Violation, audit, lateness
from tests.chaos.cluster import GRACE, ChaosError, Cluster, Shape, exceptions_in, send
from tests.chaos.history import PROBE, Disturbance, History, load
from tests.chaos.inject import PATIENCE, Injector, Measured
from tests.chaos.participants import participant_name
from tests.chaos.schedule import KINDS, make_schedule

WARM_UP = 5.0
"""Seconds of calls before the first fault."""

CALM = 3.0
"""Seconds of calls after the last one."""

SCRIPTS_END = 40.0
"""Seconds in which scripts that were told to stop must have seen all their calls end."""

SETTLE = 10.0
"""Seconds in which connections and sessions must have come to agree."""

MEMORY_SLACK = 64 * 2**20
"""Bytes by which a process may be larger at the end than 1.5 times one that has worked for WARM_UP."""

DESCRIPTORS_SLACK = 32


@dataclass
class Held:
    """What a process holds."""

    rss: int
    descriptors: int
    memfds: int


@dataclass
class Result:
    seed: int
    seconds: float
    history: History = field(default_factory=History)
    made: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    measured: list[Measured] = field(default_factory=list)
    memory: dict[str, tuple[Held, Held]] = field(default_factory=dict)
    """By process: after the warm-up, and at the end."""
    late_answers: int = 0
    lateness: list[float] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)


def selectable(cluster_commands: Collection[str]) -> set[str]:
    """Kinds of faults that the coordinator at hand can be expected to bear."""
    kinds = set(KINDS)
    if "restart-workers" not in cluster_commands:
        kinds -= {"restart-workers", "coordinator-kill"}  # adoption came with it
    if "drain" not in cluster_commands:
        kinds -= {"drain"}
    return kinds


class Run:
    def __init__(
        self,
        directory: Path,
        seed: int,
        seconds: float,
        kinds: Collection[str] | None,
        shape: Shape,
        slack: float = SLACK,
    ) -> None:
        """Calls may end ``slack`` seconds late."""
        self._slack = slack
        self._cluster = Cluster(directory, seed, shape)
        self._injector = Injector(self._cluster, seed)
        self._kinds = selectable(self._cluster.commands) if kinds is None else set(kinds)
        self._seed, self._seconds = seed, seconds
        self._shape = shape
        self._everybody = {participant_name(slot) for slot in range(shape.participants)}
        self._result = Result(seed, seconds)

    async def run(self) -> Result:
        try:
            await self._under_faults()
            await self._when_quiet()
            await self._at_the_end()
        except ChaosError as error:
            self._violated("the run goes on", str(error))
            now = time.monotonic()
            self._injector.killed.update(dict.fromkeys(self._cluster.life_of.values(), now))
        finally:
            await self._cluster.end()
        self._judge()
        return self._result

    def _violated(self, rule: str, text: str) -> None:
        self._result.violations.append(Violation(rule, text))

    async def _under_faults(self) -> None:
        cluster, shape = self._cluster, self._shape
        await cluster.start()
        observer = cluster.observer

        def there() -> bool:
            workers = observer.status.workers
            return observer.sessions.keys() == self._everybody and all(each.state == "up" for each in workers)

        if await observer.until(there, PATIENCE) is None:
            states = ", ".join(each.state for each in observer.status.workers)
            came = f"{len(observer.sessions)} of {len(self._everybody)} participants"
            raise ChaosError(f"only {came} came, to workers that are {states}")
        for index in range(shape.scripts):
            cluster.start_script(index)
        await asyncio.sleep(WARM_UP)
        self._warm = self._held()
        schedule = make_schedule(
            self._seed,
            self._seconds,
            self._kinds,
            workers=shape.workers,
            groups=shape.groups,
            scripts=shape.scripts,
        )
        try:
            await self._injector.run(schedule)
        except* ChaosError as errors:
            raise ChaosError("; ".join(str(error) for error in errors.exceptions)) from None
        await asyncio.sleep(CALM)

    async def _when_quiet(self) -> None:
        """The scripts have ended; nothing may be left of their calls, and everybody must be there."""
        cluster, observer = self._cluster, self._cluster.observer
        for index, script in enumerate(cluster.scripts):
            if script is not None and script.poll() is not None:
                self._violated("scripts go on", f"script {index} ended by itself with {script.returncode}")
            elif script is not None:
                script.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SCRIPTS_END
        for index, script in enumerate(cluster.scripts):
            if script is not None and await cluster.ended(script, deadline - time.monotonic()) is None:
                text = f"script {index} waits for calls, {SCRIPTS_END:g} s after it was told to stop"
                self._violated("scripts end", text)
                script.kill()

        def quiet() -> bool:
            status = observer.status
            left = (status.leased, status.calls, status.waiting, status.busy, status.attached)
            return not any(left) and observer.sessions.keys() == self._everybody

        if await observer.until(quiet, PATIENCE, time.monotonic()) is None:
            status = observer.status
            self._violated(
                "nothing is left",
                f"{PATIENCE:g} s after the scripts ended: {status.leased} leased, {status.calls} calls, "
                f"{status.waiting} waiting, {status.busy} busy, {status.attached} attached; missing "
                f"{sorted(self._everybody - observer.sessions.keys())}",
            )
        self._result.late_answers = observer.status.counters.late
        if observer.twice:
            self._violated("nobody is there twice", f"listed twice at a time: {sorted(observer.twice)}")

        def unlike() -> set[str]:
            """Connections without a session, and sessions without a connection."""
            standing = {pipe.peer for pipe in cluster.proxy.open()}
            return standing ^ {session.peer for session in observer.sessions.values()}

        await observer.until(lambda: not unlike(), SETTLE, time.monotonic())
        if difference := unlike():
            pipes = [pipe for pipe in cluster.proxy.open() if pipe.peer in difference]
            text = f"these are only connected, or only pooled: {sorted(difference)}; {pipes}"
            self._violated("pooled is connected", text)
        self._injector.note_sessions(observer.sessions)
        await self._probe()
        # Memory that was shared rests for a while.
        await observer.until(lambda: all(held.memfds <= 2 for held in self._held().values()), SETTLE)
        self._compare(self._warm, self._held())

    async def _probe(self) -> None:
        """Whoever is pooled answers."""
        try:
            async with aio.connect(self._cluster.control) as connection:
                cohort = await connection.get_participants(len(self._everybody), timeout=10.0)
                config = {"call": PROBE, "to": "", "size": 10, "slots": 0, "whole": False, "crc": 0}
                config |= {"longest": 0.0, "failure": 0.0, "never": 0.0, "odd": 0.0, "stubborn": 0.0}
                outcome = await cohort.run(instruction("work", config=config), timeout=10.0)
                said = {
                    proxy.id: from_scalars(message.result.metrics).get("participant")
                    for proxy, message in outcome.results.items()
                }
        except MusterError as error:
            self._violated("pooled is connected", f"the last call could not be made: {error}")
            return
        if said != {id: id for id in self._everybody}:
            self._violated("pooled is connected", f"not everybody answers in the end: {outcome}; {said}")

    async def _at_the_end(self) -> None:
        """Everything ends as asked, and leaves nothing behind."""
        cluster, observer = self._cluster, self._cluster.observer
        for group in cluster.groups:
            if group is not None:
                group.send_signal(signal.SIGTERM)
        for index, group in enumerate(cluster.groups):
            code = None if group is None else await cluster.ended(group, 15.0)
            if code != 0:
                self._violated("all ends well", f"participants {index} ended with {code} after a SIGTERM")
        if await observer.until(lambda: not observer.status.participants, 10.0, time.monotonic()) is None:
            self._violated("all ends well", f"still pooled after they left: {sorted(observer.sessions)}")
        coordinator = cluster.coordinator
        if coordinator is not None:
            coordinator.send_signal(signal.SIGTERM)
            code = await cluster.ended(coordinator, GRACE + 10.0)
            if code != 0:
                self._violated(
                    "all ends well", f"the coordinator ended with {code} after a SIGTERM, not with 0"
                )
        deadline = time.monotonic() + 5.0
        while (left := cluster.processes()) and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
        for process in left:
            self._violated("no orphans", f"left running: {process.pid} {' '.join(_command_of(process))}")
            send(process, signal.SIGKILL)
        for path in [*cluster.run_dir.rglob("*"), *cluster.temporary.rglob("*")]:
            if path.name != "lock":
                self._violated("no leftovers", f"left behind: {path.relative_to(cluster.directory)}")
        for address in (cluster.listen, cluster.control):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                host, _, port = address.rpartition(":")
                try:
                    probe.bind((host, int(port)))
                except OSError as error:
                    self._violated("no leftovers", f"{address} is still taken: {error}")

    def _held(self) -> dict[str, Held]:
        status = self._cluster.observer.status
        pids = {f"worker {worker.index}": worker.pid for worker in status.workers}
        return {name: _held_by(pid) for name, pid in {**pids, "coordinator": status.pid}.items()}

    def _compare(self, warm: dict[str, Held], last: dict[str, Held]) -> None:
        for name, now in last.items():
            before = warm[name]
            self._result.memory[name] = before, now
            if now.rss > 1.5 * before.rss + MEMORY_SLACK:
                text = f"{name} has grown from {before.rss:,} to {now.rss:,} bytes"
                self._violated("memory is given back", text)
            if now.memfds > 2:
                self._violated("memory is given back", f"{name} still shares {now.memfds} pieces of memory")
            # All participants may have come to one worker.
            if now.descriptors > before.descriptors + len(self._everybody) + DESCRIPTORS_SLACK:
                text = f"{name} had {before.descriptors} descriptors and has {now.descriptors}"
                self._violated("descriptors are given back", text)

    def _judge(self) -> None:
        injector, result = self._injector, self._result
        result.made, result.skipped = injector.made, injector.skipped
        result.measured = injector.measured
        end = time.monotonic()
        disturbances = [*injector.disturbances, Disturbance("stop", end, end)]
        result.history = load(self._cluster.directory, disturbances, injector.killed)
        result.lateness = lateness(result.history)
        result.violations += audit(result.history, self._slack)
        result.violations += [Violation("faults are survived", text) for text in injector.problems]
        for path in sorted(self._cluster.directory.glob("*.log")):
            found = Counter(exceptions_in(path.read_text(encoding="utf-8", errors="replace")))
            result.violations += [
                Violation("no exception in any log", f"{path.name}, {times} times: {text}")
                for text, times in found.items()
            ]


def _held_by(pid: int) -> Held:
    try:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        rss = psutil.Process(pid).memory_info().rss
    except (OSError, psutil.NoSuchProcess):
        return Held(0, 0, 0)
    return Held(rss, len(links), sum(link.startswith("/memfd:") for link in links))


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
