"""Decides whether the other side of a link still lives. Sans-IO; times are monotonic seconds.

Silence counts only while somebody listens: a process that was itself stopped (SIGSTOP, a closed laptop lid, a
long page-in) finds its peer's messages unread when it wakes up, and must not take that for the peer's death.
"""

from __future__ import annotations

LATE = 1.0
"""Seconds by which a timer that fires so late shows that this process was stopped."""

AWAY_TIME = 3.0
"""Seconds after which all is known that was said while this process was stopped: connections may have to be
made anew."""


class Liveness:
    """Judges by ``limit`` seconds without a word."""

    def __init__(self, limit: float, now: float) -> None:
        self.limit = limit
        self._heard_at = now
        self._looked_at = now

    def heard(self, now: float) -> None:
        self._heard_at = now

    def silence(self, now: float) -> float:
        """Seconds since the last word."""
        return now - self._heard_at

    def dead(self, now: float) -> bool:
        """Whether the silence is over the limit. To be asked often: several times within the limit."""
        if now - self._looked_at > self.limit / 2:
            self._heard_at = now  # we were away: begin anew
        self._looked_at = now
        return now - self._heard_at > self.limit
