"""The blocking interface: the same parts as aio.py, on an event loop in a thread of its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Self

from coordinator.control.access import Access
from coordinator.control.client import Link
from coordinator.running import RunningCoordinator
from coordinator.settings import make_settings
from manager.api.arguments import check_factory
from manager.api.participants import Participants
from manager.api.proxy import B, Handle
from manager.core.backend import Backend
from manager.loop import LoopThread
from protos import control_pb2
from protos.bearer import Token
from protos.tls import TLS


class Coordinator(Participants[B]):
    """Worker processes, and one pool of participants across all of them.

    Starts when entered (``with Coordinator(...) as coordinator``) or by ``start``; leaving the block lets
    running calls finish for ``grace`` seconds and ends all processes.

    Args:
        workers: how many worker processes; by default one per CPU.
        listen: ``host:port`` for participants, shared by all workers; port 0 takes any free one. Default
            127.0.0.1:50051.
        participant_proxy_factory: your subclass of ParticipantProxy.
        control: ``host:port`` or ``unix:PATH`` of a control API, for ``coordinator status`` and attached
            scripts; none by default.
        settings: any other field of coordinator.settings.Settings.

    ``start`` raises AddressInUse if another process has an address, WorkerBootError if a worker can't start,
    and StartError otherwise. If all workers die again and again it stops by itself: whoever waits for
    participants, or asks for some, gets Closed with the reason, and calls that ran end with everybody lost.
    """

    def __init__(
        self,
        workers: int | None = None,
        listen: str | None = None,
        participant_proxy_factory: Callable[[Handle], B] | None = None,
        *,
        control: str | None = None,
        **settings: Any,
    ) -> None:
        self._running = RunningCoordinator(
            make_settings(workers=workers, listen=listen, control=control, **settings)
        )
        super().__init__(participant_proxy_factory, LoopThread("muster-coordinator"))
        self._finalizer: weakref.finalize[..., Any] | None = None

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

    def status(self) -> control_pb2.Status:
        """What there is and what goes on, as ``coordinator status`` shows it."""

        async def status() -> control_pb2.Status:
            return self._running.status()

        return self._loop.run(status())

    def start(self) -> None:
        """Blocks until all workers are up. Raises RuntimeError if it was started before."""
        if self._finalizer is not None:
            raise RuntimeError("this coordinator has been started before; make a new one")
        try:
            self._loop.run(self._running.start())
        except BaseException:
            self._loop.close()
            raise
        # A script that forgets to stop it must not leave workers behind.
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._running, None)

    def stop(self, grace: float | None = None) -> None:
        """Lets running calls finish for at most ``grace`` seconds, then ends all worker processes."""
        if self._finalizer is not None:
            self._finalizer.detach()
        _stop(self._loop, self._running, grace)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _stop(loop: LoopThread, running: RunningCoordinator, grace: float | None) -> None:
    if loop.closed:
        return
    if loop.is_current:  # a garbage collection came upon a forgotten coordinator here, of all places
        threading.Thread(target=_stop, args=(loop, running, grace), name="muster-stop").start()
        return
    try:
        loop.run(running.stop(grace))
    finally:
        loop.close()


class Connection(Participants[B]):
    """Attached to a running coordinator: the same interface, from another process. Made by ``connect``.

    Its leases and calls end with it, or with this process, however that ends. Once the coordinator is gone,
    everything raises CoordinatorGone.
    """

    def __init__(
        self,
        link: Link,
        loop: LoopThread,
        participant_proxy_factory: Callable[[Handle], B] | None = None,
    ) -> None:
        super().__init__(participant_proxy_factory, loop)
        self._link = link

    def _get_backend(self) -> Backend:
        return self._link

    def status(self) -> control_pb2.Status:
        """What there is and what goes on, as ``coordinator status`` shows it."""
        return self._loop.run(self._link.status())

    def close(self) -> None:
        """Detaches; leases and calls of this connection end. May be called more than once."""
        if not self._loop.closed:
            try:
                self._loop.run(self._link.close())
            finally:
                self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def connect(
    address: str,
    participant_proxy_factory: Callable[[Handle], B] | None = None,
    timeout: float | None = 10.0,
    *,
    tls: TLS | bool | None = None,
    token: Token | None = None,
) -> Connection[B]:
    """Attaches to the coordinator whose control API is at ``address``, once it is up.

    ``address`` is ``host:port`` or ``unix:PATH``. ``tls`` is for one with TLS: ``TLS(ca="ca.pem")``, or True
    to trust whom the system trusts. ``token`` is for one that asks for it (``--control-tokens``): the token
    itself, or the Path of a file that holds it.

    Returns a Connection; close it, or use it as a context manager. Raises CoordinatorGone if no coordinator
    answers within ``timeout`` seconds (None: it waits for ever), and CredentialsError, at once, if TLS or the
    token is in the way.
    """
    check_factory(participant_proxy_factory)
    access = Access.of(address, tls, token)
    loop = LoopThread("muster-connection")

    async def attach() -> Link:
        link = Link(access)
        await link.open(timeout)
        return link

    try:
        link = loop.run(attach())
    except BaseException:
        loop.close()
        raise
    return Connection(link, loop, participant_proxy_factory)
