"""Where gRPC may be used: not in a process that was forked from one which has used it.

There it hangs, or crashes. multiprocessing forks by default on Linux, before Python 3.14.
"""

from __future__ import annotations

import os

REMEDY = 'start processes in multiprocessing\'s way "spawn", or fork before anything of Muster is in use'

_used_by = 0


def check_process() -> None:
    """To be called before gRPC is used. Raises RuntimeError where it wouldn't work."""
    global _used_by
    _used_by = _used_by or os.getpid()
    if _used_by != os.getpid():
        raise RuntimeError(
            f"this process was forked from one that uses gRPC, which doesn't work in a fork: {REMEDY}"
        )
