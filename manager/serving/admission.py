"""Decides who may join now and who is told to come back, and when. Sans-IO; times are monotonic seconds.

Pace steering, after Bonawitz et al., "Towards Federated Learning at Scale: System Design" (MLSys 2019),
section 2.3: whom a server can't use now it doesn't refuse, it suggests a time to return, and chooses these
times so that few come too soon and no herd returns together. Rather than drawing all of them from one
distribution, this keeps a book of the times it has given out, so that the bound holds for every second and
not only on average. ``u`` is a random number from [0, 1), a new one each time; ``r`` is ``max_joins``.

**Too fast.** A bucket of tokens, ``max(2, 3 r)`` of them and ``r`` more per second; who joins takes one. (To
send somebody away costs a worker more than to let it in: it has to connect once more. So the bucket is as
large as what a worker can bear at once, and the rate counts where a herd is larger still.) Without a token,
the newcomer gets the next free place in a queue with ``r`` places per second::

    place = max(place, now + 0.2) + 1 / r         delay = place - now + u / r

so the last of a herd of *n* returns after about ``(n - 3 r) / r`` seconds, and finds a token if nobody else
came meanwhile. (Others do come, for participants that return may get to any worker; who is too early once
more gets another place.) Those who have a place and have not returned are counted, because the place is a
point in time.

**Full.** A random time in a window, ``come_back`` = (low, high), that grows with the number *w* of those who
were given a time that has not come yet::

    delay = low + u * (max(high, low + 2 * w / r) - low)

and moved on to the next second that has not been given to ``r`` participants already. At most half of the
window's seconds are taken, so that is soon. There is no window of more than MAX_WINDOW: then times are
random.

**Draining.** Who is told to move goes to another worker. Calls wait for such participants, and these must
not be told there to come back later still; so each gets the next free place in a queue of *m* places per
second, the lesser of ``r`` and MOVES_PER_SECOND. Who waits for them (pool.py) counts in the same way::

    place = max(place, now) + 1 / m               delay = 0.25 + place - now + u * 0.5
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from manager.limits import moves_per_second
from manager.serving.refused import Cause, Refused

BURST_TIME: Final = 3.0
"""Seconds' worth of newcomers that may join at once, if none have come for as long."""

LEAST_DELAY: Final = 0.2
"""Seconds before which nobody is told to come back: a connection must be closed and made anew."""

LEAST_MOVE: Final = 0.25
LEAST_MOVE_WINDOW: Final = 0.5
"""Seconds in which a participant of a worker that drains comes to others once its place is there."""

MAX_WINDOW: Final = 3600.0
"""Seconds. A worker that sends so many away that their times are further off than that is under attack."""


class Admission:
    """Of one worker; or of a whole coordinator, which asks only when to come back if it is ``full``."""

    def __init__(
        self,
        *,
        capacity: int,
        max_joins: float,
        come_back: tuple[float, float],
        refused: Refused,
        random: Callable[[], float],
        now: float,
    ) -> None:
        """``capacity`` is how many participants there may be; ``random`` gives numbers from [0, 1).

        Who is turned away is counted in ``refused``.
        """
        self._capacity = capacity
        self._rate = max_joins
        self._low, self._high = come_back
        self._random = random
        self._burst = max(2.0, BURST_TIME * max_joins)
        self._tokens = self._burst
        self._filled_at = now
        self._place = now  # the last one that was given out
        self._begin = math.floor(now)  # the first second of the book
        self._book: dict[int, int] = {}  # how many return in each second, because it was full
        self._away = 0  # the sum of it
        self._move = now  # the last place of one that was told to move
        self._refused = refused

    def newcomer(self, pooled: int, now: float) -> float | None:
        """None: may join those ``pooled``. Else the seconds after which to come back."""
        if pooled >= self._capacity:
            return self.full(now, Cause.MAX_PER_WORKER)
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return None
        self._refused[Cause.MAX_JOINS] += 1
        self._place = max(self._place, now + LEAST_DELAY) + 1 / self._rate
        delay = self._place - now + self._random() / self._rate
        return min(delay, LEAST_DELAY + MAX_WINDOW)

    def full(self, now: float, cause: Cause) -> float:
        """There is no room for a newcomer, for this cause: the seconds after which to come back."""
        self._refused[cause] += 1
        self._turn_the_pages(now)
        width = max(self._high - self._low, min(2 * self._away / self._rate, MAX_WINDOW))
        at = now + self._low + self._random() * width
        if width < MAX_WINDOW:
            most = math.ceil(self._rate)
            while self._book.get(math.floor(at), 0) >= most:
                at += 1
        second = math.floor(at)
        self._book[second] = self._book.get(second, 0) + 1
        self._away += 1
        return at - now

    def move(self, now: float) -> float:
        """One is told to move: the seconds after which it should be at another worker."""
        self._move = max(self._move, now) + 1 / moves_per_second(self._rate)
        return LEAST_MOVE + self._move - now + self._random() * LEAST_MOVE_WINDOW

    def _turn_the_pages(self, now: float) -> None:
        """Forgets the seconds that are over."""
        current = math.floor(now)
        if current - self._begin > len(self._book):
            for second in [second for second in self._book if second < current]:
                self._away -= self._book.pop(second)
        else:
            for second in range(self._begin, current):
                self._away -= self._book.pop(second, 0)
        self._begin = current
