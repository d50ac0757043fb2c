"""Decides the manager's side of the link to the coordinator. Sans-IO.

::

    GREETING ──Welcome──► OPEN ──Identify──► GREETING
        │                  │
        └── Refusal, or silence for the grace period ──► CLOSED

A Hello carries every session there is, so it is also how a new coordinator (or one that lost track) learns
of them. Until it is welcomed the manager repeats it, word for word, and keeps its reports: whichever of the
repeats arrives, the coordinator then knows the sessions as of the first, and the reports tell the rest. The
shell (worker.py) makes the Hello, obeys the orders, and exits when told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from manager.link.end import Frames, LinkEnd
from manager.liveness import Liveness
from manager.payloads.blobs import Payload
from protos import link_pb2

LINK_VERSION = 1

FIRST_GREETING_INTERVAL = 0.05
GREETING_INTERVAL = 1.0
"""Seconds between two Hellos that nobody answers: doubled from the first to the last. The very first one is
often lost, because the connection doesn't exist yet."""


class State(Enum):
    GREETING = auto()
    OPEN = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Greet:
    """Begin a handshake: call ``hello`` with all sessions, drop reports not yet sent, for it says it all."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The coordinator said welcome: reports may be sent."""

    welcome: link_pb2.Welcome


@dataclass(frozen=True, slots=True)
class Obey:
    orders: link_pb2.Orders


@dataclass(frozen=True, slots=True)
class Drain:
    grace: float


@dataclass(frozen=True, slots=True)
class Exit:
    """The link is of no use any more."""

    reason: str


Effect = Greet | Opened | Obey | Drain | Exit


class Uplink:
    """Events in by method, effects out; messages to send are in ``out``."""

    def __init__(self, *, grace: float, now: float) -> None:
        self._end: LinkEnd[link_pb2.Upward, link_pb2.Downward] = LinkEnd(link_pb2.Upward)
        self._coordinator = Liveness(grace, now)
        self._greet_at = now
        self._greet_interval = FIRST_GREETING_INTERVAL
        self._handshake = 0
        self._hello: Frames | None = None
        self.epoch = 0
        self.state = State.GREETING

    @property
    def out(self) -> list[Frames]:
        return self._end.out

    def silence(self, now: float) -> float:
        """Seconds since the coordinator's last word."""
        return self._coordinator.silence(now)

    def hello(self, hello: link_pb2.Hello) -> None:
        """Sends the Hello that Greet asked for, and again until it is welcomed."""
        hello.version = LINK_VERSION
        hello.handshake = self._handshake
        self._hello = [link_pb2.Upward(hello=hello, handshake=self._handshake).SerializeToString()]
        self.out.append(self._hello)

    def report(self, report: link_pb2.Report, payloads: Sequence[Payload]) -> None:
        """Sends a report; only while the state is OPEN."""
        self._end.send(payloads, report=report)

    @property
    def sent(self) -> int:
        """The number of the last report."""
        return self._end.sent

    @property
    def unacknowledged(self) -> int:
        """Reports that the coordinator may not have yet."""
        return self._end.unacknowledged

    def goodbye(self, reason: str) -> None:
        if self.state is State.OPEN:
            self._end.send(goodbye=link_pb2.Goodbye(reason=reason))

    def acknowledge(self) -> None:
        """Acknowledges at once what has been received: the coordinator waits to free memory."""
        self._end.acknowledge()

    def received(self, message: link_pb2.Downward, now: float) -> list[Effect]:
        if self.state is State.CLOSED:
            return []
        self._coordinator.heard(now)
        body = message.WhichOneof("body")
        if body == "welcome":
            welcome = message.welcome
            if welcome.version != LINK_VERSION:
                return self._close(
                    f"the coordinator speaks link version {welcome.version}, this manager {LINK_VERSION}"
                )
            if not 0 < welcome.heartbeat_seconds < welcome.grace_seconds:  # nor nan
                return self._close("the coordinator's heartbeat and grace period make no sense")
            if self.state is State.OPEN and message.epoch != self.epoch:
                return self._greet(now)
            if self.state is State.OPEN or welcome.handshake != self._handshake:
                return []  # to a Hello that has been welcomed before, or is out of date
            self._hello = None
            self.epoch = message.epoch
            self.state = State.OPEN
            self._coordinator.limit = welcome.grace_seconds
            self._end.open(self._handshake, welcome.heartbeat_seconds, now)
            return [Opened(welcome)]
        if body == "refusal":
            return self._close(f"the coordinator refused this manager: {message.refusal.reason}")
        if self.state is State.GREETING:
            return []  # the Hello is repeated anyway
        if body == "identify" or message.epoch != self.epoch:
            return self._greet(now)
        if not self._end.received(message, now):
            return []
        if body == "orders":
            return [Obey(message.orders)]
        if body == "drain":
            return [Drain(message.drain.grace_seconds)]
        return []

    def tick(self, beat: link_pb2.Heartbeat, now: float) -> list[Effect]:
        if self.state is State.CLOSED:
            return []
        if self._coordinator.dead(now):
            return self._close(f"no word from the coordinator for {self._coordinator.silence(now):.1f} s")
        if self.state is State.GREETING:
            if now < self._greet_at:
                return []
            if self._hello is None:
                return self._greet(now)
            # Never so long that this side would seem to have been away (liveness.py).
            longest = min(GREETING_INTERVAL, self._coordinator.limit / 4)
            self._greet_interval = min(longest, 2 * self._greet_interval)
            self._greet_at = now + self._greet_interval
            self.out.append(self._hello)
            return []
        self._end.tick(beat, now)
        return []

    def next_tick(self) -> float:
        """When ``tick`` is due next, in monotonic time."""
        if self.state is State.CLOSED:
            return float("inf")
        return self._greet_at if self.state is State.GREETING else self._end.beat_at

    def _greet(self, now: float) -> list[Effect]:
        self.state = State.GREETING
        self._handshake += 1
        self._greet_interval = FIRST_GREETING_INTERVAL
        self._greet_at = now + self._greet_interval
        return [Greet()]

    def _close(self, reason: str) -> list[Effect]:
        self.state = State.CLOSED
        return [Exit(reason)]
