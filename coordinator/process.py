"""One worker as an operating system process: spawned, watched, ended.

Spawned, never forked: gRPC and fork don't mix. A thread per process waits for its end, which is portable and
tells at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import manager


class WorkerProcess:
    """A running ``python -m manager start``."""

    def __init__(self, arguments: Sequence[str], on_exit: Callable[[int], None]) -> None:
        """Starts it. ``on_exit`` gets its exit code on the running event loop; negative: the signal."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self.started_at = time.monotonic()
        # -P: never from the working directory, which may well have a manager.py of its own.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "manager", "start", *arguments],
            stdin=subprocess.DEVNULL,
            env=_environment(),
        )
        self.pid = self._process.pid
        self._watch = threading.Thread(target=self._wait, name=f"muster-watch-{self.pid}", daemon=True)
        self._watch.start()

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def join(self) -> None:
        """Waits for the watching thread; the process must have ended."""
        self._watch.join()

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            self._process.send_signal(number)

    def _wait(self) -> None:
        code = self._process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_exit, code)


def _environment() -> dict[str, str]:
    """The environment in which a worker finds this package, also in a checkout that isn't installed."""
    packages = Path(manager.__file__).parent.parent
    if packages.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
