"""Shared memory that is used again: new memory from the system costs several times as much as filling it.

A piece that this process has let go of may still be read by another, which has opened it: the coordinator, or
a script behind it. The kernel knows: a lease to write (fcntl(2), F_SETLEASE) is refused while anybody else
has the file open or mapped. So nobody has to say that it has done with a piece, and whoever dies has. Whether
the kernel at hand does know is tried once; where it doesn't, nothing is used again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from functools import cache
from typing import Final

from manager.payloads.blobs import (
    CAN_SHARE,
    SHARE_SIZE,
    Blob,
    Payload,
    anonymous_memory,
    keep_size,
    seal,
    write,
)

if CAN_SHARE:
    import fcntl

MOST_RESTING: Final = 32 * 1024**2
"""Bytes that are kept for later."""

REST_TIME: Final = 5.0
"""Seconds for which a piece is kept that nobody has needed."""

_TRIES: Final = 4
"""Pieces that are looked at before new memory is taken: who reads may be slow."""

_LARGEST: Final = 4 * 1024**2
"""Bytes of a piece that is kept for later. Of larger ones there are few."""


class Memory:
    """Pieces of one process. Safe to use from any thread."""

    def __init__(self, most: int = MOST_RESTING, clock: Callable[[], float] = time.monotonic) -> None:
        """Keeps ``most`` bytes for later. Somebody must call ``forget`` now and then."""
        self._most = most
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}  # of pieces that may be used again
        self._resting: defaultdict[int, deque[tuple[int, float]]] = defaultdict(deque)  # by size; since when
        self._rests = 0  # bytes of those
        self._given: deque[int] = deque()  # back, and not put away yet

    @property
    def resting(self) -> int:
        """Bytes that are kept for later; some of them may still be read by others."""
        return self._rests

    def take(self, size: int) -> int:
        """A descriptor of memory for ``size`` bytes, to be written from its start. Raises OSError."""
        if os.getpid() != self._pid:  # what rests is in use by the process that was forked
            self._begin()
        room = _room(size)
        if room > min(_LARGEST, self._most) or not can_tell():
            return anonymous_memory()
        with self._lock:
            self._put_away()
            resting = self._resting[room]
            for _ in range(min(_TRIES, len(resting))):
                descriptor, since = resting.popleft()
                if unread(descriptor):
                    self._rests -= room
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    return descriptor
                resting.append((descriptor, since))
        descriptor = anonymous_memory()
        try:
            os.ftruncate(descriptor, room)
            keep_size(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        with self._lock:
            self._sizes[descriptor] = room
        return descriptor

    def blob(self, descriptor: int, size: int, then: Callable[[int], None] | None = None) -> Blob:
        """What has been written there, so many bytes. ``then`` is told the size once this process lets go."""

        def let_go(descriptor: int) -> None:
            self.give_back(descriptor)
            if then is not None:
                then(size)

        again = descriptor in self._sizes
        if not again:
            seal(descriptor)
        return Blob(descriptor, size, let_go, used_again=again)

    def share(self, payload: Payload) -> Payload:
        """As ``blobs.share``: the payload as a Blob, if it is large enough and there is memory for it."""
        size = len(payload)
        if size < SHARE_SIZE or isinstance(payload, Blob) or not CAN_SHARE:
            return payload
        with contextlib.suppress(OSError):
            descriptor = self.take(size)
            try:
                write(descriptor, payload)
            except BaseException:
                self.give_back(descriptor)
                raise
            return self.blob(descriptor, size)
        return payload

    def give_back(self, descriptor: int) -> None:
        """This process doesn't need it any more. Never waits: a garbage collection may come here, in a thread
        that has the lock."""
        if os.getpid() != self._pid:
            os.close(descriptor)
            return
        self._given.append(descriptor)
        if self._lock.acquire(blocking=False):
            try:
                self._put_away()
            finally:
                self._lock.release()

    def _put_away(self) -> None:
        """What was given back rests from now on, or is closed. With the lock."""
        while self._given:
            descriptor = self._given.popleft()
            room = self._sizes.get(descriptor)
            if room is not None and self._rests + room <= self._most:
                self._resting[room].append((descriptor, self._clock()))
                self._rests += room
            else:
                self._sizes.pop(descriptor, None)
                os.close(descriptor)

    def forget(self) -> None:
        """Lets go of what has rested for long."""
        with self._lock:
            self._put_away()
            late, old = self._clock() - REST_TIME, []
            for room, resting in self._resting.items():
                kept = deque(piece for piece in resting if piece[1] > late)
                old += [descriptor for descriptor, since in resting if since <= late]
                self._rests -= room * (len(resting) - len(kept))
                self._resting[room] = kept
            for descriptor in old:
                del self._sizes[descriptor]
        for descriptor in old:
            os.close(descriptor)


def _room(size: int) -> int:
    """Pieces come in few sizes: each half as large again as the one before, or more."""
    room = SHARE_SIZE
    while room < size:
        room = room * 3 // 2 if room & (room - 1) == 0 else room * 4 // 3
    return room


def unread(descriptor: int) -> bool:
    """Whether nobody has opened this memory, or has it mapped still, but by this descriptor itself."""
    try:
        witness = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # too many are open
        return False
    try:
        fcntl.fcntl(witness, fcntl.F_SETSIG, signal.SIGURG)  # ignored, should anybody open it just now
        fcntl.fcntl(witness, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    finally:
        os.close(witness)  # and the lease with it
    return True


@cache
def can_tell() -> bool:
    """Whether this kernel knows who reads a piece of memory."""
    if not CAN_SHARE:
        return False
    try:
        descriptor = anonymous_memory()
    except OSError:
        return False
    try:
        os.ftruncate(descriptor, mmap.PAGESIZE)
        if not unread(descriptor):
            return False
        other = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if unread(descriptor):
                return False
            mapped = mmap.mmap(other, mmap.PAGESIZE, access=mmap.ACCESS_READ)
        finally:
            os.close(other)
        try:
            if unread(descriptor):
                return False
        finally:
            mapped.close()
        return unread(descriptor)
    except (OSError, AttributeError):
        return False
    finally:
        os.close(descriptor)
