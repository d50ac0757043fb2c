"""What proxies and cohorts need of whoever holds the participants.

Three implement it: the dispatcher of a single process or of a coordinator (dispatcher.py), and a training
script attached to a running coordinator (coordinator/client.py). All methods run on the backend's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from manager.calls import Answer
from manager.members import Member


@dataclass(frozen=True, slots=True)
class Acquired:
    """The participants that a request got. ``id`` releases them, if it was a lease."""

    id: int
    members: Sequence[Member]


class Running(Protocol):
    """A call that has been started."""

    @property
    def waiter(self) -> asyncio.Future[None]:
        """Done when the call has finished."""
        ...

    @property
    def outcomes(self) -> Sequence[Answer | None]:
        """In the order of its members."""
        ...


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

    def start_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[bytes],
        timeout: float | None,
        quorum: int | None,
    ) -> Running:
        """Sends serialised ServerMessages: one for all members, or one for each."""
        ...

    def give_up_call(self, call: Running) -> None:
        """Ends the call everywhere; does nothing if it has finished."""
        ...


def check_timeout(timeout: float | None) -> None:
    """Raises ValueError for a timeout that is no length of time, TypeError for one that is no number."""
    if timeout is None:
        return
    try:
        sensible = timeout >= 0  # nor nan
    except TypeError:
        raise TypeError(f"timeout must be None or seconds, not {timeout!r}") from None
    if not sensible:
        raise ValueError(f"timeout must be None or seconds of at least 0, not {timeout!r}")


async def finish(backend: Backend, call: Running) -> Sequence[Answer]:
    """Waits for a call; gives it up if the waiting task is cancelled."""
    try:
        await call.waiter
    except asyncio.CancelledError:
        backend.give_up_call(call)
        raise
    return cast(Sequence[Answer], call.outcomes)
