"""Large payloads outside of the Python heap, which other processes of this machine read without a copy.

A ``Blob`` is a file without a name: anonymous memory (memfd), or, by way of spool.py, an unlinked file.
Another process of the same user opens it through ``/proc/<pid>/fd/<descriptor>``; how it learns of the
descriptor, and when its maker lets go of it, is for the protocols to say (PROTOCOL.md B.2). The kernel frees
the memory with the last descriptor or mapping, whoever dies when: there is nothing to clean up.

Where there is no memfd (macOS, Windows), or peers can't open each other's files, payloads travel as bytes.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

from protos import link_pb2
from protos.frames import Buffer, Shared

log = logging.getLogger("muster.link")

try:
    import fcntl

    _SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
except (ImportError, AttributeError):
    _SEALS = 0

CAN_SHARE: Final = hasattr(os, "memfd_create") and bool(_SEALS) and Path("/proc/self/fd").is_dir()
"""Whether this platform has what it takes."""

SHARE_SIZE: Final = 256 * 1024
"""Payloads of at least this many bytes are passed as blobs. Below, copying them is cheaper."""

MANY_DESCRIPTORS: Final = 256
"""The number of a descriptor from which on a process has many open."""

_MAPS_WITHOUT: Final = sys.version_info >= (3, 13)
"""Whether a mapping does without a descriptor of its own. Before Python 3.13 each keeps one."""

HEAD: Final = 16
"""Bytes of a blob that tell what kind of message it holds."""


class Blob:
    """A payload that never changes. Frees its memory when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_descriptor", "_let_go", "_used_again", "_view", "size")

    def __init__(
        self,
        descriptor: int,
        size: int,
        let_go: Callable[[int], object] = os.close,
        *,
        used_again: bool = False,
    ) -> None:
        """Takes the descriptor over, and gives it to ``let_go`` once this process doesn't need it any more.
        ``used_again``: what is there then may change when nobody else reads it (memory.py).
        """
        self._descriptor = descriptor
        self._let_go = let_go
        self._used_again = used_again
        self._view: memoryview | None = None
        self.size = size

    @classmethod
    def of(cls, data: bytes | memoryview) -> Blob:
        """A copy of ``data`` in memory that can be shared. Raises OSError if there is none."""
        descriptor = anonymous_memory()
        try:
            write(descriptor, data)
            seal(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, len(data))

    def __len__(self) -> int:
        return self.size

    def __del__(self) -> None:
        self._close()

    @property
    def descriptor(self) -> int:
        """The file descriptor in this process; -1 once it only keeps the content mapped."""
        return self._descriptor

    def head(self) -> bytes:
        """The first bytes, without mapping it."""
        return os.pread(self._descriptor, HEAD, 0) if self._view is None else bytes(self._view[:HEAD])

    def view(self) -> memoryview:
        """The content, read-only. It stays valid for as long as anybody refers to it."""
        if self._view is None:
            if self.size == 0:
                return memoryview(b"")
            self._view = memoryview(self._map())
        return self._view

    def _map(self) -> mmap.mmap:
        if not self._used_again:
            return _map(self._descriptor, self.size)
        # As a reader of its own, so that the kernel knows of it for as long as anybody refers to the view.
        descriptor = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _map(descriptor, self.size)
        finally:
            os.close(descriptor)

    def settle(self) -> None:
        """Keeps the content but gives the descriptor back: of those a process has few."""
        if self._view is None and not _MAPS_WITHOUT and self._descriptor >= MANY_DESCRIPTORS:
            self._view = memoryview(bytes(self.view()))
        self.view()
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._let_go(descriptor)


def _map(descriptor: int, size: int) -> mmap.mmap:
    """The content, mapped; without keeping another descriptor for it, where Python can."""
    if _MAPS_WITHOUT:
        options: dict[str, Any] = {"trackfd": False}
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, **options)
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)


Payload: TypeAlias = bytes | memoryview | Blob
"""A serialised message on its way through."""


def view_of(payload: Payload) -> bytes | memoryview:
    """The content of a payload."""
    return payload.view() if isinstance(payload, Blob) else payload


def share(payload: Payload) -> Payload:
    """The payload as a Blob, if it is large enough and there is memory for it."""
    if len(payload) >= SHARE_SIZE and not isinstance(payload, Blob) and CAN_SHARE:
        with contextlib.suppress(OSError):
            return Blob.of(payload)
    return payload


def anonymous_memory() -> int:
    """A descriptor of new shared memory that can be sealed."""
    descriptor = os.memfd_create("muster", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if descriptor < 3:  # a process without stdio: 0 means none in the protocols
        try:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        finally:
            os.close(descriptor)
    return descriptor


def write(descriptor: int, data: bytes | memoryview) -> None:
    """Writes all of it. Raises OSError if there is no room."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def seal(descriptor: int) -> None:
    """Nobody can change or shorten this memory any more, so that whoever maps it is safe."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


def keep_size(descriptor: int) -> None:
    """Nobody can shorten this memory any more: whoever maps it is safe from that."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def open_shared(pid: int, shared: Shared, *, sealed: bool = False) -> Blob:
    """Opens a payload in the memory of another process.

    With ``sealed`` it must be memory that nobody can change: so a stranger can't name just any file that this
    user may read. Raises OSError if it isn't there, or isn't what it is said to be.
    """
    # Non-blocking: it may turn out to be a pipe.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(f"/proc/{pid}/fd/{shared.descriptor}", flags)
    try:
        if sealed and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError(f"descriptor {shared.descriptor} of process {pid} isn't sealed memory")
        size = os.fstat(descriptor).st_size
        if size < shared.size:
            raise OSError(
                f"descriptor {shared.descriptor} of process {pid} has {size} bytes, not {shared.size}"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return Blob(descriptor, shared.size)


def open_all(payloads: Iterable[Buffer | Shared], pid: int, whose: str) -> list[Payload | None]:
    """The payloads of a link message, with those in its sender's memory opened; None for what can't be."""
    opened: list[Payload | None] = []
    for payload in payloads:
        if isinstance(payload, Shared):
            try:
                opened.append(open_shared(pid, payload))
            except OSError as error:
                log.error("can't open a payload in the memory of %s: %s", whose, error)
                opened.append(None)
        else:
            opened.append(payload)
    return opened


class Sample:
    """A piece of this process's memory for a peer to try, in a handshake."""

    def __init__(self) -> None:
        self._content = secrets.token_bytes(16)
        self._blob = None
        if CAN_SHARE:
            with contextlib.suppress(OSError):
                self._blob = Blob.of(self._content)

    def message(self) -> link_pb2.Memory | None:
        """What to tell the peer; None if there is nothing to try."""
        if self._blob is None:
            return None
        return link_pb2.Memory(pid=os.getpid(), descriptor=self._blob.descriptor, content=self._content)


def can_open(memory: link_pb2.Memory) -> bool:
    """Whether this process can open the other's memory: tries it."""
    if not CAN_SHARE or not memory.descriptor:
        return False
    try:
        blob = open_shared(memory.pid, Shared(memory.descriptor, len(memory.content)), sealed=True)
    except OSError:
        return False
    return bytes(blob.view()) == memory.content
