"""What proxies and cohorts need of whoever holds the participants.

Three implement it: the dispatcher of a single process or of a coordinator (dispatcher.py), and a training
script attached to a running coordinator (coordinator/control/client.py). All methods run on the backend's
event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from manager.core.call import Answer
from manager.core.members import Member
from manager.loop import WATCH_INTERVAL
from manager.payloads.blobs import Payload
from manager.reducing.shares import Reduction


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
    def outcomes(self) -> MutableSequence[Answer | None]:
        """In the order of its members."""
        ...

    @property
    def states(self) -> Sequence[Payload]:
        """What a reducing call has come to: the states of reducers, to be merged."""
        ...

    # How it goes; these may be read from any thread.

    @property
    def answered(self) -> int:
        """Participants that have sent a result."""
        ...

    @property
    def failed(self) -> int:
        """Participants that will send no result."""
        ...

    @property
    def bytes(self) -> int:
        """Size of the results so far."""
        ...


class Waiter(Protocol):
    """Who is told how a call goes, as it goes."""

    def settled(self, call: Any, indices: Sequence[int]) -> None:
        """These have ended; their answers may be taken out of ``call.outcomes``."""
        ...

    def advanced(self, call: Any, answered: int, size: int) -> None:
        """More results of a reducing call, of so many bytes, have been folded in."""
        ...

    def finished(self, call: Any) -> None: ...


class Listener(Waiter, Protocol):
    """A caller who may also have to be told that nothing more will be heard."""

    def failed(self, error: Exception) -> None:
        """Nothing more will be heard of the call."""
        ...


class Backend(Protocol):
    @property
    def reducers(self) -> Collection[str]:
        """Import paths of those that are allowed, besides the built-in ones."""
        ...

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

    def keep(self, instruction: bytes) -> Payload:
        """A serialised ServerMessage as this backend likes it best. May be called from any thread."""
        ...

    def start_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        reduction: Reduction | None = None,
    ) -> Running:
        """Sends instructions: one for all members, or one for each. With ``reduction`` results are folded."""
        ...

    def stream_call(
        self,
        members: Sequence[Member],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        listener: Listener,
    ) -> Running:
        """Like ``start_call``, but ``listener`` is told of outcomes as they come, and takes them out."""
        ...

    def give_up_call(self, call: Running) -> None:
        """Ends the call everywhere; does nothing if it has finished."""
        ...


def time_left(timeout: float | None, began: float) -> float | None:
    """What is left of a timeout that ``began`` then, in monotonic time.

    To prepare an instruction of many megabytes takes a while, which is the caller's.
    """
    return None if timeout is None else max(0.0, timeout - (time.monotonic() - began))


def check_size(payloads: Sequence[Payload], limit: int) -> None:
    """Raises ValueError for an instruction of more than ``limit`` bytes."""
    for payload in payloads:
        if len(payload) > limit:
            raise ValueError(
                f"an instruction of {len(payload)} bytes is over the limit of {limit} (--max-message)"
            )


async def finish(backend: Backend, call: Running, watch: Callable[[], object] | None = None) -> None:
    """Waits for a call; gives it up if the waiting task is cancelled.

    ``watch`` is called now and then, and when the call has finished.
    """
    try:
        if watch is None:
            await call.waiter
        else:
            while not call.waiter.done():
                watch()
                await asyncio.wait([call.waiter], timeout=WATCH_INTERVAL)
            call.waiter.result()
            watch()
    except BaseException:
        backend.give_up_call(call)
        raise
