"""Strangers against a running cluster, and a look at those who have done nothing wrong.

``Innocent`` calls participants all the while; ``disturb_a_cluster`` is what ``python -m tests.fuzz --live``
does: afterwards everything answers, nobody has died, no call has suffered, memory is where it was.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from coordinator import connect
from tests.fuzz import http2, strangers
from tests.process.running import RunningCoordinator, link_endpoint, start_coordinator
from tests.support import PATIENCE, Devices, eventually, instruction

PARTICIPANTS = 20
RUN_DIR = "run"

PAUSE = 0.03
"""Seconds between an innocent's calls: others want the machine, too."""

MOST_GROWTH = 48 * 2**20
"""Bytes by which a process may have grown through thousands of strangers, once it is warm: what freed memory
leaves in fragments. A leak of 10 KiB for each of 10,000 would be over it."""


@dataclass
class Innocent:
    """Calls a cluster's participants one after the other, and all at once, until it is stopped."""

    control: str
    calls: int = 0
    suffered: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call, name="innocent")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _call(self) -> None:
        try:
            with connect(self.control) as connection:
                cohort = connection.get_participants(PARTICIPANTS, timeout=PATIENCE)
                while not self._stop.wait(PAUSE):
                    began_at = time.monotonic()
                    outcome = cohort.run(instruction("echo", b"%d" % self.calls), timeout=PATIENCE)
                    self.slowest = max(self.slowest, time.monotonic() - began_at)
                    if len(outcome.results) < PARTICIPANTS:
                        self.suffered.append(str(outcome))
                    self.calls += 1
        except Exception as error:
            self.suffered.append(repr(error))


@dataclass
class Cluster:
    """A coordinator with two workers, participants and a caller."""

    coordinator: RunningCoordinator
    innocent: Innocent
    endpoint: str  # of the link

    @property
    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.coordinator.pid), *self.coordinator.children()]

    def status(self) -> dict[str, Any]:
        return self.coordinator.status()


@contextmanager
def cluster(directory: Path, devices: Devices, *options: str) -> Iterator[Cluster]:
    """A cluster whose participants are called all the while. At the end no call may have suffered."""
    options = (f"--run-dir={directory / RUN_DIR}", "--workers=2", *options)
    with start_coordinator(directory / "coordinator.log", *options) as coordinator:
        devices.join(coordinator.listen, PARTICIPANTS, prefix="innocent")
        innocent = Innocent(coordinator.control)
        try:
            eventually(lambda: innocent.calls > 3 or innocent.suffered, what="calls before any stranger")
            pids = [worker["pid"] for worker in coordinator.status()["workers"]]
            yield Cluster(coordinator, innocent, link_endpoint(directory / RUN_DIR))
            enough = innocent.calls + 3
            eventually(lambda: innocent.calls > enough or innocent.suffered, what="calls after all strangers")
            assert [worker["pid"] for worker in coordinator.status()["workers"]] == pids, "a worker died"
        finally:
            innocent.stop()
        assert not innocent.suffered, innocent.suffered[:3]


def disturb(cluster: Cluster, peers: int, seed: int) -> None:
    """So many strangers at each port, and ten times as many messages on the link."""

    async def ports() -> None:
        await asyncio.gather(
            strangers.visit_often(cluster.coordinator.listen, http2.CONNECT, peers, seed),
            strangers.visit_often(cluster.coordinator.control, http2.ATTACH, peers // 4, seed + 1),
        )

    link = threading.Thread(
        target=strangers.send_garbage, args=(cluster.endpoint, 10 * peers, seed), name="link strangers"
    )
    link.start()
    try:
        asyncio.run(ports())
    finally:
        link.join()


def only_the_innocent(cluster: Cluster) -> None:
    """Waits until the strangers have gone: some say by chance what a participant would."""
    eventually(lambda: cluster.status()["participants"] == PARTICIPANTS)


def sizes(cluster: Cluster) -> list[int]:
    return [process.memory_info().rss for process in cluster.processes]


def disturb_a_cluster(peers: int, seed: int) -> str:
    """Raises AssertionError if anybody suffered; returns what happened."""
    devices = Devices()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="muster-fuzz-") as directory,
            cluster(Path(directory), devices) as running,
        ):
            disturb(running, peers // 4, seed)
            before = sizes(running)
            disturb(running, peers, seed + 2)
            growth = [after - level for after, level in zip(sizes(running), before, strict=True)]
            only_the_innocent(running)
            status = running.status()
            assert max(growth) < MOST_GROWTH, growth
    finally:
        devices.close()
    innocent, grown = running.innocent, ", ".join(f"{each / 2**20:+.1f}" for each in growth)
    return (
        f"{peers} strangers at the participants' port, {10 * peers} messages on the link: {innocent.calls} "
        f"calls meanwhile, all with {PARTICIPANTS} results, the slowest {innocent.slowest:.2f} s; memory of "
        f"the coordinator and its workers {grown} MiB; {status['link_errors']} errors on the link, "
        f"{sum(status['refused'].values())} refused"
    )
