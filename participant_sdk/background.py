"""One event loop for all blocking calls of this process, in a thread that lives only while it is needed.

The blocking API is the asyncio one, waited for. A loop of its own per caller would need no thread, but then
blocking calls couldn't be made where a loop already runs (a notebook), and each loop would cost grpc.aio a
wake-up for every event of the others.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

T = TypeVar("T")

_TICK: Final = 0.5
"""Seconds after which a waiting main thread looks up for signals that another thread was given."""

_lock: Final = threading.Lock()
_users = 0
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


@contextmanager
def background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop, running at least until the block is left."""
    global _loop, _thread, _users
    if threading.current_thread() is _thread:
        raise RuntimeError(
            "a blocking call in the event loop would wait for itself; use participant_sdk.aio here"
        )
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_run, args=(_loop,), name="muster-loop", daemon=True)
            _thread.start()
        _users += 1
        loop = _loop
    try:
        yield loop
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _thread is not None:
                loop.call_soon_threadsafe(loop.stop)
                _thread.join()
                _loop = _thread = None


def wait_for(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Runs the coroutine in the loop and blocks until it is done.

    An exception in the waiting thread, such as KeyboardInterrupt, cancels the coroutine, waits until it has
    cleaned up, and goes on.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    tasks: list[asyncio.Task[T]] = []

    def start() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(lambda task: _copy(task, outcome))

    def cancel() -> None:
        if tasks:
            tasks[0].cancel()
        else:  # it wasn't handed over, after all
            coroutine.close()
            outcome.set_exception(concurrent.futures.CancelledError())

    try:
        loop.call_soon_threadsafe(start)  # a Ctrl-C may come on the way out of this
        while True:
            try:
                return outcome.result(_TICK)
            except TimeoutError:
                if outcome.done():  # just now, or the error is the coroutine's own
                    return outcome.result()
    except BaseException:
        if not outcome.done():
            loop.call_soon_threadsafe(cancel)
            concurrent.futures.wait([outcome])
        raise


def _copy(task: asyncio.Task[T], outcome: concurrent.futures.Future[T]) -> None:
    if task.cancelled():
        outcome.set_exception(concurrent.futures.CancelledError())  # cancel() would wake nobody up
    elif error := task.exception():
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:  # none, unless the wait for one was interrupted twice
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    finally:
        loop.close()
