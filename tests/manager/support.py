"""What the tests of the manager's cores share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from manager.core.members import Member

STEP = 0.01
"""Seconds that a LoopClock goes on at once: less than any interval at which these tests let things be looked
at, so that no look comes late."""


class LoopClock:
    """The time of the loop that runs, from now on: it passes when a test says so, and not by itself."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time()
        loop.time = lambda: self._now  # type: ignore[method-assign]

    def jump(self, seconds: float) -> None:
        """As if the process had been stopped for so long."""
        self._now += seconds

    async def passes(self, seconds: float) -> None:
        """So much time, in which happens what is due."""
        for _ in range(round(seconds / STEP)):
            self.jump(STEP)
            await settled()


class TurnWatch:
    """Counts the turns of the loop that runs, and sees how long the longest was by this clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._last = clock()
        self.turns = 0
        self.longest = 0.0
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        now = self._clock()
        self.turns += 1
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self._loop.call_soon(self._turn)


async def settled() -> None:
    """Lets happen what is due."""
    for _ in range(10):
        await asyncio.sleep(0)


def make_member(
    key: int,
    participant_id: str = "",
    *,
    where: Mapping[str, str] | None = None,
    worker: int = 0,
    accepts_cancel: bool = False,
) -> Member:
    """A member as a transport would make it. Its session has the number of its key."""
    return Member(
        key=key,
        participant_id=participant_id or f"participant-{key}",
        attributes=dict(where or {}),
        worker=worker,
        session=key,
        accepts_cancel=accepts_cancel,
    )
