"""Decides the coordinator's side of the link to one worker. Sans-IO.

::

    AWAITED ──Hello of the expected incarnation──► OPEN ──silence, Goodbye, death──► GONE

One Downlink is one incarnation of one worker; the next incarnation gets a new one, so nothing of the old one
can be taken for the new. The shell (links.py) does what the events say and sends what is in ``out``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from manager.link.end import Frames, LinkEnd
from manager.link.uplink import LINK_VERSION
from manager.liveness import Liveness
from manager.payloads.blobs import Payload
from protos import link_pb2


class State(Enum):
    AWAITED = auto()
    OPEN = auto()
    GONE = auto()


@dataclass(frozen=True, slots=True)
class Greeted:
    """The handshake is done; ``hello.sessions`` is all that this worker holds."""

    hello: link_pb2.Hello


@dataclass(frozen=True, slots=True)
class Reported:
    report: link_pb2.Report


@dataclass(frozen=True, slots=True)
class Beat:
    heartbeat: link_pb2.Heartbeat


@dataclass(frozen=True, slots=True)
class Departed:
    """The worker has drained and is about to exit."""

    reason: str


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing was heard for the liveness time: the worker is dead or wedged."""

    seconds: float


Event = Greeted | Reported | Beat | Departed | Silent


class Downlink:
    """Times are monotonic seconds."""

    def __init__(
        self,
        index: int,
        incarnation: int,
        *,
        epoch: int,
        heartbeat: float,
        liveness: float,
        grace: float,
        memory: link_pb2.Memory | None = None,
    ) -> None:
        """``memory`` is the coordinator's, for the worker to try."""
        self.index = index
        self.incarnation = incarnation
        self.state = State.AWAITED
        self._departed = False
        self._epoch = epoch
        self._handshake = 0
        self._heartbeat = heartbeat
        self._liveness = Liveness(liveness, 0.0)
        self._grace = grace
        self._memory = memory
        self.opens_memory = False
        """Whether the coordinator can open this worker's memory: said in the Welcome."""
        self._end: LinkEnd[link_pb2.Downward, link_pb2.Upward] = LinkEnd(
            functools.partial(link_pb2.Downward, epoch=epoch)
        )

    @property
    def out(self) -> list[Frames]:
        return self._end.out

    def silent_for(self, now: float) -> float:
        """Seconds since the worker was last heard."""
        return self._liveness.silence(now)

    def orders(self, orders: link_pb2.Orders, payloads: Sequence[Payload]) -> None:
        if self.state is State.OPEN:
            self._end.send(payloads, orders=orders)

    def acknowledge(self) -> None:
        """Acknowledges at once what has been received: the worker waits to free memory."""
        if self.state is State.OPEN:
            self._end.acknowledge()

    def drain(self, grace: float) -> None:
        if self.state is State.OPEN:
            self._end.send(drain=link_pb2.Drain(grace_seconds=grace))

    def refuses(self, hello: link_pb2.Hello) -> str | None:
        """Why this Hello can't be accepted, if so."""
        if hello.version != LINK_VERSION:
            return (
                f"link version {hello.version} was offered, {LINK_VERSION} is spoken here; "
                f"install the same version of muster on both sides"
            )
        if hello.incarnation != self.incarnation:
            return f"incarnation {hello.incarnation} of worker {self.index} has been replaced"
        if self.state is State.GONE:
            return f"worker {self.index} has been given up"
        return None

    def begins(self, hello: link_pb2.Hello) -> bool:
        """Whether this Hello begins a handshake, and repeats none that is over or under way."""
        return self.state is not State.OPEN or hello.handshake > self._handshake

    def received(self, message: link_pb2.Upward, now: float) -> list[Event]:
        body = message.WhichOneof("body")
        if body == "hello":
            return self._greeted(message, now)
        self._liveness.heard(now)
        if self._departed:
            self._end.received(message, now)
            self._end.acknowledge()  # what it waits for is lost if its connection was about to break
            return []
        if self.state is not State.OPEN or not self._end.received(message, now):
            return []
        if body == "report":
            return [Reported(message.report)]
        if body == "heartbeat":
            return [Beat(message.heartbeat)]
        if body == "goodbye":
            self._end.acknowledge()  # it waits for this before it exits
            self.state = State.GONE
            self._departed = True
            return [Departed(message.goodbye.reason)]
        return []

    def tick(self, now: float) -> list[Event]:
        if self.state is not State.OPEN:
            return []
        if self._liveness.dead(now):
            self.state = State.GONE
            return [Silent(self._liveness.silence(now))]
        self._end.tick(link_pb2.Heartbeat(), now)
        return []

    def _greeted(self, message: link_pb2.Upward, now: float) -> list[Event]:
        hello = message.hello
        if hello.handshake < self._handshake:
            return []  # overtaken by a later one
        self._liveness.heard(now)
        welcome = link_pb2.Welcome(
            version=LINK_VERSION,
            heartbeat_seconds=self._heartbeat,
            grace_seconds=self._grace,
            handshake=hello.handshake,
            shares_memory=self.opens_memory,
            memory=self._memory,
        )
        self.out.append([link_pb2.Downward(epoch=self._epoch, welcome=welcome).SerializeToString()])
        if self.state is State.OPEN and hello.handshake == self._handshake:
            # The Welcome is late or lost. What was sent after it is kept, and will be asked for again.
            self._end.received(message, now)
            return []
        self.state = State.OPEN
        self._handshake = hello.handshake
        self._end.open(hello.handshake, self._heartbeat, now)
        return [Greeted(hello)]

    def gone(self) -> None:
        self.state = State.GONE
        self._end.out.clear()
