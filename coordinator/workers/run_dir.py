"""The run directory: what outlives a coordinator that is killed, and lets the next one find its workers.

It holds ``lock`` (held while a coordinator lives), ``link.sock`` (the link's socket) and ``state.json``
(where participants connect, and which process is in which slot). Decides where it is, whose it may be, and
which of the recorded processes still live; what becomes of them is supervisor.py's business.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from coordinator.private import NotPrivateError, directory, lock
from manager.errors import MusterError, StartError
from manager.listen import Address
from protos.version import VERSION


class InUseError(MusterError):
    """A coordinator that lives holds the directory."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A worker process of an earlier life of this coordinator."""

    index: int
    incarnation: int
    pid: int  # 0: it was about to be started
    arguments: tuple[str, ...]  # of its command line

    def lives(self) -> bool:
        """Whether that very process still runs: its command line names its slot and this run directory."""
        if not self.pid or not self.arguments:
            return False
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False
        return command.endswith(b"\0".join(map(os.fsencode, ("", *self.arguments, ""))))


@dataclass(frozen=True, slots=True)
class State:
    """What the next life of the coordinator has to know."""

    asked: str = ""  # the address that was asked for
    listen: str = ""  # and the one that it came to, with its port
    version: str = ""  # of Muster
    workers: tuple[Recorded, ...] = ()


class RunDir:
    """An open run directory: nobody else has it until ``close``."""

    def __init__(self, path: Path, *, private: bool) -> None:
        """Makes it if need be. ``private``: it was not chosen by the user, and goes when it isn't needed.

        Raises InUseError, or StartError if it can't be used or isn't this user's alone.
        """
        self._private = private
        self._listen: tuple[str, str] = ("", "")
        try:
            if private:
                directory(path.parent)
            self.path, self._lock = _hold(path)
        except NotPrivateError as error:
            raise StartError(
                f"can't use {error.path} as the run directory: {error.why}; --run-dir names another"
            ) from None
        except OSError as error:
            why = error.strerror or error
            raise StartError(f"can't use {path} as the run directory: {why}") from None

    @property
    def socket(self) -> Path:
        return self.path / "link.sock"

    def read(self) -> State:
        """What was recorded last; nothing if that can't be read."""
        try:
            found = json.loads(self._state.read_text(encoding="utf-8"))
            workers = tuple(
                Recorded(
                    int(w["index"]), int(w["incarnation"]), int(w["pid"]), tuple(map(_text, w["arguments"]))
                )
                for w in found["workers"]
            )
            return State(str(found["asked"]), str(found["listen"]), str(found["version"]), workers)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return State()

    def serves(self, asked: Address, listen: Address) -> None:
        """Where participants connect, for the next record."""
        self._listen = (str(asked), str(listen))

    def record(self, workers: Sequence[Recorded]) -> None:
        """Records who is in which slot, wholly or not at all. Raises OSError."""
        state = State(*self._listen, VERSION, tuple(workers))
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        new.replace(self._state)

    def close(self, *, finished: bool) -> None:
        """Lets go of it. ``finished``: no worker is left that anybody would have to find."""
        if finished or not self._state.exists():  # none was ever recorded
            for path in (self.socket, self._state):
                path.unlink(missing_ok=True)
            if self._private:
                shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    @property
    def _state(self) -> Path:
        return self.path / "state.json"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def default_path(listen: Address) -> Path:
    """Where the coordinator at this address keeps what it needs, so that its next life finds it."""
    user = os.getuid() if hasattr(os, "getuid") else None
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")
    try:
        ours = runtime.stat().st_uid == user and os.access(runtime, os.W_OK)  # not that of who called sudo
    except OSError:
        ours = False
    base = (
        runtime / "muster"
        if ours
        else Path(tempfile.gettempdir()) / f"muster-{'run' if user is None else user}"
    )
    host = re.sub(r"[^A-Za-z0-9.]", "_", listen.host)[:40]
    return base / f"{host}-{listen.port}"


def _hold(path: Path) -> tuple[Path, TextIO]:
    """Holds the directory until the file is closed: a second coordinator in it would steal the socket."""
    while True:
        path = directory(path)
        try:
            held = lock(path / "lock")
        except FileNotFoundError:
            continue  # the coordinator that had it has just ended, and taken the directory with it
        if held is None:
            raise InUseError(f"another coordinator uses the run directory {path}")
        return path, held
