"""How callers ask for participants: ``get_participants`` and ``lease``, asyncio and blocking.

Whoever gives access to participants (the single-process manager, the coordinator, an attached script)
inherits one of the two classes and hands it a backend. Proxies are made here, one per member (members.py), so
that a subclass may keep state in them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Generic, cast

from manager.api.arguments import check_factory, check_request
from manager.api.cohort import AsyncCohort, Cohort, Lease
from manager.api.proxy import A, AsyncParticipantProxy, B, Handle, ParticipantProxy
from manager.core.backend import Acquired, Backend
from manager.core.members import Member
from manager.errors import Closed
from manager.loop import LoopThread


class AsyncParticipants(Generic[A]):
    """get_participants and lease, for asyncio."""

    def __init__(self, participant_proxy_factory: Callable[[Handle], A] | None = None) -> None:
        check_factory(participant_proxy_factory)
        self._factory = participant_proxy_factory or cast(Callable[[Handle], A], AsyncParticipantProxy)

    def _get_backend(self) -> Backend:
        raise NotImplementedError

    async def get_participants(
        self,
        min_num_participants: int,
        max_num_participants: int | None = None,
        where: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncCohort[A]:
        """Like Participants.get_participants.

        Those who have been told to reconnect, as when workers are restarted, come along if they are expected
        back within seconds; calls wait for them.
        """
        minimum, maximum = check_request(min_num_participants, max_num_participants, where, timeout)
        acquired = await self._get_backend().acquire(
            minimum, maximum, dict(where or {}), timeout, exclusive=False
        )
        return self._cohort(acquired, None)

    def lease(
        self, n: int, where: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> LeaseRequest[A]:
        """Like Participants.lease; use ``async with manager.lease(n) as cohort`` or await it."""
        n, _ = check_request(n, None, where, timeout)
        return LeaseRequest(lambda: self._lease(n, dict(where or {}), timeout))

    async def _lease(self, n: int, where: Mapping[str, str], timeout: float | None) -> AsyncCohort[A]:
        backend = self._get_backend()
        acquired = await backend.acquire(n, n, where, timeout, exclusive=True)
        return self._cohort(acquired, lambda: backend.release(acquired.id))

    def _cohort(self, acquired: Acquired, release: Callable[[], None] | None) -> AsyncCohort[A]:
        try:
            proxies = [self._proxy(member) for member in acquired.members]
        except BaseException:
            if release is not None:
                release()
            raise
        return AsyncCohort(proxies, self._get_backend(), Lease(release) if release else None)

    def _proxy(self, member: Member) -> A:
        if member.proxy is None:
            member.proxy = _made(self._factory(Handle(member, self._get_backend())), AsyncParticipantProxy)
        return cast(A, member.proxy)


class LeaseRequest(Generic[A]):
    """A lease that is being asked for: await it, or enter it with ``async with``."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, AsyncCohort[A]]]) -> None:
        self._ask = ask
        self._cohort: AsyncCohort[A] | None = None

    def __await__(self) -> Generator[Any, None, AsyncCohort[A]]:
        return self._ask().__await__()

    async def __aenter__(self) -> AsyncCohort[A]:
        self._cohort = await self._ask()
        return self._cohort

    async def __aexit__(self, *exc_info: object) -> None:
        if self._cohort is not None:
            self._cohort.release()


class Participants(Generic[B]):
    """get_participants and lease, for blocking code."""

    def __init__(self, participant_proxy_factory: Callable[[Handle], B] | None, loop: LoopThread) -> None:
        check_factory(participant_proxy_factory)
        self._factory = participant_proxy_factory or cast(Callable[[Handle], B], ParticipantProxy)
        self._loop = loop
        self._making = threading.RLock()  # a signal handler may come in between, and ask too

    def _get_backend(self) -> Backend:
        raise NotImplementedError

    def get_participants(
        self,
        min_num_participants: int,
        max_num_participants: int | None = None,
        where: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Cohort[B]:
        """Blocks until at least ``min_num_participants`` are pooled; returns all that match.

        Participants that somebody has leased don't count. Not exclusive: several callers can get the same
        participants, whose calls then queue up. Callers are served in the order in which they asked.

        Those who have been told to reconnect, as when workers are restarted, come along if they are expected
        back within seconds; calls wait for them.

        Args:
            min_num_participants: wait until at least this many are there. 0 returns an empty cohort at once.
            max_num_participants: return a uniform random choice of at most this many.
            where: only participants whose attributes have these values.
            timeout: seconds; None waits for ever.

        Raises:
            NotEnoughParticipants: fewer were there by the timeout; it says how many, and on which workers.
        """
        minimum, maximum = check_request(min_num_participants, max_num_participants, where, timeout)
        acquired = self._loop.run(
            self._get_backend().acquire(minimum, maximum, dict(where or {}), timeout, exclusive=False)
        )
        return self._cohort(acquired, None)

    def lease(
        self, n: int, where: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> Cohort[B]:
        """``n`` participants, chosen uniformly from the idle ones, that nobody else gets until released.

        Use it as a context manager, or call ``release`` on the cohort. Blocks and raises like
        get_participants. A cohort that others got before may still be called by them.
        """
        n, _ = check_request(n, None, where, timeout)
        backend = self._get_backend()
        leased: list[Acquired] = []

        async def ask() -> None:
            leased.append(await backend.acquire(n, n, dict(where or {}), timeout, exclusive=True))

        async def let_go() -> None:
            backend.release(leased[0].id)

        def release() -> None:
            with contextlib.suppress(Closed):  # then it has ended, too
                self._loop.run(let_go())

        try:
            self._loop.run(ask())
        except BaseException:
            if leased:  # granted in the very moment of a Ctrl-C
                release()
            raise
        return self._cohort(leased[0], release)

    def _cohort(self, acquired: Acquired, release: Callable[[], None] | None) -> Cohort[B]:
        try:
            proxies = [self._proxy(member) for member in acquired.members]
        except BaseException:
            if release is not None:
                release()
            raise
        return Cohort(proxies, self._get_backend(), Lease(release) if release else None, loop=self._loop)

    def _proxy(self, member: Member) -> B:
        with self._making:
            if member.proxy is None:
                handle = Handle(member, self._get_backend(), self._loop)
                made = _made(self._factory(handle), ParticipantProxy)
                if member.proxy is None:  # else a signal handler has been given one meanwhile
                    member.proxy = made
            return cast(B, member.proxy)


def _made(proxy: object, kind: type[object]) -> object:
    """What a factory made, if it is of the right kind. Raises TypeError otherwise."""
    if not isinstance(proxy, kind):
        raise TypeError(
            f"participant_proxy_factory must return a {kind.__name__}, not {type(proxy).__name__}; "
            f"most often it is a subclass of it"
        )
    if not hasattr(proxy, "_backend"):
        raise TypeError(f"{type(proxy).__name__}.__init__ must call super().__init__(handle)")
    return proxy
