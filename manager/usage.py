"""What this process uses of the machine: memory, files and CPUs, and how eagerly it collects garbage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

from manager.errors import StartError

_STATM = Path("/proc/self/statm")

TRIM_INTERVAL = 10.0
"""Seconds after which a process that has worked gives memory back that it doesn't use any more."""

TRIM_CPU = 0.2
"""CPU seconds that count as having worked."""

KEPT_MEMORY = 128 * 1024**2
"""Bytes free at the end of the heap from which on some are given back at once."""

LARGE_MEMORY = 8 * 1024**2
"""Bytes from which on a piece of memory is no part of the heap: more than any message comes whole."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

NO_LIMIT = 2**20
"""Open files that count as any number of them."""

TRIM_SESSIONS = 500
"""Sessions that have ended, after which it does so at once."""


def resident_bytes() -> int:
    """Resident memory of this process in bytes; the peak of it where there is no /proc; 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0
    try:
        return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
    except OSError:
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def calm_garbage_collection() -> None:
    """Makes Python's cyclic collector run less often; for processes of our own, once they have started.

    Reference counting frees nearly all that a message allocates. At its default thresholds the collector
    walks over everything that lives, over and over: a quarter of the CPU time of a busy coordinator.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def leave_linear_algebra_single() -> None:
    """Has NumPy start no threads for products of matrices when it is imported: there are none here.

    OpenBLAS starts one per CPU, each with memory of its own, in each worker: that is half the CPU time of an
    import of NumPy. Reducers of users that need them say how many by one of the variables.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_freed_memory() -> None:
    """Makes glibc keep memory for the next large message; for processes of our own, which call ``trim``.

    By default it soon gives back what is free at the end of its heap, and the kernel hands it out again,
    filled with zeros: a third of all CPU time that a worker takes for messages of 1 MB.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)
        mallopt(_M_MMAP_THRESHOLD, LARGE_MEMORY)


def allow_many_files() -> int:
    """Lets this process open as many files as the system allows it, and returns how many that is.

    Each participant takes one.
    """
    try:
        import resource
    except ImportError:
        return NO_LIMIT
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NO_LIMIT if files == resource.RLIM_INFINITY else min(files, NO_LIMIT)


def forbid_core_dumps() -> None:
    """Keeps the system from writing this process's memory to disk when it is aborted or crashes."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def bind_to_cpu(cpu: int) -> None:
    """Binds this process to one of the CPUs it may use, counted from 0 and around.

    Raises StartError where the platform can't.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise StartError("binding to a CPU needs sched_setaffinity, which this platform doesn't have")
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})


class Trimmer:
    """Decides when to give memory back. glibc keeps what large messages and past participants took."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._cpu = 0.0
        self._sessions = 0

    def due(self, now: float, cpu: float, sessions: int) -> bool:
        """Whether it is time; ``cpu`` are seconds used so far, ``sessions`` those that are open now."""
        self._sessions = max(self._sessions, sessions)
        gone = self._sessions - sessions
        worked = now - self._at >= TRIM_INTERVAL and cpu - self._cpu >= TRIM_CPU
        if not worked and gone < TRIM_SESSIONS:
            return False
        self._at, self._cpu, self._sessions = now, cpu, sessions
        return True

    def trimmed(self, cpu: float) -> None:
        """It has been done. What that cost, which is much where there is much, does not count as work."""
        self._cpu = cpu


def trim() -> None:
    """Gives memory back to the system that this process doesn't use any more; does nothing but on glibc."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
