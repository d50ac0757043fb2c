"""The asyncio interface: a coordinator in this process, or a connection to a running one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Self

from coordinator.control.access import Access
from coordinator.control.client import Link
from coordinator.running import RunningCoordinator
from coordinator.settings import make_settings
from manager.api.arguments import check_factory
from manager.api.cohort import AsyncCohort as Cohort
from manager.api.participants import AsyncParticipants
from manager.api.proxy import A, Handle
from manager.api.proxy import AsyncParticipantProxy as ParticipantProxy
from manager.core.backend import Backend
from protos import control_pb2
from protos.bearer import Token
from protos.tls import TLS


class Coordinator(AsyncParticipants[A]):
    """The asyncio twin of ``coordinator.Coordinator``, with the same arguments.

    Use it as ``async with Coordinator(...) as coordinator``.
    """

    def __init__(
        self,
        workers: int | None = None,
        listen: str | None = None,
        participant_proxy_factory: Callable[[Handle], A] | None = None,
        *,
        control: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(participant_proxy_factory)
        self._running = RunningCoordinator(
            make_settings(workers=workers, listen=listen, control=control, **settings)
        )

    def _get_backend(self) -> Backend:
        return self._running.dispatcher

    @property
    def listen(self) -> str:
        """``host:port`` where participants connect (the first one, where workers don't share a port)."""
        return self._running.listen

    @property
    def control(self) -> str:
        """``host:port`` or ``unix:PATH`` of the control API; empty if it was not asked for."""
        return self._running.control

    async def status(self) -> control_pb2.Status:
        """What there is and what goes on, as ``coordinator status`` shows it."""
        return self._running.status()

    async def start(self) -> None:
        """Returns when all workers are up; raises like ``coordinator.Coordinator``."""
        await self._running.start()

    async def stop(self, grace: float | None = None) -> None:
        """Lets running calls finish for at most ``grace`` seconds, then ends all worker processes."""
        await self._running.stop(grace)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()


class Connection(AsyncParticipants[A]):
    """The asyncio twin of ``coordinator.Connection``; made by ``connect``."""

    def __init__(self, link: Link, participant_proxy_factory: Callable[[Handle], A] | None = None) -> None:
        super().__init__(participant_proxy_factory)
        self._link = link

    def _get_backend(self) -> Backend:
        return self._link

    async def status(self) -> control_pb2.Status:
        """What there is and what goes on, as ``coordinator status`` shows it."""
        return await self._link.status()

    async def close(self) -> None:
        """Detaches; leases and calls of this connection end."""
        await self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class Connecting(Generic[A]):
    """A connection that is being made: await it, or enter it with ``async with``."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Connection[A]]]) -> None:
        self._make = make
        self._connection: Connection[A] | None = None

    def __await__(self) -> Generator[Any, None, Connection[A]]:
        return self._make().__await__()

    async def __aenter__(self) -> Connection[A]:
        self._connection = await self._make()
        return self._connection

    async def __aexit__(self, *exc_info: object) -> None:
        if self._connection is not None:
            await self._connection.close()


def connect(
    address: str,
    participant_proxy_factory: Callable[[Handle], A] | None = None,
    timeout: float | None = 10.0,
    *,
    tls: TLS | bool | None = None,
    token: Token | None = None,
) -> Connecting[A]:
    """The asyncio twin of ``coordinator.connect``, with the same arguments.

    Use it as ``async with connect(...) as connection``, or await it and close the connection yourself.
    """
    check_factory(participant_proxy_factory)
    link = Link(Access.of(address, tls, token))

    async def make() -> Connection[A]:
        await link.open(timeout)
        return Connection(link, participant_proxy_factory)

    return Connecting(make)


__all__ = ["Cohort", "Connection", "Coordinator", "ParticipantProxy", "connect"]
