"""Memory of processes under measurement: now, at most so far, and at most while something goes on.

Decides what is counted. RSS counts in full what a process shares with others, PSS in proportion. The memory
of files that live in memory alone (tmpfs, memfd) belongs to the system, not to one process, unless mapped; so
how much the system's shared memory has grown is told beside them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.measure import MeasurementError

MIB = 1024 * 1024


@dataclass(frozen=True)
class Memory:
    """Bytes. ``pss`` counts what is shared with other processes in proportion; ``rss`` counts it in full."""

    rss: int
    pss: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss)


def memory(*pids: int) -> Memory:
    """What these processes take now, together."""
    total = Memory(0, 0)
    for pid in pids:
        try:
            info = psutil.Process(pid).memory_full_info()
        except psutil.NoSuchProcess:
            raise MeasurementError(f"process {pid} ended while it was measured") from None
        total += Memory(rss=info.rss, pss=getattr(info, "pss", 0))
    return total


def peak_rss(pids: Iterable[int]) -> int:
    """The most that each of these processes has ever taken (VmHWM), added up; 0 where no system tells."""
    return sum(_kilobytes(Path(f"/proc/{pid}/status"), "VmHWM") for pid in pids)


def shared_memory() -> int:
    """Bytes of the system in files that are in memory alone: tmpfs, memfd, shared anonymous memory."""
    return _kilobytes(Path("/proc/meminfo"), "Shmem")


def _kilobytes(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


class Watch:
    """Polls the memory of some processes, by role, while its ``with`` block runs, and keeps the most.

    A process that ends meanwhile is no longer counted.
    """

    def __init__(self, roles: Mapping[str, Sequence[int]], interval: float = 0.05) -> None:
        self._roles = roles
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._shared_before = shared_memory()
        self._began = time.monotonic()
        self.before = {role: self._now(role) for role in roles}
        self.peak = dict(self.before)
        self.peak_after = dict.fromkeys(roles, 0.0)
        """Seconds after which the most was taken."""
        self.shared_growth = 0
        """By how many bytes the system's shared memory had grown at most."""

    def growth(self, role: str) -> Memory:
        """By how much the role's memory had grown at most."""
        before, peak = self.before[role], self.peak[role]
        return Memory(peak.rss - before.rss, peak.pss - before.pss)

    def _now(self, role: str) -> Memory:
        total = Memory(0, 0)
        for pid in self._roles[role]:
            try:
                total += memory(pid)
            except MeasurementError:
                continue
        return total

    def _poll(self) -> None:
        while not self._over.wait(self._interval):
            self.look()

    def look(self) -> None:
        """One look at all of them, besides those that are taken all the time."""
        for role in self._roles:
            now, most = self._now(role), self.peak[role]
            if now.rss > most.rss:
                self.peak_after[role] = time.monotonic() - self._began
            self.peak[role] = Memory(max(now.rss, most.rss), max(now.pss, most.pss))
        self.shared_growth = max(self.shared_growth, shared_memory() - self._shared_before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(10)
