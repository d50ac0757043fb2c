"""Decides how many participants are moved from which worker, so that all carry about the same. Sans-IO.

New connections are spread by the system, at random; what is uneven is what happened before: the participants
of a worker that died went to the others, and the one that took its place is empty. So some of those that are
too many are told to reconnect, and land anywhere, or, where workers have ports of their own, where there are
fewest.

A worker has too many if it has more than ``TOLERANCE`` times the mean and ``SLACK`` more (a random spread of
a few is uneven by nature). If one has as much too few, or none where another has several, all that are above
the mean have too many. A few at a time: at most ``SHARE`` of all, or ``FEW``, are on their way at once.
"""

from __future__ import annotations

from collections.abc import Mapping

TOLERANCE = 1.2
SLACK = 2
SHARE = 0.1
FEW = 4

INTERVAL = 0.25
"""Seconds between two looks."""

TIME = 60.0
"""Seconds after the restart of a worker in which one looks, and then for as long as it is uneven. What is so
otherwise came so by chance."""


class Balance:
    """When to look. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._at = self._until = 0.0
        self.uneven = False  # as the last look has found

    def restarted(self, now: float) -> None:
        """A worker has taken the place of another one."""
        self._until = now + TIME

    def due(self, now: float) -> bool:
        if now < self._at or (now >= self._until and not self.uneven):
            return False
        self._at = now + INTERVAL
        return True


def surplus(counts: Mapping[int, int], moving: int = 0) -> dict[int, int]:
    """How many participants to move now, by worker.

    ``counts`` are those of all workers that are up; ``moving`` are on their way, and may land anywhere.
    """
    total = sum(counts.values()) + moving
    if len(counts) < 2 or not total:
        return {}
    mean = total / len(counts)
    most = TOLERANCE * mean + SLACK
    least = min(counts.values())
    if least < mean / TOLERANCE - SLACK or (least == 0 and max(counts.values()) > 1):
        most = mean
    over = {worker: int(n - mean) for worker, n in counts.items() if n > most and n >= mean + 1}
    left = max(FEW, int(SHARE * total)) - moving
    moves: dict[int, int] = {}
    if left <= 0:
        return moves
    for worker in sorted(over, key=lambda worker: (-over[worker], worker)):
        moves[worker] = min(over[worker], left)
        left -= moves[worker]
        if not left:
            break
    return moves
