"""The connections that this process has accepted at a TCP port, to be seen and to be closed.

gRPC neither lists its connections nor closes a single one. But they are files of this process, and the system
does. Where it has no such list (any system but Linux), none are seen. The process may have other servers, at
the same port of another address even; their connections aren't seen, unless this one listens everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable, Collection
from typing import Final

from manager.serving.connections import Connection
from manager.serving.crowds import place_of

_LIST: Final = "/proc/self/fd"
AVAILABLE: Final = os.path.isdir(_LIST)  # noqa: PTH112 - as the list below
"""Whether the system has it."""

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

SLICE: Final = 100
"""Files that are looked at before the event loop has a turn: half a millisecond."""


class OpenSockets:
    """Remembers what it has seen: to look at a socket again takes a single call of the system."""

    def __init__(self, port: int, addresses: Collection[str] | None = None) -> None:
        """``addresses``: those that are listened at; None: all."""
        self._port = port
        self._addresses = addresses
        self._known: dict[int, Connection | None] = {}  # by inode; None: none of the port's
        self.took = 0.0
        """Seconds that the last look has kept the event loop."""

    async def look(self, see: Callable[[Connection], None]) -> dict[int, Connection]:
        """All that are open, by their file descriptors; ``see`` is called with each."""
        if socket.getdefaulttimeout() is not None:
            return {}  # set by whose process this is; Python would impose it on every socket looked at
        known: dict[int, Connection | None] = {}
        found: dict[int, Connection] = {}
        took, began = 0.0, time.perf_counter()
        for count, descriptor in enumerate(_descriptors()):
            if not count % SLICE:
                took += time.perf_counter() - began
                await asyncio.sleep(0)
                began = time.perf_counter()
            with contextlib.suppress(OSError):  # closed meanwhile
                status = os.fstat(descriptor)
                if not stat.S_ISSOCK(status.st_mode):
                    continue
                inode = status.st_ino
                if inode in known:
                    continue  # a duplicate
                if inode in self._known:
                    connection = self._known[inode]
                else:
                    connection = self._connection(descriptor, inode)
                    if os.fstat(descriptor).st_ino != inode:
                        continue  # another file by now
                known[inode] = connection
                if connection is not None:
                    found[descriptor] = connection
                    see(connection)
        self._known = known
        self.took = took + time.perf_counter() - began
        return found

    def _connection(self, descriptor: int, inode: int) -> Connection | None:
        """Without a duplicate: it could keep a socket open that its owner closes, and expects no more of."""
        borrowed = socket.socket(fileno=descriptor)
        try:
            if borrowed.type != socket.SOCK_STREAM or borrowed.family not in _FAMILIES:
                return None
            host, port, *_ = borrowed.getsockname()
            if port != self._port or not self._is_listened_at(host):
                return None
            host, port, *_ = borrowed.getpeername()  # OSError for the socket that listens
        finally:
            borrowed.detach()
        place = place_of(host, port)
        return None if place is None else Connection(inode, place)

    def _is_listened_at(self, host: str) -> bool:
        if self._addresses is None:
            return True
        place = place_of(host, self._port)
        return place is not None and place.address in self._addresses

    def close(self, descriptor: int, connection: Connection) -> None:
        """Ends a connection that was found there; does nothing if another file is there by now.

        Who holds it reads its end, as if its peer had closed it.
        """
        # A duplicate, so that it stays the same socket, whoever closes what meanwhile.
        with contextlib.suppress(OSError):
            duplicate = os.dup(descriptor)
            try:
                if os.fstat(duplicate).st_ino == connection.id:
                    own = socket.socket(fileno=duplicate)
                    try:
                        own.shutdown(socket.SHUT_RDWR)
                    finally:
                        own.detach()
            finally:
                os.close(duplicate)


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_LIST)]  # noqa: PTH208 - numbers are wanted
    except OSError:
        return []
