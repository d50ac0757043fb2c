"""Decides what each message means in the life of one participant's stream. Sans-IO: a table.

::

    NEW ──first message──► IDLE ──instruct──► BUSY
                            ▲                  │
                            └──── answer ──────┘

    NEW, IDLE, BUSY ──leave, end of stream, breach──► ENDED

A participant is pooled from its first message on, so a silent stream is never handed out. At most one
instruction is in flight, and each gets one answer; any other message is a breach that ends the stream.
servicer.py does the reading and writing.
"""

from __future__ import annotations

from enum import Enum, auto

from protos.envelope import Kind


class State(Enum):
    NEW = auto()
    IDLE = auto()
    BUSY = auto()
    ENDED = auto()


class Action(Enum):
    """What the caller has to do about a message."""

    JOIN = auto()
    ANSWER = auto()
    LEAVE = auto()


class BreachError(Exception):
    """A message out of turn. The text is for the participant's developer."""


_TABLE: dict[tuple[State, Kind], tuple[State, Action]] = {
    (State.NEW, Kind.EMPTY): (State.IDLE, Action.JOIN),
    (State.NEW, Kind.HELLO): (State.IDLE, Action.JOIN),
    (State.BUSY, Kind.EMPTY): (State.IDLE, Action.ANSWER),
    (State.BUSY, Kind.RESULT): (State.IDLE, Action.ANSWER),
    (State.BUSY, Kind.FAILURE): (State.IDLE, Action.ANSWER),
    (State.NEW, Kind.LEAVE): (State.ENDED, Action.LEAVE),
    (State.IDLE, Kind.LEAVE): (State.ENDED, Action.LEAVE),
    (State.BUSY, Kind.LEAVE): (State.ENDED, Action.LEAVE),
    (State.ENDED, Kind.LEAVE): (State.ENDED, Action.LEAVE),  # after it was told to reconnect
}

_EXPECTED = {
    State.NEW: "the first message must be empty or a hello",
    State.IDLE: "no instruction is waiting for an answer; the server speaks next",
    State.BUSY: "an instruction is in flight; a result, a failure, an empty message or a leave must follow",
    State.ENDED: "the session has ended; nothing may follow",
}


class Session:
    """One stream's life, as far as its messages decide it."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = State.NEW

    def received(self, kind: Kind) -> Action:
        """A whole message of this kind arrived. Raises BreachError if it is not its turn."""
        step = _TABLE.get((self.state, kind))
        if step is None:
            raise BreachError(f"unexpected {kind.name.lower()} message: {_EXPECTED[self.state]}")
        self.state, action = step
        return action

    def instructed(self) -> bool:
        """An instruction is about to be sent. False if it must not be: the session is not idle."""
        if self.state is not State.IDLE:
            return False
        self.state = State.BUSY
        return True

    def ended(self) -> None:
        """The stream is over, or about to be."""
        self.state = State.ENDED
