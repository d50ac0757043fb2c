"""Decides how much that may take long is begun in one turn of the event loop.

Of a thousand large answers that are there at once each would be one more without a heartbeat, and whoever
hears none for seconds takes this process for dead. So they are begun one after the other, first come, first
served, until the turn has lasted long; the others wait for the next one, and what is small never waits.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

TAKES_LONG: Final = 16 * 1024
"""Bytes of a message from which on it may take milliseconds to look at, or to fold in."""

LONG: Final = 0.02
"""Seconds after which nothing more of that kind is begun in a turn."""


class Turns:
    """Those of one event loop."""

    # Not the loop's own time, which stands still in a turn of uvloop's.
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._waiting: OrderedDict[object, asyncio.Future[None]] = OrderedDict()  # by place, first come first
        self._over: float | None = None  # when this turn has lasted long, once something has begun in it
        self._began = 0  # in this turn
        self._watching = False  # for the next one

    async def wait(self) -> None:
        """Until something that may take long may begin: at once, if little has begun in this turn."""
        if not self._waiting and self._may_begin():
            return
        place = object()
        try:
            while True:
                woken = self._waiting[place] = self._loop.create_future()
                await woken
                if self._may_begin():
                    return
        finally:
            del self._waiting[place]

    def _may_begin(self) -> bool:
        if not self._watching:
            self._watching = True
            self._loop.call_soon(self._next)
        now = self._clock()
        if self._over is None:  # something always may, or nothing ever would on a busy machine
            self._over = now + LONG
        elif now >= self._over:
            return False
        self._began += 1
        return True

    def _next(self) -> None:
        """Another turn. Only as many are woken as may well begin in it: it takes time to wake thousands."""
        most, self._began, self._over = max(1, 2 * self._began), 0, None
        for woken in itertools.islice(self._waiting.values(), most):
            if not woken.done():
                woken.set_result(None)
        self._watching = bool(self._waiting)
        if self._watching:
            self._loop.call_soon(self._next)
