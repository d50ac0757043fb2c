"""Decides how long to wait before the next attempt: exponential backoff with full jitter. Sans-IO.

After *n* failed attempts in a row the wait is a random time between 0 and min(cap, base · 2ⁿ). Spreading it
over the whole interval keeps thousands of participants that lost the same coordinator from coming back at the
same time (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MAX_DOUBLINGS: Final = 64


@dataclass(slots=True)
class Backoff:
    """The waits between attempts: ``base`` and ``cap`` in seconds, ``attempts`` since the last reset."""

    base: float = 1.0
    cap: float = 30.0
    attempts: int = 0

    def next(self, random: float) -> float:
        """The seconds to wait before one more attempt; ``random`` is a random number in [0, 1)."""
        wait = random * min(self.cap, self.base * 2.0 ** min(self.attempts, _MAX_DOUBLINGS))
        self.attempts += 1
        return wait

    def reset(self) -> None:
        """The last attempt was worth it: the next waits are short again."""
        self.attempts = 0
