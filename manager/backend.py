"""What proxies and cohorts need of whoever holds the participants.

Three implement it: the dispatcher of a single process or of a coordinator (dispatcher.py), and a training
script attached to a running coordinator (coordinator/client.py). All methods run on the backend's event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from manager.calls import Answer
from manager.members import Member


@dataclass(frozen=True, slots=True)
class Acquired:
    """The participants that a request got. ``id`` releases them, if it was a lease."""

    id: int
    members: Sequence[Member]


class Backend(Protocol):
    async def acquire(
        self,
        minimum: int,
        maximum: int | None,
        where: Mapping[str, str],
        timeout: float | None,
        *,
        exclusive: bool,
    ) -> Acquired:
        """Waits for participants. Raises NotEnoughParticipants after ``timeout`` seconds."""
        ...

    def release(self, acquired_id: int) -> None:
        """Ends a lease; does nothing if it has ended already."""
        ...

    async def call_one(self, member: Member, payload: bytes, timeout: float | None) -> Answer:
        """Sends one serialised ServerMessage and waits for how it ends."""
        ...

    async def call(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
    ) -> Sequence[Answer]:
        """The same to many: ``payloads`` holds one message for all, or one for each."""
        ...
