"""The participants that a caller got: a sequence of proxies that can be called all at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Self, TypeVar, overload

from manager.backend import Backend, check_timeout, finish
from manager.calls import Answer
from manager.loop import LoopThread
from manager.outcome import Outcome, build
from manager.proxy import A, B, _Proxy, serialised
from protos import stream_pb2

P = TypeVar("P", bound=_Proxy)

Message = stream_pb2.ServerMessage


class Lease:
    """The end of a lease, shared by a cohort and its parts. It comes once, from any thread."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._lock = threading.RLock()  # a signal handler may come in between, and release too
        self._released = False

    def release(self) -> None:
        with self._lock:
            if not self._released:
                self._release()
                self._released = True  # not before: it may be interrupted


class _Cohort(Sequence[P], Generic[P]):
    """A fixed sequence of proxies. Participants that leave stay in it, and are *lost* to calls."""

    def __init__(self, proxies: Sequence[P], backend: Backend, lease: Lease | None = None) -> None:
        self._proxies = list(proxies)
        self._backend = backend
        self._lease = lease

    @overload
    def __getitem__(self, index: int) -> P: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> P | Self:
        if isinstance(index, slice):
            return self._part(self._proxies[index])
        return self._proxies[index]

    def __len__(self) -> int:
        return len(self._proxies)

    def __iter__(self) -> Iterator[P]:
        return iter(self._proxies)

    def __contains__(self, proxy: object) -> bool:
        return proxy in self._proxies

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} participants>"

    @property
    def ids(self) -> list[str]:
        return [proxy.id for proxy in self._proxies]

    def sample(self, k: int, seed: int | None = None) -> Self:
        """``k`` of them, chosen uniformly without replacement; the same ones for the same seed.

        A part of a leased cohort shares its lease. Raises ValueError if there are fewer than ``k``.
        """
        if k > len(self):
            raise ValueError(f"can't sample {k} of {len(self)} participants")
        return self._part(random.Random(seed).sample(self._proxies, k))  # noqa: S311 - not for secrets

    def _part(self, proxies: Sequence[P]) -> Self:
        raise NotImplementedError

    def _prepare(
        self,
        instruction: Message | Mapping[P, Message] | Sequence[Message],
        timeout: float | None,
        quorum: int | None,
    ) -> tuple[list[P], list[bytes]]:
        """Who is asked, and the payloads: one for all, or one for each."""
        check_timeout(timeout)
        if quorum is not None and quorum < 1:
            raise ValueError(f"a quorum of {quorum} makes no sense; it must be at least 1")
        if quorum is not None and quorum > len(self):
            raise ValueError(f"a quorum of {quorum} can't be reached by {len(self)} participants")
        if isinstance(instruction, Message | str):
            return self._proxies, [serialised(instruction)]  # which refuses a str
        if isinstance(instruction, Mapping):
            known = set(self._proxies)
            strangers = [proxy for proxy in instruction if proxy not in known]
            if strangers:
                raise ValueError(f"{strangers[0]!r} is not in this cohort")
            return list(instruction), [serialised(message) for message in instruction.values()]
        if len(instruction) != len(self):
            raise ValueError(f"{len(instruction)} instructions for {len(self)} participants")
        return self._proxies, [serialised(message) for message in instruction]

    def _let_go(self) -> None:
        if self._lease is not None:
            self._lease.release()


class AsyncCohort(_Cohort[A]):
    """The asyncio twin of Cohort."""

    def _part(self, proxies: Sequence[A]) -> Self:
        return type(self)(proxies, self._backend, self._lease)

    async def run(
        self,
        instruction: Message | Mapping[A, Message] | Sequence[Message],
        timeout: float | None = None,
        quorum: int | None = None,
    ) -> Outcome[A]:
        """Like Cohort.run. Cancelling the task gives the call up everywhere."""
        proxies, payloads = self._prepare(instruction, timeout, quorum)
        members = [proxy._member for proxy in proxies]
        call = self._backend.start_call(members, payloads, timeout, quorum)
        return build(proxies, await finish(self._backend, call))

    def release(self) -> None:
        """Ends the lease, if this cohort has one."""
        self._let_go()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._let_go()


class Cohort(_Cohort[B]):
    """The participants that ``get_participants`` or ``lease`` returned, for blocking code.

    As a context manager it ends its lease at the end of the block.
    """

    def __init__(
        self,
        proxies: Sequence[B],
        backend: Backend,
        lease: Lease | None = None,
        *,
        loop: LoopThread,
    ) -> None:
        super().__init__(proxies, backend, lease)
        self._loop = loop

    def _part(self, proxies: Sequence[B]) -> Self:
        return type(self)(proxies, self._backend, self._lease, loop=self._loop)

    def run(
        self,
        instruction: Message | Mapping[B, Message] | Sequence[Message],
        timeout: float | None = None,
        quorum: int | None = None,
    ) -> Outcome[B]:
        """Sends an instruction to all at once and blocks until each has answered or otherwise ended.

        Args:
            instruction: one message for all, a sequence with one for each in order, or a mapping from some of
                the proxies to messages.
            timeout: seconds until those who have not answered are given up; None waits for all.
            quorum: end as soon as this many results are there, giving up the others.

        Never raises for what participants do; the Outcome tells. Ctrl-C gives the call up everywhere.
        """
        proxies, payloads = self._prepare(instruction, timeout, quorum)
        members = [proxy._member for proxy in proxies]

        async def call() -> Sequence[Answer]:
            return await finish(self._backend, self._backend.start_call(members, payloads, timeout, quorum))

        return build(proxies, self._loop.run(call()))

    def release(self) -> None:
        """Ends the lease, if this cohort has one. Runs that are under way go on."""
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._let_go()
