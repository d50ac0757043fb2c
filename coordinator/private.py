"""What is this user's alone: directories that nobody else can enter, files that nobody else can read.

Modes are given to things as they are made, never afterwards: what is private is so from the start. What is
kept in them is the business of run_dir.py, certs.py and control/server.py.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TextIO

from manager.errors import MusterError

_ROOT = 0


class NotPrivateError(MusterError):
    """Somebody else has a hand in it. ``path`` is where, ``why`` is said of it."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path}: {why}")


def directory(path: Path) -> Path:
    """Makes a directory that only this user can enter, or makes sure that it is one.

    Returns its path as it is to be used: without symbolic links on the way, which could be turned. Raises
    NotPrivateError, or OSError if there can be no directory.
    """
    path = settled(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settled(path) != path:
        raise NotPrivateError(path, "somebody else has just put something in the way")
    found = path.lstat()
    if not hasattr(os, "getuid"):  # Windows: directories of the user's are the user's
        return path
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise NotPrivateError(path, "it belongs to somebody else")
    if found.st_mode & 0o077:
        raise NotPrivateError(path, "others can enter it; chmod 700 it, or take another")
    return path


def settled(path: Path) -> Path:
    """The same place, by a way on which nobody else can put another thing there.

    Where everybody may write (/tmp), what leads on from there must be this user's or root's. Raises
    NotPrivateError if it isn't, OSError if the way can't be looked at.
    """
    path = path.parent.resolve() / path.name
    if not hasattr(os, "getuid"):
        return path
    open_to_all = False
    for place in reversed(path.parents):
        try:
            found = place.lstat()
        except FileNotFoundError:  # nor is anything below it there yet
            break
        if open_to_all and found.st_uid not in (_ROOT, os.getuid()):
            raise NotPrivateError(place, "it belongs to somebody else")
        if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IWOTH:
            open_to_all = True
            if not found.st_mode & stat.S_ISVTX:
                raise NotPrivateError(place, "everybody may replace what is in it")
    return path


def write(path: Path, data: bytes, mode: int = 0o600, *, replace: bool = False) -> None:
    """Writes a file that has this mode from the start. Raises FileExistsError unless it may ``replace`` one.

    One that is replaced is so wholly or not at all.
    """
    if replace:
        file, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600, and nobody else's
    else:
        name = str(path)
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(data)
        if replace:
            Path(name).chmod(mode)
            Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def lock(path: Path) -> TextIO | None:
    """Holds a file until what is returned is closed, or this process ends; None if somebody else holds it.

    Raises OSError if there can be no such file.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o600), "r+")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may just have ended, and taken the file along.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except ImportError:  # Windows
            return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()
