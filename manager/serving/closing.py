"""Closes connections that connections.py says are to be closed: looks at all of them, again and again.

Decides how often, and lets others have a turn meanwhile: strangers choose how many thousands there are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from manager.logs import Sparingly
from manager.serving.connections import Connections
from manager.serving.crowds import Place
from manager.serving.open_sockets import OpenSockets
from manager.serving.refused import Cause

log = logging.getLogger("muster.security")

INTERVAL: Final = 1.0
MOST_INTERVAL: Final = 5.0
SHARE: Final = 0.02
"""Seconds between two looks, at least and at most; and what share of the time they may take in between, where
nobody has to be closed. As soon as somebody has, INTERVAL it is."""

_WHY: Final = {
    Cause.CONNECTIONS_PER_ADDRESS: "one address has more of them than it may (--max-per-address)",
    Cause.IDLE_TIMEOUT: "they have had no stream for long (--idle-timeout)",
}

SLICE: Final = 100
"""Connections that are closed before the event loop has a turn."""


class Closing:
    """For the connections of one server."""

    def __init__(
        self, connections: Connections, sockets: OpenSockets, serves: Callable[[Place], bool]
    ) -> None:
        """``serves``: whether a stream was let in from there."""
        self._connections = connections
        self._sockets = sockets
        self._serves = serves
        self._sparingly = Sparingly(log)

    @property
    def trouble(self) -> str:
        """That no more connections can be made, as a sentence; empty if they can."""
        return self._connections.full

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            closed = 0
            try:
                closed = await self._close_some()
            except Exception:  # the next look may succeed
                self._sparingly.exception("closing", "can't look which connections are to be closed")
            calm = not closed and not self._connections.full
            rest = min(MOST_INTERVAL, self._sockets.took / SHARE) if calm else 0.0
            await asyncio.sleep(max(INTERVAL, rest))

    async def _close_some(self) -> int:
        look = self._connections.look(self._serves, time.monotonic())
        found = await self._sockets.look(look.see)
        due = look.done()
        if self._connections.full:
            self._sparingly.warning("full", "%s", self._connections.full)
        for cause, number in Counter(due.values()).items():
            say = self._sparingly.info if cause is Cause.IDLE_TIMEOUT else self._sparingly.warning
            say(cause, "closed %d connections%s: %s", number, self._connections.where, _WHY[cause])
        count = 0
        for descriptor, connection in found.items():
            if connection.id in due:
                self._sockets.close(descriptor, connection)
                count += 1
                if not count % SLICE:
                    await asyncio.sleep(0)
        return count
