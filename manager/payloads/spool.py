"""Where large answers are kept while they arrive: in memory up to a limit, the slow ones on disk.

Decides who gets memory. Uploads take it in the order in which they come and wait for it, unread, so that
their senders feel it. But a slow one makes nobody wait for long: while somebody does, uploads that have stood
still for a moment are moved to disk. There is a limit for the disk as well, and an upload that goes beyond it
fails; it counts what has come, not what was announced, so that nobody takes room by words. What is kept is
a Blob (blobs.py); with the last reference to it the room is free again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections import deque
from functools import partial
from pathlib import Path
from typing import Final

from manager.payloads.blobs import CAN_SHARE, SHARE_SIZE, Blob, Payload, write
from manager.payloads.memory import Memory
from protos.chunks import Store, in_memory

log = logging.getLogger("muster.spool")

MOST_FILES: Final = 512
"""How many answers are kept on disk at a time. Each takes an open file, as a participant does."""

PATIENCE: Final = 0.25
"""Seconds for which an upload may stand still while others wait for its memory."""

SPARE_DISK: Final = 1024**3
"""Bytes of the disk that are left to others."""


class NoRoomError(Exception):
    """There is no room for an answer. The text says so to the participant's caller."""


class Spool:
    """The room that one process has for messages that arrive in chunks."""

    def __init__(
        self, memory: int, disk: int, pieces: Memory | None = None, directory: Path | None = None
    ) -> None:
        """Has so many bytes. ``pieces`` is where memory comes from; ``directory`` is where files go, by
        default the system's place for temporary ones."""
        self.pieces = pieces or Memory(0)
        self._memory = memory
        self._free = memory
        self._disk = disk
        self._on_disk = 0  # bytes
        self._files = 0
        self._directory = directory or Path(tempfile.gettempdir())
        self._loop = asyncio.get_running_loop()
        self._uploads: weakref.WeakSet[Upload] = weakref.WeakSet()  # in memory, not whole yet
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

    @property
    def free(self) -> int:
        """Bytes of memory that aren't taken."""
        return self._free

    @property
    def on_disk(self) -> int:
        """Bytes of the disk that are taken."""
        return self._on_disk

    async def room(self, size: int) -> Store[Payload]:
        """A place for a message of ``size`` bytes. Waits for memory, if need be."""
        if not CAN_SHARE or size < SHARE_SIZE:
            return in_memory(size)
        if size > self._memory:
            return Upload(self, size)
        if self._waiting or size > self._free:
            turn: asyncio.Future[None] = self._loop.create_future()
            entry = (size, turn)
            self._waiting.append(entry)
            self._watch()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.returned(size)  # it was given in this very moment
                else:
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(entry)
                    self._serve()
                raise
        else:
            self._free -= size
        upload = Upload(self, size, in_memory=True)
        self._uploads.add(upload)
        return upload

    def returned(self, size: int) -> None:
        """So many bytes of memory are free again. May be called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._returned, size)

    def whole(self, upload: Upload) -> None:
        """Nothing more will come of this upload: it needn't be moved."""
        self._uploads.discard(upload)

    def file(self, size: int) -> int:
        """A descriptor of a file without a name, to be given back by ``deleted``. Raises NoRoomError or
        OSError."""
        if self._files >= MOST_FILES:
            raise NoRoomError(f"it has {self._files} answers on disk, as many as there may be")
        left = shutil.disk_usage(self._directory).free
        if left - SPARE_DISK < size:
            raise NoRoomError(f"{self._directory} has {left} bytes left")
        if not self._told:
            self._told = True
            log.info("large answers that come slowly are kept in %s", self._directory)
        with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
            descriptor = os.dup(file.fileno())
        self._files += 1
        return descriptor

    def take_disk(self, size: int) -> None:
        """So many bytes are about to be written to a file. Raises NoRoomError."""
        if self._on_disk + size > self._disk:
            raise NoRoomError(
                f"answers take {self._on_disk} bytes of the disk, and may take {self._disk} (--upload-disk)"
            )
        self._on_disk += size

    def deleted(self, size: int) -> None:
        """A file of so many bytes is gone. May be called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deleted, size)

    def _deleted(self, size: int) -> None:
        self._on_disk -= size
        self._files -= 1

    def _returned(self, size: int) -> None:
        self._free += size
        self._serve()

    def _serve(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            size, turn = self._waiting.popleft()
            if not turn.done():  # else whoever waited is gone
                self._free -= size
                turn.set_result(None)

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(PATIENCE, self._make_room)

    def _make_room(self) -> None:
        """Moves those to disk that others wait for in vain."""
        self._timer = None
        if not self._waiting:
            return
        still = time.monotonic() - PATIENCE
        for upload in [upload for upload in self._uploads if upload.moved_at < still]:
            self._uploads.discard(upload)
            upload.move()
        self._watch()


class Upload:
    """A message of which some has arrived. Dropping it frees what it took."""

    def __init__(self, spool: Spool, size: int, *, in_memory: bool = False) -> None:
        self.moved_at = time.monotonic()
        """When the last of it came."""
        self._spool = spool
        self._size = size
        self._in_memory = in_memory
        self._filled = 0  # bytes in memory
        self._written = 0  # to disk
        self._descriptor = -1
        self._error: Exception | None = None
        try:
            self._descriptor = spool.pieces.take(size) if in_memory else spool.file(size)
        except (OSError, NoRoomError) as error:
            self._fail(error)

    def add(self, data: bytes | memoryview) -> None:
        self.moved_at = time.monotonic()
        if self._error is None:
            try:
                if self._in_memory:
                    self._filled += len(data)
                else:
                    self._take_disk(len(data))
                write(self._descriptor, data)
            except (OSError, NoRoomError) as error:  # the disk is full after all
                self._fail(error)

    def finish(self) -> Payload:
        """The whole message. Raises NoRoomError if it could not be kept."""
        self._spool.whole(self)
        if self._error is not None:
            raise NoRoomError(f"the worker has no room for its answer of {self._size} bytes: {self._error}")
        descriptor, self._descriptor = self._descriptor, -1
        if not self._in_memory:
            return Blob(descriptor, self._size, partial(_delete, self._spool, self._size))
        self._in_memory = False
        return self._spool.pieces.blob(descriptor, self._size, self._spool.returned)

    def move(self) -> None:
        """Goes on on disk."""
        if self._error is not None or not self._in_memory:
            return
        try:
            file = self._spool.file(self._size)
        except (OSError, NoRoomError) as error:
            self._fail(error)
            return
        memory = self._descriptor
        self._descriptor, self._in_memory = file, False
        try:
            self._take_disk(self._filled)
            done = 0
            while done < self._filled:
                done += os.sendfile(file, memory, done, self._filled - done)
        except (OSError, NoRoomError) as error:
            self._fail(error)
        finally:
            self._spool.pieces.give_back(memory)
            self._spool.returned(self._size)

    def _take_disk(self, size: int) -> None:
        self._spool.take_disk(size)
        self._written += size

    def _fail(self, error: Exception) -> None:
        """The rest is taken in without being kept."""
        self._error = error
        self._drop()

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if self._in_memory:
            self._in_memory = False
            if descriptor >= 0:
                self._spool.pieces.give_back(descriptor)
            self._spool.returned(self._size)
        elif descriptor >= 0:
            _delete(self._spool, self._written, descriptor)

    def __del__(self) -> None:
        self._drop()


def _delete(spool: Spool, size: int, descriptor: int) -> None:
    """A file of so many bytes goes with its descriptor."""
    os.close(descriptor)
    spool.deleted(size)
