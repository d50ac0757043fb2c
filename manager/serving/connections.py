"""Decides which connections of a worker are closed: those without a stream, if they are many or old. Sans-IO.

gRPC could close those on which nothing happens, but its clock starts anew with each stream, be it refused,
and it costs 2.6 KiB for each connection; for an address it has no limit at all. What is here counts are
streams that were let in (crowds.py). Twice as many connections as streams are bearable from one address:
participants that have been told to come back have not gone yet. Without a stream there may be a quarter of
all that there may be, if that is less. Those who have waited for longest are closed first; who shows at last
who it is, is new.

gRPC closes connections that make no handshake, or answer no ping, and tells nobody how many. What is gone at
a look, after about as long as it bears that, is taken for closed by it: an estimate. Those that it closes at
once because there are too many aren't seen at all; that it does is said as ``full``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from manager.limits import Limits
from manager.serving.crowds import Place
from manager.serving.refused import Cause, Refused

NEARLY: Final = 0.75
"""Of the time after which gRPC closes one. Who is gone after that, at a look, is counted as closed by it."""

FULL: Final = 0.98
"""Of as many as there may be: some are always about to go, or to come."""

_SHARE: Final = 4


@dataclass(frozen=True, slots=True)
class Connection:
    id: int  # no other one has it while this one is open
    place: Place  # its other end


class Connections:
    """What was seen of a worker's connections."""

    def __init__(self, limits: Limits, most: int, refused: Refused, where: str = "") -> None:
        """``most``: as many as gRPC keeps. Counts in ``refused``. ``where``: for log lines."""
        self.most = most
        self.where = where
        self.most_of_one = 2 * limits.max_per_address
        self.most_waiting = min(self.most_of_one, max(1, most // _SHARE))
        self.patience = limits.idle_timeout
        silent = 1.5 * limits.keepalive  # a ping, and no answer
        self.least = NEARLY * min(limits.handshake_timeout, silent)
        self.since: dict[int, float] = {}  # seen without a stream since
        self.refused = refused
        self.full = ""
        """If there are as many as there may be: a sentence that says so."""

    def look(self, serves: Callable[[Place], bool], now: float) -> Look:
        """Begins to look. ``serves``: whether a stream was let in from there."""
        return Look(self, serves, now)


class Look:
    """One look at all connections, a few at a time, so that others have a turn meanwhile."""

    def __init__(self, connections: Connections, serves: Callable[[Place], bool], now: float) -> None:
        self._all = connections
        self._serves = serves
        self._now = now
        self._since: dict[int, float] = {}
        self._gone = set(connections.since)
        self._old: list[int] = []
        self._total = 0
        self._number: Counter[str] = Counter()
        self._waiting: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)

    def see(self, connection: Connection) -> None:
        """It is there. Each is seen once."""
        number, place = connection.id, connection.place
        self._total += 1
        self._gone.discard(number)
        if place.origin is not None:
            self._number[place.origin] += 1
        if self._serves(place):
            return
        since = self._since[number] = self._all.since.get(number, self._now)
        if self._now - since >= self._all.patience:
            self._old.append(number)
        if place.origin is not None:
            self._waiting[place.origin].append((since, number))

    def done(self) -> dict[int, Cause]:
        """All have been seen: those to close."""
        before, refused = self._all.since, self._all.refused
        for each in self._gone:
            if self._now - before[each] >= self._all.least:
                refused[Cause.HANDSHAKE_TIMEOUT] += 1
        due = dict.fromkeys(self._old, Cause.IDLE_TIMEOUT)
        for origin, candidates in self._waiting.items():
            excess = max(
                self._number[origin] - self._all.most_of_one, len(candidates) - self._all.most_waiting
            )
            if excess > 0:
                for _, each in sorted(candidates)[:excess]:
                    due.setdefault(each, Cause.CONNECTIONS_PER_ADDRESS)
        refused.update(due.values())
        for each in due:  # they are counted; that they go is no news
            del self._since[each]
        self._all.since = self._since
        self._all.full = self._full()
        if self._all.full:
            refused[Cause.MAX_CONNECTIONS] += 1
        return due

    def _full(self) -> str:
        if self._total < FULL * self._all.most:
            return ""
        text = f"there are {self._total} connections{self._all.where}, as many as there may be: newcomers are"
        text += " cut off"
        (origin, number), *_ = self._number.most_common(1) or [("", 0)]
        if 2 * number > self._total:
            text += f" ({number} of them are from {origin})"
        return text
