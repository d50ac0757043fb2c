"""Decides what of a link has to be sent again, and what has been seen before. Sans-IO; both ends use it.

ZeroMQ delivers in order but loses what was in a queue when a peer stops, is replaced, or is slow, without a
word. So each side numbers its messages 1, 2, 3 …, keeps each until the other side has acknowledged it, and
asks for a repeat when it sees a gap (go-back-N). Heartbeats carry the last number sent, which shows a gap at
the tail.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Generic, TypeVar

M = TypeVar("M")


class Verdict(Enum):
    NEW = auto()  # handle it
    REPEAT = auto()  # seen before: ignore it
    GAP = auto()  # something is missing before it: ignore it, ask for a repeat


ACKNOWLEDGE_AFTER = 32
"""Messages received after which an acknowledgement is worth a message of its own."""


class Sequence(Generic[M]):
    """One side's numbers of one link, for messages of type M."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self._acknowledged_to_peer = 0
        self._kept: deque[tuple[int, M]] = deque()

    @property
    def unacknowledged(self) -> int:
        return len(self._kept)

    @property
    def acknowledgement_due(self) -> bool:
        return self.received - self._acknowledged_to_peer >= ACKNOWLEDGE_AFTER

    def next(self) -> int:
        """The number for the next message to be sent; ``keep`` must follow."""
        self.sent += 1
        return self.sent

    def keep(self, message: M) -> None:
        """Keeps the message last numbered until the peer has acknowledged it."""
        self._kept.append((self.sent, message))

    def acknowledge(self) -> int:
        """The acknowledgement to put into an outgoing message."""
        self._acknowledged_to_peer = self.received
        return self.received

    def acknowledged(self, number: int) -> None:
        """The peer has everything up to ``number``."""
        while self._kept and self._kept[0][0] <= number:
            self._kept.popleft()

    def arrived(self, number: int) -> Verdict:
        if number == self.received + 1:
            self.received = number
            return Verdict.NEW
        return Verdict.REPEAT if number <= self.received else Verdict.GAP

    def again(self, start: int) -> list[M]:
        """The messages to repeat from number ``start`` on."""
        return [message for number, message in self._kept if number >= start]
