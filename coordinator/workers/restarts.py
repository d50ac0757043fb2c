"""Decides what happens when a worker process ends. Sans-IO.

- One that worked is started again, at once the first time, then after exponentially longer waits; these begin
  anew after a life of ``STABLE_AFTER`` seconds.
- One that ended before it said hello waits even the first time. (While the coordinator starts that halts the
  start, for trying again would do the same: supervisor.py.)
- More than ``MAX_DEATHS`` in ``PERIOD`` seconds are a crash loop: the slot is given up, visibly, in the
  manner of OTP's supervisors (intensity and period).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FIRST_WAIT = 0.1
MAX_WAIT = 10.0
STABLE_AFTER = 30.0
MAX_DEATHS = 6
PERIOD = 60.0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the next incarnation after ``delay`` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    reason: str


class RestartPolicy:
    """The record of one slot. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._row = 0

    def died(self, *, booted: bool, lived: float, now: float) -> Restart | GiveUp:
        """A worker of this slot ended on its own, ``lived`` seconds after it was started."""
        while self._deaths and now - self._deaths[0] > PERIOD:
            self._deaths.popleft()
        self._deaths.append(now)
        if len(self._deaths) > MAX_DEATHS:
            return GiveUp(f"it died {len(self._deaths)} times within {PERIOD:g} s")
        if lived >= STABLE_AFTER:
            self._row = 0
        self._row += 1
        if booted and self._row == 1:
            return Restart(0.0)
        doublings = min(self._row - 1, 10)  # by then MAX_WAIT is reached, and a float is not yet full
        return Restart(min(MAX_WAIT, FIRST_WAIT * 2**doublings))
