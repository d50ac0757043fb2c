"""Decides which connections of a worker are closed: those without a stream, if they are many or old. Sans-IO.

gRPC closes connections on which nothing happens, but its clock starts anew with each stream, be it refused,
and it has no limit for an address. So what is here counts are streams that were let in (crowds.py). Twice as
many connections as streams are bearable from one address: participants that have been told to come back have
not gone yet. Those who have waited for longest are closed first; who shows at last who it is, is new.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from manager.crowds import Place

PATIENCE: Final = 1.5
"""Times ``idle_timeout``: gRPC, which says goodbye, is to be first where it closes a connection at all."""

NEARLY: Final = 0.75
"""Of the time after which gRPC closes one. Who is gone after that, at a look, is counted as closed by it."""


class Reason(Enum):
    CROWD = "one address has more of them than it may (--max-per-address)"
    IDLE = "they have had no stream for long (--idle-timeout)"


@dataclass(frozen=True, slots=True)
class Connection:
    id: int  # no other one has it while this one is open
    place: Place  # its other end


class Connections:
    """What was seen of a worker's connections."""

    def __init__(self, max_per_address: int, idle_timeout: float, handshake_timeout: float) -> None:
        self._most = 2 * max_per_address
        self._patience = PATIENCE * idle_timeout
        self._least = NEARLY * min(idle_timeout, handshake_timeout)
        self._since: dict[int, float] = {}  # seen without a stream since
        self.closed = 0
        """Those that were closed for the sake of others, by what this has decided or by gRPC, so far."""

    def look(
        self, there: Iterable[Connection], serves: Callable[[Place], bool], now: float
    ) -> dict[int, Reason]:
        """Those to close, of all that are ``there`` now. ``serves``: whether a stream was let in from it."""
        due: dict[int, Reason] = {}
        since: dict[int, float] = {}
        number: Counter[str] = Counter()
        waiting: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        here: set[int] = set()
        for connection in there:
            here.add(connection.id)
            origin = connection.place.origin
            if origin is not None:
                number[origin] += 1
            if serves(connection.place):
                continue
            seen = since[connection.id] = self._since.get(connection.id, now)
            if now - seen >= self._patience:
                due[connection.id] = Reason.IDLE
            if origin is not None:
                waiting[origin].append((seen, connection.id))
        gone = self._since.keys() - here
        self.closed += sum(now - self._since[each] >= self._least for each in gone)
        self._since = since
        for origin, candidates in waiting.items():
            candidates.sort()
            for _, each in candidates[: max(0, number[origin] - self._most)]:
                due.setdefault(each, Reason.CROWD)
        for each in due:  # they are counted; that they go is no news
            self._since.pop(each, None)
        self.closed += len(due)
        return due
