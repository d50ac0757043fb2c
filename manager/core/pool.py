"""Decides who gets which participants, and when. Sans-IO: no clock, no loop, no randomness of its own.

- A request is granted as soon as its minimum of participants match, are free (in no lease) and, for a lease,
  idle. It gets all that match, or a uniform random choice of its maximum.
- Requests are looked at in the order they came. One that can't be granted yet holds back the participants
  that match it from *leases* asked for later, so nobody is overtaken; requests that share nothing don't
  wait for each other.
- A participant is in at most one lease. The newest session of a participant id replaces the older one: after
  a network cut the old stream is dead long before anyone notices.

Events go in by method; ``serve`` and ``expire`` say what came of them. The caller (dispatcher.py) waits,
watches the clock and talks to the workers.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from manager.core.members import Member
from manager.errors import NotEnoughParticipants
from manager.limits import MOVES_PER_SECOND
from manager.liveness import AWAY_TIME

RETURN_TIME = 15.0
"""Seconds in which a participant that was told to reconnect is expected back, once its place in the queue of
those who move is there (admission.py)."""

SOON = 2.0
"""Seconds in which most of them are. So long callers get them as if they were there."""

RETURN_TIME_ANEW = 45.0
"""The same if there was no worker for them for a while, from when on there is one: by then they may wait for
up to 30 s between two attempts. It is more if those who find no room are told to come back later still."""


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody waits for participants. ``deadline`` is a point in monotonic time, or None."""

    id: int
    minimum: int
    maximum: int | None
    where: Mapping[str, str]
    asked_at: float
    deadline: float | None
    exclusive: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """``request`` got these members; with an exclusive request they are leased until ``release``."""

    request: Request
    members: list[Member]


@dataclass(frozen=True, slots=True)
class Shortage:
    """``request`` ran into its deadline: who was there, by worker."""

    request: Request
    matching_by_worker: Mapping[int, int]
    taken: int
    pooled: int
    waited: float

    def error(self) -> NotEnoughParticipants:
        """What the caller is told."""
        request = self.request
        return NotEnoughParticipants(
            asked=request.minimum,
            matching_by_worker=self.matching_by_worker,
            taken=self.taken,
            pooled=self.pooled,
            waited=self.waited,
            where=request.where,
        )


class Pool:
    """All pooled participants, the leases on them, and who waits for them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._members: dict[int, Member] = {}
        self._by_id: dict[str, Member] = {}
        self._moving: dict[int, tuple[Member, float]] = {}  # and until when they are expected; by key
        self._moving_by_id: dict[str, Member] = {}
        self.return_time = RETURN_TIME
        self.return_time_anew = RETURN_TIME_ANEW
        self.returns_per_second: float = MOVES_PER_SECOND
        """How many of those who are told to reconnect are told to come back in the same second."""
        self._last_return = 0.0  # the place of the last of them
        self._missed_from = 0.0  # nobody is, before that; inf: nobody could come back
        self._waiting: dict[int, Request] = {}
        self._leases: dict[int, dict[int, Member]] = {}  # by request, then by key
        self._changed = False

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def leased(self) -> int:
        return sum(len(members) for members in self._leases.values())

    @property
    def away(self) -> list[Member]:
        """All that have been told to reconnect and are expected back."""
        return [member for member, _ in self._moving.values()]

    @property
    def moving(self) -> int:
        """How many these are."""
        return len(self._moving)

    def get(self, key: int) -> Member | None:
        """The member with this key, one that is moving included."""
        member = self._members.get(key)
        return self._moving[key][0] if member is None and key in self._moving else member

    def matching(self, where: Mapping[str, str]) -> list[Member]:
        """All pooled members with these attributes, leased and busy ones included."""
        return [member for member in self._members.values() if _matches(member, where)]

    # Events

    def join(self, member: Member) -> Member | None:
        """A participant is there. Returns the older member of the same id, which the caller must end."""
        replaced = self._by_id.get(member.participant_id)
        self._members[member.key] = member
        self._by_id[member.participant_id] = member
        self._changed = True
        return replaced

    def move(self, member: Member, now: float) -> float:
        """The member has been told to reconnect. Returns until when it is expected back (``missing``).

        It keeps its lease, but nobody else leases it meanwhile.
        """
        self._last_return = max(self._last_return, now) + 1 / self.returns_per_second
        del self._members[member.key]
        if self._by_id.get(member.participant_id) is member:
            del self._by_id[member.participant_id]
        until = self._last_return + self.return_time
        self._moving[member.key] = (member, until)
        self._moving_by_id[member.participant_id] = member
        self._changed = True
        return until

    def back(self, newcomer: Member) -> Member | None:
        """Who this newcomer is, if it was expected: that member is pooled again, in its session."""
        member = self._moving_by_id.get(newcomer.participant_id)
        if member is None or newcomer.joined_at < member.joined_at:
            return None
        del self._moving_by_id[newcomer.participant_id]
        del self._moving[member.key]
        member.seat(newcomer)
        self.join(member)
        return member

    def outdated(self, newcomer: Member) -> bool:
        """Whether a newer session of the same participant is known already: its report came sooner."""
        id = newcomer.participant_id
        known = self._by_id.get(id) or self._moving_by_id.get(id)
        return known is not None and newcomer.joined_at < known.joined_at

    def expects(self, participant_id: str) -> bool:
        """Whether somebody of this name has been told to reconnect."""
        return participant_id in self._moving_by_id

    def knows(self, participant_id: str) -> bool:
        """Whether somebody of this name is there already, or expected: a newcomer takes no other's place."""
        return participant_id in self._by_id or self.expects(participant_id)

    def has_room(self, room: int, now: float) -> None:
        """The workers that let anybody in may have so many participants in all.

        If that is none, nobody is missed until there is one again. If it is too few, nobody is for a while:
        who finds no room is told to come back later.
        """
        if not room:
            self._missed_from = math.inf
        elif self.is_shut or room < len(self._members) + len(self._moving):
            self._missed_from = now + self.return_time_anew

    def was_away(self, now: float) -> None:
        """Nobody has listened for a while: some may be back, and it isn't known yet."""
        self._missed_from = max(self._missed_from, now + AWAY_TIME)

    @property
    def is_shut(self) -> bool:
        """Whether there is no worker that lets anybody in."""
        return self._missed_from == math.inf

    def missing(self, now: float) -> list[Member]:
        """Those that were expected back by now; each must ``leave``."""
        if now < self._missed_from:
            return []
        return [member for member, until in self._moving.values() if until <= now]

    def leave(self, member: Member) -> None:
        """The member's session has ended, or it hasn't come back. Its lease, if any, goes on without it."""
        if self._moving.pop(member.key, None) is not None:
            del self._moving_by_id[member.participant_id]
        elif self._members.pop(member.key, None) is None:
            return
        member.depart()
        if self._by_id.get(member.participant_id) is member:
            del self._by_id[member.participant_id]
        if member.lease is not None:
            del self._leases[member.lease][member.key]
            member.lease = None
        self._changed = True

    def ask(self, request: Request) -> None:
        if request.id in self._waiting or request.id in self._leases:
            raise ValueError(f"request {request.id} exists already")
        if request.deadline is not None and math.isnan(request.deadline):
            raise ValueError(f"the deadline of request {request.id} is not a number")
        self._waiting[request.id] = request
        self._changed = True

    def abandon(self, request_id: int) -> None:
        """Nobody waits for the request any more; if it was just granted as a lease, that is released."""
        self._waiting.pop(request_id, None)
        self._changed = True  # it may have held participants back
        self.release(request_id)

    def release(self, request_id: int) -> None:
        for member in self._leases.pop(request_id, {}).values():
            member.lease = None
            self._changed = True

    # What came of them

    def serve(self, now: float) -> list[Grant]:
        """Grants what can be granted now, in the order of asking.

        Who moves doesn't count, but comes along if it is expected back soon: else who asks anew in each round
        would get a few at a time while workers are restarted.
        """
        if not self._waiting:
            return []
        # Only leases depend on who is idle, which changes all the time.
        leases_wait = any(request.exclusive for request in self._waiting.values())
        if not self._changed and not leases_wait:
            return []
        self._changed = False
        grants: list[Grant] = []
        free = idle = None
        for request in list(self._waiting.values()):
            if len(self._members) < request.minimum and not leases_wait:
                continue  # without a look at each: thousands may be joining just now
            if free is None or idle is None:  # once for all requests
                free = [member for member in self._members.values() if member.lease is None]
                idle = [member for member in free if not member.work.tag] if leases_wait else []
            eligible = _matching(idle if request.exclusive else free, request.where)
            if len(eligible) >= request.minimum:
                del self._waiting[request.id]
                if not request.exclusive and self._moving:
                    eligible = eligible + self._back_soon(request.where, now)
                grants.append(Grant(request, self._take(request, eligible)))
                if not request.exclusive:
                    continue
                free = [member for member in free if member.lease is None]
                idle = [member for member in idle if member.lease is None]
            elif eligible is idle:
                idle = []  # held back from the leases that were asked for later
            elif idle:
                held_back = set(eligible)
                idle = [member for member in idle if member not in held_back]
        return grants

    def expire(self, now: float) -> list[Shortage]:
        """Ends the requests whose deadline has come."""
        shortages = []
        for request in list(self._waiting.values()):
            if request.deadline is not None and request.deadline <= now:
                del self._waiting[request.id]
                self._changed = True
                by_worker = Counter(member.worker for member in self._eligible(request))
                taken = len(self.matching(request.where)) - by_worker.total()
                shortages.append(Shortage(request, by_worker, taken, len(self), now - request.asked_at))
        return shortages

    @property
    def next_deadline(self) -> float | None:
        """When the next request expires or the next moving member is missing."""
        deadlines = [each.deadline for each in self._waiting.values() if each.deadline is not None]
        if self._moving:
            deadlines.append(max(next(iter(self._moving.values()))[1], self._missed_from))
        return min(deadlines, default=None)

    def _back_soon(self, where: Mapping[str, str], now: float) -> list[Member]:
        """Those whose place among those who move was there just now. Calls wait for them."""
        return [
            member
            for member, until in self._moving.values()
            if now < until - self.return_time + SOON and member.lease is None and _matches(member, where)
        ]

    def _eligible(self, request: Request) -> list[Member]:
        return [
            member
            for member in self._members.values()
            if member.lease is None
            and not (request.exclusive and member.busy)
            and _matches(member, request.where)
        ]

    def _take(self, request: Request, eligible: list[Member]) -> list[Member]:
        maximum = request.maximum
        if maximum is None and request.minimum == 0:
            maximum = 0  # who asks for none gets none
        if maximum is not None and maximum < len(eligible):
            eligible = self._rng.sample(eligible, maximum)
        else:
            eligible = list(eligible)
        if request.exclusive:
            self._leases[request.id] = {member.key: member for member in eligible}
            for member in eligible:
                member.lease = request.id
        return eligible


def _matching(members: list[Member], where: Mapping[str, str]) -> list[Member]:
    return [member for member in members if _matches(member, where)] if where else members


def _matches(member: Member, where: Mapping[str, str]) -> bool:
    return all(member.attributes.get(key) == value for key, value in where.items())
