"""One worker as an operating system process: spawned or adopted, watched, ended.

Spawned, never forked: gRPC and fork don't mix. A thread per spawned process waits for its end, which is
portable and tells at once. One that an earlier life of the coordinator has spawned is watched by a pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import manager
from coordinator.settings import Settings
from manager.listen import Address

OnExit = Callable[["int | None"], None]


class WorkerProcess(Protocol):
    """A running ``python -m manager start``. ``started_at`` is a monotonic time, of its start or adoption."""

    pid: int
    started_at: float

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing if it has ended."""
        ...

    def join(self) -> None:
        """Frees what watched it; it must have ended."""
        ...


class SpawnedProcess:
    """Started by this process."""

    def __init__(self, arguments: Sequence[str], on_exit: OnExit) -> None:
        """Starts it. ``on_exit`` gets its exit code on the running event loop; negative: the signal.

        Raises OSError if it can't be started.
        """
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self.started_at = time.monotonic()
        # -P: never from the working directory, which may well have a manager.py of its own.
        with _deaf_to_terminals():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "manager", "start", *arguments],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        self.pid = self._process.pid
        self._watch = threading.Thread(target=self._wait, name=f"muster-watch-{self.pid}", daemon=True)
        try:
            self._watch.start()
        except RuntimeError as error:  # no more threads: then nobody would notice its end
            self._process.kill()
            self._process.wait()
            raise OSError(str(error)) from None

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    def join(self) -> None:
        self._watch.join()

    def _wait(self) -> None:
        code = self._process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_exit, code)


class AdoptedProcess:
    """Started by a coordinator that is gone. Its exit code can't be known: None."""

    def __init__(self, pid: int, on_exit: OnExit, is_it: Callable[[], bool] = lambda: True) -> None:
        """``is_it`` says whether the process of this pid is the one that is meant, as long as that is held.

        Raises OSError if it is not there, or none can be adopted here.
        """
        if not hasattr(os, "pidfd_open"):
            raise OSError("processes can't be adopted on this platform")
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self.pid = pid
        self.started_at = time.monotonic()
        self._fd = os.pidfd_open(pid)
        if not is_it():  # asked only now: before, another could have taken the pid in the meantime
            self.join()
            raise ProcessLookupError(f"process {pid} is another one by now")
        self._loop.add_reader(self._fd, self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def join(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _ended(self) -> None:
        self._loop.remove_reader(self._fd)
        self._on_exit(None)


KILL = signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM


@contextlib.contextmanager
def _deaf_to_terminals() -> Iterator[None]:
    """What is started here never gets a Ctrl-C or a hang-up, not even before it can ignore them itself."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> dict[str, str]:
    """The environment in which a worker finds this package, also in a checkout that isn't installed."""
    packages = Path(manager.__file__).parent.parent
    if packages.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def arguments_of(
    index: int,
    incarnation: int,
    settings: Settings,
    listen: Address,
    endpoint: str,
    import_from: Sequence[Path],
) -> tuple[str, ...]:
    """With which this incarnation of a worker is started, so that it goes by these settings."""
    if not settings.share_port and listen.port:
        listen = Address(listen.host, listen.port + index)
    arguments = [
        f"--coordinator={endpoint}",
        f"--index={index}",
        f"--incarnation={incarnation}",
        f"--listen={listen}",
        "--share-port" if settings.share_port else "--own-port",
        f"--orphan-grace={settings.orphan_grace}",
        f"--log-level={settings.log_level}",
        f"--log-format={settings.log_format}",
        *settings.limits.arguments(),
        *settings.security.arguments(),
    ]
    if settings.link_keys is not None:
        arguments.append(f"--link-keys={settings.link_keys.absolute()}")
    if settings.pin:
        arguments.append(f"--pin={index}")
    arguments += [f"--reducer={path}" for path in settings.reducers]
    arguments += [f"--import-from={path}" for path in import_from]
    return tuple(arguments)


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "exit code unknown"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
