"""An event loop in a thread of its own: what the blocking API stands on.

It decides how a blocking caller waits (interruptible by Ctrl-C, which gives the call up) and how the loop
ends; what runs on it is others' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

from manager.errors import Closed

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop that there is on this platform: uvloop, or asyncio's own on Windows."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


_TICK = 0.5
"""Seconds after which a waiting main thread looks up for signals that the kernel gave to another thread."""


class LoopThread:
    """Runs coroutines for blocking callers."""

    def __init__(self, name: str) -> None:
        self._loop = new_event_loop()
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closing

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Blocks until the coroutine is done.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels the coroutine and waits until
        it has cleaned up; a second one doesn't wait. Raises Closed if the loop has been, or is being, closed.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError(
                "a blocking call was made on Muster's own event loop thread; use the asyncio interface there"
            )
        outcome: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: self._copy(task, outcome))

        with self._lock:
            if self._closing:
                coroutine.close()
                raise Closed("this has been closed already; make a new one")
            self._loop.call_soon_threadsafe(start)
        try:
            while not outcome.done():
                with contextlib.suppress(TimeoutError):
                    outcome.exception(_TICK)
            return outcome.result()
        except BaseException:
            if not outcome.done():
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                wait([outcome])
            raise

    def close(self) -> None:
        """Cancels what still runs on the loop, ends the thread. May be called more than once."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _copy(self, task: asyncio.Task[T], outcome: Future[T]) -> None:
        if not task.cancelled():
            error = task.exception()
            if error is None:
                outcome.set_result(task.result())
            else:
                outcome.set_exception(error)
        elif self._closing:
            outcome.set_exception(Closed("it was closed before this was done"))
        else:
            outcome.set_exception(CancelledError())  # a cancelled Future would not wake who waits for it

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(asyncio.sleep(0))  # what was submitted last becomes tasks
            while tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            self._loop.close()
