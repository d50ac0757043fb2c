"""The results of a call one by one, as they arrive.

Each is handed over once and kept nowhere, so a call to many participants with large answers takes no more
memory than the answers that nobody has looked at yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

from manager.api.outcome import Ends, Progress, decode_result, progress_of
from manager.api.proxy import A, B
from manager.core.backend import Backend, Running
from manager.core.call import Answer, OutcomeKind
from manager.errors import Closed
from manager.loop import LoopThread
from manager.payloads.blobs import Blob
from protos import stream_pb2

P = TypeVar("P")


class _Arrivals:
    """Listens to a call and keeps what has arrived until it is fetched."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, Answer]] = deque()
        self.bytes = 0
        """Size of all that has arrived."""
        self._changed = asyncio.Event()
        self._over = False
        self._error: Exception | None = None

    def settled(self, call: Running, indices: Sequence[int]) -> None:
        for index in () if self._over else indices:
            answer = call.outcomes[index]
            if answer is not None:
                self._queue.append((index, answer))
                self.bytes += len(answer[1])
                if isinstance(answer[1], Blob):
                    with contextlib.suppress(OSError):  # then whoever fetches it is told
                        answer[1].settle()  # it may wait here for long, and descriptors are few
                call.outcomes[index] = (answer[0], b"")
        self._changed.set()

    def advanced(self, call: Running, answered: int, size: int) -> None:
        pass  # results that are folded in don't arrive

    def finished(self, call: Running) -> None:
        self._over = True
        self._changed.set()

    def failed(self, error: Exception) -> None:
        self._error = error
        self._changed.set()

    def close(self) -> list[tuple[int, Answer]]:
        """Nothing will be fetched any more; returns what has arrived."""
        rest = list(self._queue)
        self._queue.clear()
        self._over = True
        self._changed.set()
        return rest

    async def fetch(self) -> tuple[int, Answer] | None:
        """The next one; None when there will be none any more. Raises what has ended the call early."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._over:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._queue.popleft()


class _Answers(Generic[P]):
    """What both faces show. Those who gave no result are in ``failures`` and so on once it is their turn."""

    def __init__(self, ends: Ends[P], answered: list[P]) -> None:
        self._ends = ends
        self.answered = answered
        """Those whose result has been handed over."""

    @property
    def failures(self) -> dict[P, stream_pb2.Failure]:
        """What those who failed said of it (stream_pb2.Failure: code, text)."""
        return self._ends.failures

    @property
    def lost(self) -> list[P]:
        """Those whose stream or worker ended first."""
        return self._ends.lost

    @property
    def timed_out(self) -> list[P]:
        """Those who had not answered by the deadline."""
        return self._ends.timed_out

    @property
    def cancelled(self) -> list[P]:
        """Those whose answer was not there, or not handed over, when the call was given up."""
        return self._ends.cancelled

    def __str__(self) -> str:
        return f"{len(self.answered)} results, {self._ends}"


class AsyncAnswers(_Answers[A]):
    """An asynchronous iterator of (participant, answer), and a context manager.

    It yields results alone; at its end each participant of the call is in exactly one of ``answered``,
    ``failures``, ``lost``, ``timed_out`` and ``cancelled``. Leaving the block, or cancelling the task, gives
    the call up everywhere.
    """

    def __init__(self, proxies: Sequence[A], backend: Backend, start: Callable[[_Arrivals], Running]) -> None:
        super().__init__(Ends(), [])
        self._call: Running | None = None
        self._closed = False
        self._proxies = proxies
        self._backend = backend
        self._start = start

    def __del__(self) -> None:
        """Whoever leaves an ``async for`` without a block around it has nothing that could close this."""
        if self._call is not None and not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and so the call is over
                self._loop.call_soon_threadsafe(self._backend.give_up_call, self._call)

    @property
    def progress(self) -> Progress:
        """How far the call is."""
        if self._call is None:
            return Progress(len(self._proxies), 0, 0, 0)
        return replace(progress_of(self._call), bytes=self._arrivals.bytes)

    def _begin(self) -> None:
        if self._call is None and not self._closed:
            self._loop = asyncio.get_running_loop()
            self._arrivals = _Arrivals()
            self._call = self._start(self._arrivals)

    async def _next(self) -> tuple[A, stream_pb2.ParticipantMessage] | None:
        """The next result; None when there will be none any more."""
        self._begin()
        while not self._closed:
            arrival = await self._arrivals.fetch()
            if arrival is None:
                break
            index, answer = arrival
            proxy = self._proxies[index]
            if answer[0] is OutcomeKind.RESULT:
                self.answered.append(proxy)
                return proxy, decode_result(answer[1])
            self._ends._note(proxy, answer)
        return None

    def close(self) -> None:
        """Gives the call up everywhere, if it still runs. Those who have not answered are ``cancelled``."""
        if self._closed:
            return
        self._closed = True
        if self._call is not None:
            self._backend.give_up_call(self._call)
            for index, answer in self._arrivals.close():
                if answer[0] is not OutcomeKind.RESULT:
                    self._ends._note(self._proxies[index], answer)
            known = {*self.answered, *self.failures, *self.lost, *self.timed_out, *self.cancelled}
            self.cancelled.extend(proxy for proxy in self._proxies if proxy not in known)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[A, stream_pb2.ParticipantMessage]:
        try:
            arrival = await self._next()
        except BaseException:
            self.close()
            raise
        if arrival is None:
            raise StopAsyncIteration
        return arrival

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()


class Answers(_Answers[B]):
    """An iterator of (participant, answer), and a context manager; see Cohort.stream.

    It yields results alone; at its end each participant of the call is in exactly one of ``answered``,
    ``failures``, ``lost``, ``timed_out`` and ``cancelled``. Leaving the block gives the call up everywhere.
    """

    def __init__(self, answers: AsyncAnswers[Any], loop: LoopThread) -> None:
        super().__init__(answers._ends, answers.answered)
        self._answers = answers
        self._loop = loop

    @property
    def progress(self) -> Progress:
        """How far the call is."""
        return self._answers.progress

    def close(self) -> None:
        """Gives the call up everywhere, if it still runs. Those who have not answered are ``cancelled``."""

        async def close() -> None:
            self._answers.close()

        if self._loop.is_current:  # a garbage collection has found it here, perhaps amid another event
            with contextlib.suppress(RuntimeError):  # the loop is being closed, and so the call is over
                asyncio.get_running_loop().call_soon(self._answers.close)
            return
        with contextlib.suppress(Closed):  # then the call has ended, too
            self._loop.run(close())

    def __iter__(self) -> Generator[tuple[B, stream_pb2.ParticipantMessage]]:
        try:
            while (arrival := self._loop.run(self._answers._next())) is not None:
                yield arrival
        finally:
            self.close()

    def __enter__(self) -> Self:
        async def begin() -> None:
            self._answers._begin()

        self._loop.run(begin())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
