"""The file of tokens, changed safely: one change at a time, each wholly or not at all.

A new one is for the owner alone. One that the group may read stays so, for that may be how the coordinator
reads it: if it couldn't any more, nobody would be revoked. manager/access/tokens.py decides what is in it.
Running workers see each change by themselves.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

from coordinator import private
from manager.errors import MusterError

T = TypeVar("T")


class TokenFileError(MusterError):
    """The file can't be read or written. The text says why."""


def read(path: Path) -> str:
    """Raises TokenFileError."""
    with _explaining(path, "read"):
        return path.read_text(encoding="utf-8")


def change(path: Path, edit: Callable[[str], tuple[str, T]], *, create: bool = False) -> T:
    """Replaces the text by what ``edit`` makes of it, unless it is the same; returns what it says besides.

    ``create``: a file that isn't there is an empty one. Raises TokenFileError, and what ``edit`` raises.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    with _explaining(path, "change"), _locked(path, create=create) as file:
        before = file.read()
        after, said = edit(before)
        if after != before:
            _replace(path, after, os.fstat(file.fileno()))
        return said


def write_new(path: Path, text: str) -> None:
    """Writes a file that isn't there yet, for the owner alone. Raises TokenFileError."""
    with _explaining(path, "write"):
        try:
            private.write(path, text.encode())
        except FileExistsError:
            raise TokenFileError(f"{path} is there already; remove it, or name another file") from None


@contextmanager
def _explaining(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TokenFileError(f"can't {verb} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise TokenFileError(f"can't {verb} {path}: it isn't UTF-8") from None


@contextmanager
def _locked(path: Path, *, create: bool) -> Iterator[TextIO]:
    """The file, open and locked. Each change replaces it, so who has waited looks whether it still is."""
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            with contextlib.suppress(ImportError):  # Windows
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(os.fstat(descriptor), path.stat())
            except FileNotFoundError:
                continue
            if current:
                yield file
                return


def _replace(path: Path, text: str, before: os.stat_result) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
            if hasattr(os, "fchown") and (before.st_uid, before.st_gid) != (os.getuid(), os.getgid()):
                os.fchown(descriptor, before.st_uid, before.st_gid)  # root changes it for its owner
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600 | before.st_mode & stat.S_IRGRP)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
