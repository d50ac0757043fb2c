"""Decides how long is waited for workers to end. Sans-IO; times are monotonic seconds.

Time in which this process was itself stopped (SIGSTOP, a virtual machine that stood still) doesn't count:
when it goes on, what workers said meanwhile is unread, and they are not to be killed for having said nothing.
"""

from __future__ import annotations

from manager.liveness import AWAY_TIME

LOOK = 1.0
"""Seconds between two looks, at most."""

STOPPED = 1.5 * LOOK
"""A gap that is longer shows that this process was stopped, or had no turn."""


class Patience:
    """So many seconds of it."""

    def __init__(self, seconds: float, now: float) -> None:
        self._until = now + seconds
        self._looked_at = now

    def shorten(self, seconds: float, now: float) -> None:
        """Makes it end after so many seconds, if it wouldn't sooner."""
        self.left(now)
        self._until = min(self._until, now + seconds)

    def left(self, now: float) -> float:
        """Seconds that are left; none or fewer: it is over. To be asked every LOOK seconds."""
        gap = now - self._looked_at
        if gap > STOPPED:
            self._until = max(self._until + gap, now + AWAY_TIME)
        self._looked_at = now
        return self._until - now
