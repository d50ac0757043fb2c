"""What is known of one pooled participant: shared by the pool and the table of calls.

A member is one session of one participant, or several in a row if it is told to move. When the participant
reconnects by itself it becomes a new member with a new key, so that nothing meant for the old session can
reach the new one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from manager.core.call import Call


MOVING = -1
"""The ``tag`` of a member that has been told to reconnect and isn't back yet."""


class Work:
    """An instruction that one member works on, or many. For the table of calls alone."""

    __slots__ = ("apart", "call", "tag")

    tag: int
    """Of the instruction; 0: none."""

    call: Call | None
    """Whose instruction that is; None once nobody waits for the answer."""

    apart: bool
    """Whether not all who were given it are still the same: one has other work by now, is gone, or has
    something waiting for it."""


def work_on(tag: int, call: Call | None) -> Work:
    work = Work()  # without an __init__, which would take as long as all the rest
    work.tag, work.call, work.apart = tag, call, False
    return work


IDLE: Final = work_on(0, None)


class _Working:
    """What every call touches of every member: kept together, for it is memory that calls wait for."""

    __slots__ = ("gone", "index", "queue", "work", "worker")


class Member(_Working):
    """One participant for as long as it is pooled. Compared by identity.

    The pool's own are ``lease`` and ``gone``; the table of calls' are ``work``, ``index`` (the member's
    position in the call of its work) and ``queue`` (what comes next; None: nothing yet).

    A member whose participant is told to reconnect is *moving*: it stays the same member, and gets another
    worker and session (``seat``) when it is back.
    """

    __slots__ = (
        "accepts_cancel",
        "attributes",
        "joined_at",
        "key",
        "lease",
        "participant_id",
        "peer",
        "proxy",
        "session",
    )

    def __init__(
        self,
        key: int,
        participant_id: str,
        attributes: Mapping[str, str],
        worker: int,
        session: int,
        peer: str = "",
        accepts_cancel: bool = False,
        joined_at: float = 0.0,
        gone: bool = False,
    ) -> None:
        self.key = key  # unique in the life of a pool, never used again
        self.participant_id = participant_id
        self.attributes = attributes
        self.worker = worker
        self.session = session  # the worker's own number for it
        self.peer = peer
        self.accepts_cancel = accepts_cancel
        self.joined_at = joined_at  # monotonic seconds
        self.lease: int | None = None
        self.gone = gone
        # The callers' stand-in for it; kept here so that each member has one, for as long as it lives:
        self.proxy: Any = None
        self.work = IDLE
        self.index = 0
        self.queue: deque[tuple[Call, int]] | None = None

    def __repr__(self) -> str:
        return f"<Member {self.key}: {self.participant_id!r} on worker {self.worker}>"

    @property
    def tag(self) -> int:
        """Of the instruction that it works on; 0: none."""
        return self.work.tag

    @property
    def call(self) -> Call | None:
        """Whose instruction that is; None once nobody waits for the answer."""
        return self.work.call

    @property
    def busy(self) -> bool:
        """Whether it works on an instruction, one whose call was given up included, or is moving."""
        return self.work.tag != 0

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for what it works on, or for what it is to do next."""
        return self.work.call is not None or bool(self.queue)

    @property
    def moving(self) -> bool:
        return self.work.tag == MOVING

    def turn_to(self, work: Work) -> None:
        """It has this to do from now on, whatever it had before."""
        self.work.apart = True
        self.work = work

    def depart(self) -> None:
        """Its session is over, or about to be."""
        self.gone = True
        self.work.apart = True

    def seat(self, other: Member) -> None:
        """It is back, in the session of ``other``."""
        self.attributes, self.accepts_cancel = other.attributes, other.accepts_cancel
        self.worker, self.session, self.peer = other.worker, other.session, other.peer
        self.joined_at = other.joined_at

    def line_up(self, call: Call, index: int, limit: int) -> bool:
        """It gets the instruction of this call after those that it has; False if ``limit`` wait already."""
        self.work.apart = True
        if self.queue is None:
            self.queue = deque()
        elif len(self.queue) >= limit:
            return False
        self.queue.append((call, index))
        return True

    def line_up_first(self, call: Call, index: int) -> None:
        """It gets the instruction of this call before those that wait."""
        self.work.apart = True
        if self.queue is None:
            self.queue = deque()
        self.queue.appendleft((call, index))

    def step_back(self, call: Call, index: int) -> bool:
        """It won't get that instruction any more. False if it isn't in line."""
        if self.queue is None or (call, index) not in self.queue:
            return False
        self.queue.remove((call, index))
        return True


ANONYMOUS = "anonymous-"
"""How the ids begin that managers make up. No participant may give itself such a one."""


def recognisable(participant_id: str) -> bool:
    """Whether it would be known again when it comes back: its id is its own."""
    return not participant_id.startswith(ANONYMOUS)


def readable(peer: str) -> str:
    """What gRPC calls a peer, for people: ``ipv6:%5B::1%5D:5`` is ``[::1]:5``."""
    scheme, _, address = peer.partition(":")
    return unquote(address) if scheme in ("ipv4", "ipv6") else peer


def printable(participant_id: str) -> str:
    """An id for a log line: participants choose theirs, and must not forge lines or paint the terminal."""
    if participant_id.isprintable() and len(participant_id) <= 80:
        return participant_id
    return repr(participant_id[:80])
