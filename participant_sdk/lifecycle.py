"""Decides what a participant does next, over all of its streams. Sans-IO.

::

               Due                   Received               Answered
    WAITING ────────► IDLE ───────────────────────► BUSY ─────────────┐
       ▲               │ ▲                           │                │
       ├───────────────┘ └───────────────────────────│────────────────┘
       │  Ended, or told to reconnect                │ Ended, or Stop
       │                                             ▼
       └──────────────── Answered ─────────────── ORPHANED ──Answered──► DONE
                                                        (after a Stop, or refused)

The rules behind it (PROTOCOL.md, part A): each instruction is answered exactly once, or not at all if its
stream ends first. A handler can't be killed, only asked to stop; a participant whose handler still works
for a stream that is gone (ORPHANED) doesn't come back before it has returned: it would be pooled as idle.

The shell (runner.py) feeds events in and carries the effects out. The clock and randomness are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from participant_sdk.address import check_address
from participant_sdk.backoff import Backoff
from participant_sdk.errors import AddressError, ParticipantError, ProtocolError, Rejected
from participant_sdk.status import nobody_is_there
from protos import stream_pb2
from protos.sliced import ReceivedMessage

LASTED: Final = 10.0
"""Seconds that a stream must have lasted for its end not to count as one more failed attempt, unless it
brought a message, which counts too."""

STARTING: Final = 5.0
"""Seconds from the first attempt on in which it is no surprise that there is no coordinator yet: both may be
started at once."""


class State(Enum):
    WAITING = auto()  # no stream; a time to connect is set
    IDLE = auto()  # a stream, nothing to do
    BUSY = auto()  # a stream, and a handler at work on its instruction
    ORPHANED = auto()  # a handler at work for a stream that is gone
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Due:
    """The wait is over."""


@dataclass(frozen=True, slots=True)
class Received:
    received: ReceivedMessage


@dataclass(frozen=True, slots=True)
class Answered:
    """The handler has returned; ``data`` is the serialised answer."""

    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over."""

    error: ParticipantError


@dataclass(frozen=True, slots=True)
class Stop:
    """The user wants to leave."""


Event: TypeAlias = Due | Received | Answered | Ended | Stop


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a stream and say hello."""

    address: str


@dataclass(frozen=True, slots=True)
class Perform:
    """Give the message to its handler; Answered must follow."""

    received: ReceivedMessage


@dataclass(frozen=True, slots=True)
class Abort:
    """Ask the handler to stop."""


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Leave:
    """Say goodbye, then close the stream. Nothing more of it counts."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Due must follow in ``seconds``. ``why`` is for people; ``unexpected`` if something went wrong."""

    seconds: float
    why: str
    unexpected: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """It is over; with the error if the user didn't ask for it."""

    error: ParticipantError | None


Effect: TypeAlias = Connect | Perform | Abort | Send | Leave | Wait | Finish


class Lifecycle:
    """One participant, from the first attempt to connect to the end. Begins WAITING for its first Due.

    ``random`` returns random numbers in [0, 1). It gives up when as many attempts in a row have failed again
    as ``attempts`` says (None: never).
    """

    def __init__(
        self,
        address: str,
        *,
        random: Callable[[], float],
        attempts: int | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.state = State.WAITING
        self._home = self._address = check_address(address)
        self._random = random
        self._attempts = attempts
        self._backoff = backoff or Backoff()
        self._starting_until = math.inf
        self._connected_at = 0.0
        self._useful = False
        self._then: Wait | Finish | None = None  # what follows once the handler has returned

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about ``event``; ``now`` is a monotonic time in seconds."""
        match self.state, event:
            case (State.DONE, _) | (State.WAITING | State.ORPHANED, Received() | Ended()):
                return []  # was on its way when the stream was left
            case State.WAITING, Due():
                self.state, self._connected_at, self._useful = State.IDLE, now, False
                self._starting_until = min(self._starting_until, now + STARTING)
                return [Connect(self._address)]
            case ((State.IDLE | State.BUSY), Received(received)):
                self._useful, self._starting_until = True, now
                return self._received(received, now)
            case State.BUSY, Answered(data):
                if self._then is None:
                    self.state = State.IDLE
                    return [Send(data)]
                return [Send(data), Leave("as asked"), self._go_on(self._then)]
            case State.ORPHANED, Answered() if self._then is not None:
                return [self._go_on(self._then)]
            case State.IDLE, Ended(error):
                return [self._go_on(self._after(error, now))]
            case State.BUSY, Ended(error):
                if self._then is None or isinstance(error, Rejected):
                    self._then = self._after(error, now)
                self.state = State.ORPHANED
                return [Abort()]
            case _, Stop():
                return self._stop()
        raise RuntimeError(f"{type(event).__name__} can't happen to a participant that is {self.state.name}")

    def _received(self, received: ReceivedMessage, now: float) -> list[Effect]:
        message = received.message
        kind = message.WhichOneof("kind")
        busy = self.state is State.BUSY
        if kind == "cancel":
            return [Abort()] if busy else []  # idle: it crossed the answer on its way
        if kind == "reconnect":
            then = self._asked_to_reconnect(message.reconnect)
            if busy:
                self._then = then
                return []
            return [Leave("as asked"), self._go_on(then)]
        if busy:
            breach = "sent an instruction while another one was in flight"
            error = ProtocolError(f"the coordinator at {self._address} {breach}", "report this")
            self._then = self._after(error, now)
            self.state = State.ORPHANED
            return [Leave(f"the coordinator {breach}"), Abort()]
        self.state = State.BUSY
        return [Perform(received)]

    def _stop(self) -> list[Effect]:
        finish = Finish(None)
        match self.state:
            case State.IDLE:
                return [Leave("stopped"), self._go_on(finish)]
            case State.WAITING:
                return [self._go_on(finish)]
        was_busy, self.state, self._then = self.state is State.BUSY, State.ORPHANED, finish
        return [Leave("stopped"), Abort()] if was_busy else []

    def _go_on(self, then: Wait | Finish) -> Wait | Finish:
        self.state = State.DONE if isinstance(then, Finish) else State.WAITING
        self._then = None
        return then

    def _after(self, error: ParticipantError, now: float) -> Wait | Finish:
        if isinstance(error, Rejected):
            return Finish(error)
        if self._useful or now - self._connected_at >= LASTED:
            self._backoff.reset()
        if self._attempts is not None and self._backoff.attempts >= self._attempts:
            return Finish(error)
        self._address = self._home  # where it was sent to counts for one stream only: that may be what died
        seconds = self._backoff.next(self._random())
        why = f"{error.what}; trying again in {seconds:.1f} s (attempt {self._backoff.attempts})"
        expected = now < self._starting_until and nobody_is_there(error)
        return Wait(seconds, why, unexpected=not expected)

    def _asked_to_reconnect(self, reconnect: stream_pb2.Reconnect) -> Wait:
        self._backoff.reset()
        seconds = reconnect.delay_seconds
        if not (math.isfinite(seconds) and seconds > 0):  # it says nothing: don't all come at once
            seconds = Backoff(self._backoff.base, self._backoff.cap).next(self._random())
        try:
            self._address = check_address(reconnect.address or self._address)
            where = self._address
        except AddressError as error:
            where = f"{self._address} ({error.what})"
        return Wait(seconds, f"asked to reconnect to {where} in {seconds:.1f} s", unexpected=False)
