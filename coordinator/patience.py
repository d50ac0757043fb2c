"""Decides how long is waited for workers to end. Sans-IO; times are monotonic seconds.

Time in which this process was itself stopped (SIGSTOP, a machine that was suspended) doesn't count: when it
wakes up, what workers said meanwhile is unread, and they are not to be killed for having said nothing.
"""

from __future__ import annotations

LOOK = 1.0
"""Seconds between two looks, at most. A gap of twice as many shows that this process was stopped."""


class Patience:
    """So many seconds of it."""

    def __init__(self, seconds: float, now: float) -> None:
        self._until = now + seconds
        self._looked_at = now

    def shorten(self, seconds: float, now: float) -> None:
        """Makes it end after so many seconds, if it wouldn't sooner."""
        self._until = min(self._until, now + seconds)

    def left(self, now: float) -> float:
        """Seconds that are left; none or fewer: it is over. To be asked every LOOK seconds."""
        gap = now - self._looked_at
        if gap > 2 * LOOK:
            self._until = max(self._until + gap, now + LOOK)
        self._looked_at = now
        return self._until - now
