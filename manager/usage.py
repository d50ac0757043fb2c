"""What this process uses of the machine: its memory, and how eagerly it collects garbage."""

from __future__ import annotations

import gc
from pathlib import Path

_STATM = Path("/proc/self/statm")


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
