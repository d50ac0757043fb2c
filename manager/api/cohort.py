"""The participants that a caller got: a sequence of proxies that can be called all at once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from manager.api.answers import Answers, AsyncAnswers
from manager.api.arguments import check_progress, check_quorum, check_sample, check_timeout, paired
from manager.api.outcome import Outcome, Progress, Reduced, build, progress_of, reduced
from manager.api.proxy import A, B, _Proxy, kept
from manager.core.backend import Backend, Running, finish, time_left
from manager.core.members import Member
from manager.core.roster import Roster
from manager.loop import LoopThread
from manager.payloads.blobs import SHARE_SIZE, Payload
from manager.reducing.reducers import make_reducer
from manager.reducing.shares import Reduction
from protos import stream_pb2
from protos.messages import Plain

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
        self._proxies = tuple(proxies)
        self._roster: Roster | None = None
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
        k = check_sample(k, len(self))
        return self._part(random.Random(seed).sample(self._proxies, k))  # noqa: S311 - not for secrets

    def _part(self, proxies: Sequence[P]) -> Self:
        raise NotImplementedError

    def _prepare(
        self,
        instruction: Message | Mapping[P, Message] | Sequence[Message],
        timeout: float | None,
        quorum: int | None,
    ) -> tuple[Sequence[P], list[Payload], float | None, int | None]:
        """Who is asked, the payloads (one for all or each), what is left of the timeout, and the quorum."""
        check_timeout(timeout)
        began = time.monotonic()
        proxies, messages = paired(instruction, self._proxies)
        quorum = check_quorum(quorum, len(proxies))
        payloads = [kept(message, self._backend) for message in messages]
        return proxies, payloads, time_left(timeout, began), quorum

    def _members(self, proxies: Sequence[P]) -> Sequence[Member]:
        """Those of the proxies; for the whole cohort with what its earlier calls have worked out."""
        if proxies is not self._proxies:
            return [proxy._member for proxy in proxies]
        if self._roster is None:
            self._roster = Roster([proxy._member for proxy in proxies])
        return self._roster

    def _stream(
        self,
        instruction: Message | Mapping[P, Message] | Sequence[Message],
        timeout: float | None,
        quorum: int | None,
    ) -> AsyncAnswers[Any]:
        proxies, payloads, left, quorum = self._prepare(instruction, timeout, quorum)
        return AsyncAnswers(
            proxies,
            self._backend,
            lambda listener: self._backend.stream_call(
                self._members(proxies), payloads, left, quorum, listener
            ),
        )

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
        progress: Callable[[Progress], object] | None = None,
    ) -> Outcome[A]:
        """Like Cohort.run. Cancelling the task gives the call up everywhere."""
        check_progress(progress)
        proxies, payloads, left, quorum = self._prepare(instruction, timeout, quorum)
        call = self._backend.start_call(self._members(proxies), payloads, left, quorum)
        await finish(self._backend, call, _watch(call, progress))
        return build(proxies, call)

    async def reduce(
        self,
        instruction: Message | Mapping[A, Message] | Sequence[Message],
        reducer: str = "weighted_mean",
        timeout: float | None = None,
        quorum: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        **options: Plain,
    ) -> Reduced[A]:
        """Like Cohort.reduce. Cancelling the task gives the call up everywhere."""
        check_progress(progress)
        merging = make_reducer(reducer, options, self._backend.reducers)
        proxies, payloads, left, quorum = self._prepare(instruction, timeout, quorum)
        call = self._backend.start_call(
            self._members(proxies), payloads, left, quorum, Reduction(reducer, options)
        )
        await finish(self._backend, call, _watch(call, progress))
        if sum(map(len, call.states)) > SHARE_SIZE:  # large: not on the event loop
            return await asyncio.to_thread(reduced, proxies, call, merging)
        return reduced(proxies, call, merging)

    def stream(
        self,
        instruction: Message | Mapping[A, Message] | Sequence[Message],
        timeout: float | None = None,
        quorum: int | None = None,
    ) -> AsyncAnswers[A]:
        """Like Cohort.stream; use it with ``async with`` and ``async for``."""
        return self._stream(instruction, timeout, quorum)

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
        progress: Callable[[Progress], object] | None = None,
    ) -> Outcome[B]:
        """Sends an instruction to all at once and blocks until each has answered or otherwise ended.

        Args:
            instruction: one message for all, a sequence with one for each in order, or a mapping from some of
                the proxies to messages.
            timeout: seconds until those who have not answered are given up; None waits for all.
            quorum: end as soon as this many results are there, giving up the others.
            progress: called with a Progress in this thread, about ten times a second and at the end.

        Never raises for what participants do; the Outcome tells. Ctrl-C gives the call up everywhere.
        """
        check_progress(progress)
        proxies, payloads, left, quorum = self._prepare(instruction, timeout, quorum)
        return build(proxies, self._wait(proxies, payloads, left, quorum, None, progress))

    def reduce(
        self,
        instruction: Message | Mapping[B, Message] | Sequence[Message],
        reducer: str = "weighted_mean",
        timeout: float | None = None,
        quorum: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        **options: Plain,
    ) -> Reduced[B]:
        """Like ``run``, but the results are folded into one in the worker processes, as they arrive.

        A result counts as a whole or not at all. One that doesn't fit (other tensors than most participants
        send; NaN or infinity, unless ``allow_nan``; for a weighted mean, a weight that is not positive) is a
        failure of its participant. What is folded when the timeout or the quorum is reached counts.

        Args:
            instruction: as for ``run``.
            reducer: weighted_mean (by ``Result.weight``), mean, sum, min, max; or the import path of your
                own, allowed at the start (manager/reducing/reducers.py says what it must be like).
            timeout: as for ``run``. The workers' partial answers are then still collected.
            quorum: end as soon as this many have been folded in, or a few more. Fewer are left only if
                results turn out not to fit most others, or a worker dies with what it has folded.
            progress: as for ``run``.
            options: of the reducer. For the ones named above: ``dtype`` ("float64" or "float32"), in which
                floats are added up; ``allow_nan`` (False).

        Raises ValueError for a reducer or an option that doesn't exist or isn't allowed, ReductionError if
        what the workers send can't be merged (a sum of integers that leaves 64 bits). Otherwise it is the
        Reduced that tells.
        """
        check_progress(progress)
        merging = make_reducer(reducer, options, self._backend.reducers)
        proxies, payloads, left, quorum = self._prepare(instruction, timeout, quorum)
        call = self._wait(proxies, payloads, left, quorum, Reduction(reducer, options), progress)
        return reduced(proxies, call, merging)

    def stream(
        self,
        instruction: Message | Mapping[B, Message] | Sequence[Message],
        timeout: float | None = None,
        quorum: int | None = None,
    ) -> Answers[B]:
        """Like ``run``, but the results are there one by one, as they arrive, and kept nowhere::

            with cohort.stream(message) as answers:
                for participant, answer in answers:
                    ...
            print(answers)

        Leaving the block before the end gives the call up everywhere, and so does leaving the loop where
        there is no block and nothing else holds the answers. Results that have not been fetched yet
        wait in memory: at most one for each participant, as with ``run``.
        """
        return Answers(self._stream(instruction, timeout, quorum), self._loop)

    def _wait(
        self,
        proxies: Sequence[B],
        payloads: Sequence[Payload],
        timeout: float | None,
        quorum: int | None,
        reduction: Reduction | None,
        progress: Callable[[Progress], object] | None,
    ) -> Running:
        running: list[Running] = []

        async def call() -> None:
            running.append(
                self._backend.start_call(self._members(proxies), payloads, timeout, quorum, reduction)
            )
            await finish(self._backend, running[0])

        def watch() -> None:
            if progress is not None and running:
                progress(progress_of(running[0]))

        self._loop.run(call(), None if progress is None else watch)
        watch()
        return running[0]

    def release(self) -> None:
        """Ends the lease, if this cohort has one. Runs that are under way go on."""
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._let_go()


def _watch(call: Running, progress: Callable[[Progress], object] | None) -> Callable[[], object] | None:
    if progress is None:
        return None
    return lambda: progress(progress_of(call))
