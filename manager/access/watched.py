"""Files that are read anew when they change: certificates, tokens.

Decides when a change is whole. Who replaces a file by another (``rename``) is done at once, but editors and
scripts also write in place, or one file after the other: so what has just changed is left alone until it has
stayed the same for a look. What can't be read then is logged once, and what was read before stays in use; it
is tried again at each look, for nothing may be wrong with the file: a process without a file descriptor to
spare, which strangers can bring about, must not miss for good that a token has been revoked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from manager.logs import Sparingly

T = TypeVar("T")

log = logging.getLogger("muster.security")

LOOK_INTERVAL: Final = 0.5
"""Seconds between two looks."""

MOST_PATIENCE: Final = 6
"""Looks at which files may be found changed again, before they are read all the same."""

_Stamp = tuple[int, int, int] | None


class Watched(Generic[T]):
    """What was read from some files last."""

    def __init__(self, what: str, files: Sequence[str], read: Callable[[], T]) -> None:
        """``what`` is for log lines. Raises ValueError, as ``read`` does, if it can't be read now."""
        self._what = what
        self._files = [Path(file) for file in files]
        self._read = read
        self._taken = self._seen = self._stamps()  # first: what changes while it is read is read again
        self._restless = 0
        self.trouble = ""  # why there is no newer value, as a sentence
        self.value = read()

    def look(self) -> bool:
        """Whether there is a new value. Does a little input and output."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            self._restless += 1
            if self._restless < MOST_PATIENCE:
                return False
        self._restless = 0
        if stamps == self._taken:
            self.trouble = ""  # they are back as they were
            return False
        try:
            self.value = self._read()
        except ValueError as error:
            trouble = f"{self._what} stay as they were: {error}"
            if trouble != self.trouble:
                log.error(trouble)
            self.trouble = trouble
            return False
        self._taken, self.trouble = stamps, ""
        return True

    def _stamps(self) -> list[_Stamp]:
        return [_stamp(file) for file in self._files]


class Watcher(Protocol):
    """What something may be wrong with, such as what holds a file's content."""

    @property
    def trouble(self) -> str: ...


def troubles(*watchers: Watcher | None) -> list[str]:
    """What is wrong with them, a sentence each."""
    # A name of a file may be bytes that are no text.
    found = [each.trouble for each in watchers if each is not None and each.trouble]
    return [text.encode(errors="backslashreplace").decode() for text in found]


async def keep_looking(look: Callable[[], Awaitable[None]]) -> None:
    """Looks every LOOK_INTERVAL, until it is cancelled."""
    sparing = Sparingly(log)
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        try:
            await look()
        except Exception:  # whatever it is, the next look must follow: tokens may be revoked
            sparing.exception("look", "can't look whether certificates or tokens have changed")


def _stamp(file: Path) -> _Stamp:
    """Another one if the file has changed, or has been replaced; None if there is none. Only compared."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_bytes(file: str) -> bytes:
    """Raises ValueError with a sentence."""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"can't read {file}: {error.strerror or error}") from None
