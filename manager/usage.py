"""What this process uses of the machine."""

from __future__ import annotations

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
