"""An event loop in a thread of its own: what the blocking API stands on.

It decides how a blocking caller waits (interruptible by Ctrl-C, which gives the call up) and how the loop
ends; what runs on it is others' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from manager.errors import Closed
from protos.forks import REMEDY

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop that there is on this platform: uvloop, or asyncio's own on Windows."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


WATCH_INTERVAL = 0.1
"""Seconds between two looks at what is waited for."""

_TICK = 0.5
"""Seconds after which a waiting main thread looks up for signals that the kernel gave to another thread."""


class LoopThread:
    """Runs coroutines for blocking callers."""

    def __init__(self, name: str) -> None:
        self._loop = new_event_loop()
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may come in between, and call too
        self._closing = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closing or os.getpid() != self._pid

    @property
    def is_current(self) -> bool:
        """Whether the caller is in the loop's own thread."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, T], watch: Callable[[], None] | None = None) -> T:
        """Blocks until the coroutine is done. ``watch`` is called meanwhile, every WATCH_INTERVAL.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels the coroutine and waits until
        it has cleaned up; a second one doesn't wait. Raises Closed if the loop has been, or is being, closed.
        """
        tasks: list[asyncio.Task[T]] = []
        handed_over = False
        try:
            if os.getpid() != self._pid:
                raise Closed(f"this belongs to the process that was forked: {REMEDY}")
            if self.is_current:
                raise RuntimeError(
                    "a blocking call was made on Muster's own event loop thread; "
                    "use the asyncio interface there"
                )
            # A bare lock as the gate: an Event or a Future has a critical section of its own, in which a
            # signal handler that calls here, too, would shut out the loop for ever.
            gate = threading.Lock()
            gate.acquire()

            def start() -> None:
                tasks.append(self._loop.create_task(coroutine))
                tasks[0].add_done_callback(lambda _: gate.release())

            def cancel() -> None:
                tasks[0].cancel() if tasks else gate.release()

            with self._lock:
                if self._closing:
                    raise Closed(
                        "this manager, coordinator or connection has been closed already; make a new one"
                    )
                handed_over = True  # not after: a Ctrl-C may come on the way out of this
                self._loop.call_soon_threadsafe(start)
            while not gate.acquire(timeout=_TICK if watch is None else WATCH_INTERVAL):
                if watch is not None:
                    watch()
        except BaseException:
            if handed_over and not (tasks and tasks[0].done()):
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    self._loop.call_soon_threadsafe(cancel)
                while self._thread.is_alive() and not gate.acquire(timeout=_TICK):
                    pass  # an ended loop opens no gate for what it was never given
            if not tasks:
                coroutine.close()
            raise
        return self._result(tasks[0])

    def close(self) -> None:
        """Cancels what still runs on the loop, ends the thread. May be called more than once."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if not self._closing:
                self._closing = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _result(self, task: asyncio.Task[T]) -> T:
        if task.cancelled() and self._closing:
            raise Closed("it was closed before this was done")
        return task.result()

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
