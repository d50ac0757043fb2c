"""A place for a server's Unix socket: nobody else can connect from the start, and one that lives is let be.

A server that binds a path gives it the mode that the umask says, and takes it from whoever listens there. So
it binds another path, in a directory that only this user can enter; from there the socket is moved to its
place once it is private. What a coordinator that was killed has left behind is replaced. Who has the place is
told by a lock beside it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from coordinator.control_address import unix_target
from coordinator.private import NotPrivateError, lock, settled
from manager.errors import StartError

MAX_PATH = 107
"""Bytes that a Unix socket's path may have on Linux."""


class SocketPlace:
    """Holds a path, until it is closed, for a socket that ``settle`` puts there."""

    def __init__(self, path: Path) -> None:
        """Raises StartError if somebody else has it, or no socket can be there."""
        self._seat: os.stat_result | None = None
        try:
            self._path = settled(path)
            self._lock_path = self._path.with_name(f"{self._path.name}.lock")
            self._lock = lock(self._lock_path)
            if self._lock is None:
                raise StartError(f"another coordinator listens at unix:{path}; stop it, or take another path")
        except NotPrivateError as error:
            raise StartError(f"can't listen at unix:{path}: {error}") from None
        except FileNotFoundError:
            raise StartError(
                f"can't listen at unix:{path}: there is no directory {self._path.parent}; make it, or take "
                f"another path"
            ) from None
        except OSError as error:
            raise StartError(f"can't listen at unix:{path}: {error.strerror or error}") from None
        self._directory: Path | None = None
        try:
            self._make_room(path)
        except BaseException:
            self.close()
            raise

    def _make_room(self, path: Path) -> None:
        bound = self._path.parent / ".12345678" / "s"  # how long the other path will be
        if max(len(os.fsencode(each)) for each in (self._path, bound)) > MAX_PATH:
            raise StartError(f"can't listen at unix:{path}: the path is too long for a socket")
        try:
            if self._path.is_symlink() or (self._path.exists() and not self._path.is_socket()):
                raise StartError(f"can't listen at unix:{path}: there is something else than a socket")
            if _answers(self._path):
                raise StartError(f"another process listens at unix:{path}; stop it, or take another path")
            self._directory = Path(tempfile.mkdtemp(dir=self._path.parent, prefix="."))
        except OSError as error:
            raise StartError(f"can't listen at unix:{path}: {error.strerror or error}") from None

    @property
    def _bound(self) -> Path:
        assert self._directory is not None  # noqa: S101 - made by __init__
        return self._directory / "s"

    @property
    def target(self) -> str:
        """What the server has to bind, in gRPC's words."""
        return unix_target(self._bound)

    def settle(self) -> None:
        """Puts the socket that has been bound in its place. Raises StartError if that can't be."""
        try:
            self._bound.chmod(stat.S_IRUSR | stat.S_IWUSR)
            seat = self._bound.stat()
            self._bound.replace(self._path)
            self._seat = seat
        except OSError as error:
            raise StartError(f"can't listen at unix:{self._path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Lets go of the place, and takes the socket away."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            if self._seat is not None and os.path.samestat(self._path.lstat(), self._seat):
                self._path.unlink()
        with contextlib.suppress(OSError):
            self._lock_path.unlink()
        self._lock.close()
        self._lock = None


def _answers(path: Path) -> bool:
    """Whether anybody listens there."""
    with socket.socket(socket.AF_UNIX) as probing:
        probing.setblocking(False)
        try:
            probing.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # it is too busy, or not for us
            return True
    return True
