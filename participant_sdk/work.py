"""Where a handler runs: a coroutine function in the event loop, any other in a thread of its participant.

The thread is one per participant, so that handlers never run at the same time and keep their thread-local
state (a device, a database connection), and it is a daemon: a handler that never returns can't keep a process
from ending. What the answer is, handlers.py decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from participant_sdk import handlers
from participant_sdk.handlers import Handlers
from protos.sliced import ReceivedMessage

T = TypeVar("T")


class HandlerThread:
    """A thread that runs one function after the other. It starts with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Waits for the function, which must not raise."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def deliver(value: T) -> None:
            if not outcome.done():
                outcome.set_result(value)

        def job() -> None:
            value = function(*arguments)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(deliver, value)

        self._jobs.put(job)
        return await outcome

    def close(self, *, wait: bool) -> None:
        """Ends the thread after the function at hand, and waits for that if ``wait``."""
        self._jobs.put(None)
        if wait and self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it would keep the answer until the next one comes


class Work:
    """One message being carried out by its handler."""

    def __init__(
        self, received: ReceivedMessage, registry: Handlers, thread: HandlerThread, participant_id: str
    ) -> None:
        self.name = received.message.instruction.name
        self._received = received
        self._registry = registry
        self._thread = thread
        self._participant_id = participant_id
        self._cancelled = threading.Event()
        self._task: asyncio.Task[bytes | memoryview] | None = None

    async def answer(self) -> bytes | memoryview:
        """The serialised answer, in the end: it never raises."""
        handler = self._registry.find(self._received.message)
        if isinstance(handler, bytes):
            return handler
        if self._cancelled.is_set():
            return handlers.cancelled_before_it_began()
        arguments = handler, self._received, self._cancelled, self._participant_id
        if not handlers.is_async(handler):
            return await self._thread.run(handlers.answer, *arguments)
        self._task = asyncio.create_task(handlers.answer_async(*arguments), name=f"handler of {self.name!r}")
        await asyncio.wait([self._task])
        return handlers.cancelled_before_it_began() if self._task.cancelled() else self._task.result()

    def abort(self) -> None:
        """Asks the handler to stop: sets its ``cancelled``, and cancels it if it is a coroutine."""
        self._cancelled.set()
        if self._task is not None:
            self._task.cancel()

    async def wind_up(self, timeout: float) -> None:
        """Aborts, and gives a coroutine ``timeout`` seconds to end."""
        self.abort()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)
