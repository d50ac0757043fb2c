"""The connections that this process has accepted at a TCP port, to be seen and to be closed.

gRPC neither lists its connections nor closes a single one. But they are files of this process, and the system
does. Where it has no such list (any system but Linux), none are seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import Final

from manager.connections import Connection
from manager.crowds import place_of

_LIST: Final = "/proc/self/fd"
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

SLICE: Final = 100
"""Files that are looked at before the event loop has a turn: half a millisecond."""


class OpenSockets:
    """Remembers what it has seen: to look at a socket again takes a single call of the system."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._known: dict[int, Connection | None] = {}  # by inode; None: none of the port's

    async def look(self) -> dict[int, Connection]:
        """All that are open, by their file descriptors."""
        if socket.getdefaulttimeout() is not None:
            return {}  # set by whose process this is; Python would impose it on every socket looked at
        known, found = {}, {}
        for count, descriptor in enumerate(_descriptors()):
            if not count % SLICE:
                await asyncio.sleep(0)
            with contextlib.suppress(OSError):  # closed meanwhile
                status = os.fstat(descriptor)
                if not stat.S_ISSOCK(status.st_mode):
                    continue
                inode = status.st_ino
                if inode in self._known:
                    connection = self._known[inode]
                else:
                    connection = self._connection(descriptor, inode)
                    if os.fstat(descriptor).st_ino != inode:
                        continue  # another file by now
                known[inode] = connection
                if connection is not None:
                    found[descriptor] = connection
        self._known = known
        return found

    def _connection(self, descriptor: int, inode: int) -> Connection | None:
        """Without a duplicate: it could keep a socket open that its owner closes, and expects no more of."""
        borrowed = socket.socket(fileno=descriptor)
        try:
            if borrowed.type != socket.SOCK_STREAM or borrowed.family not in _FAMILIES:
                return None
            if borrowed.getsockname()[1] != self._port:
                return None
            host, port, *_ = borrowed.getpeername()  # OSError for the socket that listens
        finally:
            borrowed.detach()
        place = place_of(host, port)
        return None if place is None else Connection(inode, place)

    def close(self, descriptor: int, connection: Connection) -> None:
        """Ends a connection that was found there; does nothing if another file is there by now.

        Who holds it reads its end, as if its peer had closed it.
        """
        # A duplicate, so that it stays the same socket, whoever closes what meanwhile.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
            if os.fstat(duplicate.fileno()).st_ino == connection.id:
                duplicate.shutdown(socket.SHUT_RDWR)


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_LIST)]  # noqa: PTH208 - numbers are wanted
    except OSError:
        return []
