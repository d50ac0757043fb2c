"""Folds the results of reducing calls as they arrive, in this process: the shell around batch.py.

Small results are folded at once on the event loop. Large ones, and whatever comes while one is under way, go
through a thread of their own, one after the other, so that a 1 GiB result stops nobody else (NumPy lets go
of the GIL). What comes of it is told to a ``BatchSink``: in a worker the link to the coordinator (worker.py),
in a single process the dispatcher (server.py).

What needs NumPy is in arithmetic.py, which is loaded with the first batch: who reduces nothing, or not yet,
starts sooner and is smaller without.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from manager.payloads.blobs import Payload
from manager.reducing.shares import Folded, Partial, Reduction
from manager.serving.incoming import checked
from manager.serving.stream import Stream
from protos.envelope import Kind
from protos.messages import refusal

if TYPE_CHECKING:
    from manager.reducing.arithmetic import ResultBatch

INLINE_SIZE = 4 * 1024 * 1024
"""Bytes of a result up to which it is folded on the event loop: a few milliseconds."""

REPORT_INTERVAL = 0.25
"""Seconds for which reports of folded sessions are gathered. A batch that is over is reported at once."""

HURRY_INTERVAL = 0.01
"""The same where a quorum is waited for."""


class BatchSink(Protocol):
    """Who is told what came of results. None of these may block or raise."""

    def not_folded(self, stream: Stream, answer: Payload) -> None:
        """What is no part of a batch: a failure, or a late answer (then empty)."""
        ...

    def folded(self, folded: Folded) -> None: ...

    def partial(self, partial: Partial) -> None: ...

    def free(self, stream: Stream) -> None:
        """The answer of a stream that lives has been folded in, after a while."""
        ...

    def ended_late(self, stream: Stream) -> None:
        """The end of a stream, put off until its answer was folded in."""
        ...


class Folding:
    """All batches of this process."""

    def __init__(self, sink: BatchSink, reducers: Sequence[str] = ()) -> None:
        """``reducers`` are the import paths that are allowed besides the built-in names."""
        self._sink = sink
        self._allowed = reducers
        self._batches: dict[int, ResultBatch] = {}
        self._parts = itertools.count(1)
        self._yielding: list[ResultBatch] = []  # whose partials are being made, in this order
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="muster-fold")
        self._works: set[asyncio.Future[Any]] = set()
        self._reporting: asyncio.TimerHandle | None = None

    def batch(self, id: int, reduction: Reduction) -> ResultBatch:
        """The batch of this id, a new one if there is none. Raises ValueError for a reducer that can't be."""
        batch = self._batches.get(id)
        if batch is None:
            from manager.reducing.arithmetic import new_batch

            batch = self._batches[id] = new_batch(id, next(self._parts), reduction, self._allowed)
        return batch

    def instructed(self, batch: ResultBatch, stream: Stream) -> None:
        """The stream has been sent an instruction of the batch. When all have, ``sent`` must follow."""
        stream.batch = batch
        batch.working += 1

    def sent(self, batch: ResultBatch, tag: int, *, all_there: bool, hurry: bool) -> None:
        """The broadcast with this tag has gone to all streams that are there."""
        batch.sent(tag, all_there=all_there, hurry=hurry)
        self._advance(batch)  # there may be none

    def answered(self, stream: Stream, answer: Payload, kind: Kind) -> None:
        """A stream with a batch has answered."""
        batch, stream.batch = stream.batch, None
        if batch is None or batch.closed:
            self._sink.not_folded(stream, b"")
            return
        batch.working -= 1
        if kind is not Kind.RESULT:
            if kind is Kind.EMPTY:
                answer = refusal("its answer is empty: there is nothing to reduce")
            self._sink.not_folded(stream, checked(answer, Kind.FAILURE))
        elif batch.folding or len(answer) > INLINE_SIZE:
            batch.folding += 1
            stream.folding = batch
            self._fold_apart(batch, stream, answer)
            return
        else:
            self._folded(batch, stream, len(answer), batch.take(stream.id, answer))
        self._advance(batch)

    def ended(self, stream: Stream) -> bool:
        """The stream is over. False if its end must be reported later (``BatchSink.ended_late``)."""
        if stream.folding is not None:
            return False
        if self._reporting is not None:
            self._report_all()  # it may have been folded in: that must be known before its end
        batch, stream.batch = stream.batch, None
        if batch is not None and not batch.closed:
            batch.ended()
            self._loop.call_soon(self._advance, batch)  # after its end has been reported
        return True

    def close(self, id: int) -> None:
        """Yields what there is of the batch, as soon as what has been answered is folded in."""
        batch = self._batches.get(id)
        if batch is not None:
            batch.closed = True
            self._advance(batch)
        elif yielding := [batch for batch in self._yielding if batch.id == id]:
            yielding[-1].closed = True
        else:
            self._sink.partial(Partial(id, 0, [], closed=True))

    def forget(self) -> None:
        """Nobody wants to know of the present batches any more."""
        for batch in (*self._batches.values(), *self._yielding):
            batch.closed = batch.forgotten = True
        self._batches.clear()
        self._yielding.clear()

    async def finish(self, timeout: float) -> None:
        """Waits until nothing is being folded in any more, for so many seconds at most; ends the thread."""
        await asyncio.sleep(0)  # batches that have just lost their last stream
        deadline = self._loop.time() + timeout
        while self._works and self._loop.time() < deadline:  # one leads to another
            await asyncio.wait(self._works, timeout=deadline - self._loop.time())
        self.forget()
        if self._reporting is not None:
            self._reporting.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _folded(self, batch: ResultBatch, stream: Stream, size: int, refused: str | None) -> None:
        if refused is None:
            batch.folded(stream.id, size)
        else:
            self._sink.not_folded(stream, refusal(refused))

    # Whatever takes long

    def _fold_apart(self, batch: ResultBatch, stream: Stream, answer: Payload) -> None:
        size = len(answer)

        def done(work: asyncio.Future[str | None]) -> None:
            if work.cancelled():
                return
            batch.folding -= 1
            if stream.folding is batch:
                stream.folding = None
            error = work.exception()
            refused = work.result() if error is None else str(error)
            if not batch.forgotten:
                self._folded(batch, stream, size, refused)
                self._advance(batch)
            if stream.folding is not None:
                return  # its last answer is yet to come
            if stream.over is None:
                self._sink.free(stream)
            else:
                self._report_all()
                self._sink.ended_late(stream)

        self._work(done, batch.take, stream.id, answer)

    def _work(
        self, done: Callable[[asyncio.Future[Any]], None], do: Callable[..., Any], *args: object
    ) -> None:
        work = self._loop.run_in_executor(self._executor, do, *args)
        self._works.add(work)
        work.add_done_callback(self._works.discard)
        work.add_done_callback(done)

    def _advance(self, batch: ResultBatch) -> None:
        if batch.over and self._batches.get(batch.id) is batch:
            del self._batches[batch.id]
            self._report(batch)
            self._yield(batch)
        elif batch.news and self._reporting is None:
            interval = HURRY_INTERVAL if batch.hurry else REPORT_INTERVAL
            self._reporting = self._loop.call_later(interval, self._report_all)

    def _report_all(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        for batch in self._batches.values():
            self._report(batch)

    def _report(self, batch: ResultBatch) -> None:
        if batch.news:
            self._sink.folded(batch.report())

    def _yield(self, batch: ResultBatch) -> None:
        state = batch.come_to()
        if isinstance(state, Partial):
            self._sink.partial(state)
            return
        kinds, size = state
        if not kinds.groups and not batch.closed:
            return
        if size <= INLINE_SIZE and not self._yielding:
            self._sink.partial(batch.reported(kinds))
            return
        self._yielding.append(batch)

        def done(work: asyncio.Future[Partial]) -> None:
            if batch in self._yielding and not work.cancelled():
                self._yielding.remove(batch)
                self._sink.partial(dataclasses.replace(work.result(), closed=batch.closed))

        self._work(done, batch.reported, kinds)
