"""Decides the manager's side of the link to the coordinator. Sans-IO.

::

    GREETING ──Welcome──► OPEN ──Identify──► GREETING
        │                  │
        └── Refusal, or silence for the grace period ──► CLOSED

A Hello carries every session there is, so it is also how a new coordinator (or one that lost track) learns
of them. Until it is welcomed the manager repeats it and keeps its reports. The shell (worker.py) makes the
Hello, obeys the orders, and exits when told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from manager.linkend import Frames, LinkEnd
from protos import link_pb2
from protos.frames import Buffer

LINK_VERSION = 1

GREETING_INTERVAL = 1.0
"""Seconds between two Hellos that nobody answers."""


class State(Enum):
    GREETING = auto()
    OPEN = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Greet:
    """Send a Hello with all sessions; drop reports not yet sent, for the Hello says it all."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The coordinator said welcome: reports may be sent."""


@dataclass(frozen=True, slots=True)
class Obey:
    orders: link_pb2.Orders
    payloads: Sequence[Buffer]


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
        self._grace = grace
        self._greet_at = now
        self._heard_at = now
        self.epoch = 0
        self.state = State.GREETING

    @property
    def out(self) -> list[Frames]:
        return self._end.out

    def hello(self, hello: link_pb2.Hello) -> None:
        hello.version = LINK_VERSION
        self._end.out.append([link_pb2.Upward(hello=hello).SerializeToString()])

    def report(self, report: link_pb2.Report, payloads: Sequence[Buffer]) -> None:
        """Sends a report; only while the state is OPEN."""
        self._end.send(payloads, report=report)

    def goodbye(self, reason: str) -> None:
        if self.state is State.OPEN:
            self._end.send(goodbye=link_pb2.Goodbye(reason=reason))

    def received(self, message: link_pb2.Downward, payloads: Sequence[Buffer], now: float) -> list[Effect]:
        if self.state is State.CLOSED:
            return []
        self._heard_at = now
        body = message.WhichOneof("body")
        if body == "welcome":
            welcome = message.welcome
            if welcome.version != LINK_VERSION:
                return self._close(
                    f"the coordinator speaks link version {welcome.version}, this manager {LINK_VERSION}"
                )
            self.epoch = message.epoch
            self.state = State.OPEN
            self._grace = welcome.grace_seconds
            self._end.open(welcome.heartbeat_seconds, now)
            return [Opened()]
        if body == "refusal":
            return self._close(f"the coordinator refused this manager: {message.refusal.reason}")
        if body == "identify" or (self.state is State.OPEN and message.epoch != self.epoch):
            self.state = State.GREETING
            self._greet_at = now + GREETING_INTERVAL
            return [Greet()]
        if self.state is not State.OPEN or not self._end.received(message, now):
            return []
        if body == "orders":
            return [Obey(message.orders, payloads)]
        if body == "drain":
            return [Drain(message.drain.grace_seconds)]
        return []

    def tick(self, beat: link_pb2.Heartbeat, now: float) -> list[Effect]:
        if self.state is State.CLOSED:
            return []
        if now - self._heard_at > self._grace:
            return self._close(f"no word from the coordinator for {self._grace:g} s")
        if self.state is State.GREETING:
            if now < self._greet_at:
                return []
            self._greet_at = now + GREETING_INTERVAL
            return [Greet()]
        self._end.tick(beat, now)
        return []

    def next_tick(self) -> float:
        """When ``tick`` is due next, in monotonic time."""
        return self._greet_at if self.state is State.GREETING else self._end.beat_at

    def _close(self, reason: str) -> list[Effect]:
        self.state = State.CLOSED
        return [Exit(reason)]
