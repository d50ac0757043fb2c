"""Blocking callers of an event loop in a thread: they get their answer, or are told why not."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from manager.errors import Closed
from manager.loop import LoopThread
from tests.support import PATIENCE, eventually


def test_a_caller_gets_the_result_or_the_exception() -> None:
    loop = LoopThread("test")

    async def give() -> int:
        return 7

    async def fail() -> None:
        raise KeyError("no")

    assert loop.run(give()) == 7
    with pytest.raises(KeyError, match="no"):
        loop.run(fail())
    loop.close()


def test_a_blocking_call_on_the_loop_itself_is_refused_rather_than_hang() -> None:
    loop = LoopThread("test")

    async def inner() -> None:
        pass

    async def outer() -> None:
        loop.run(inner())

    with pytest.raises(RuntimeError, match="own event loop thread"):
        loop.run(outer())
    loop.close()


def test_a_signal_handler_may_call_while_another_call_begins() -> None:
    loop = LoopThread("test")
    calls: list[int] = []

    async def give(number: int) -> int:
        return number

    def handler(*_: object) -> None:
        calls.append(loop.run(give(len(calls))))
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # the next one only now: they must not pile up

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        for number in range(500):
            assert loop.run(give(number)) == number
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls, "no signal came"
    assert calls == list(range(len(calls)))
    loop.close()


def test_closing_ends_what_is_being_waited_for() -> None:
    loop = LoopThread("test")
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(lambda: loop.run(wait()))
        assert waiting.wait(20)
        loop.close()
        with pytest.raises(Closed):
            call.result(20)
    loop.close()
    with pytest.raises(Closed):
        loop.run(wait())


def test_nobody_hangs_who_calls_while_it_closes() -> None:
    async def nothing() -> None:
        await asyncio.sleep(0)

    for _ in range(20):
        loop = LoopThread("test")
        start = threading.Barrier(5)

        def call(loop: LoopThread = loop, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                while True:
                    loop.run(nothing())
            except Closed:
                return True

        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(call) for _ in range(4)]
            start.wait()
            loop.close()
            assert all(ended.result(20) for ended in calls)


def test_an_interrupted_caller_waits_until_its_coroutine_has_cleaned_up() -> None:
    loop = LoopThread("test")
    steps: list[str] = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)  # handled in the main thread, which waits for us
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        loop.run(work())
    assert steps == ["cleaned up"]
    loop.close()
    eventually(lambda: "test" not in {thread.name for thread in threading.enumerate()})


def instead_of_the_next_hand_over(loop: LoopThread, do: Callable[..., object]) -> None:
    """``do`` gets what hands over, and what it is given."""
    there: Any = loop._loop
    hand_over = there.call_soon_threadsafe

    def once(*args: Any) -> None:
        del there.call_soon_threadsafe
        do(hand_over, *args)

    there.call_soon_threadsafe = once


class InterruptedLock:
    def __enter__(self) -> None:
        signal.raise_signal(signal.SIGINT)

    def __exit__(self, *_: object) -> None:
        raise AssertionError("it was never entered")


@pytest.mark.parametrize("when", ["for the lock", "before", "after"])
def test_a_caller_that_is_interrupted_while_it_hands_its_coroutine_over_gives_it_up(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = LoopThread("test")
    steps: list[str] = []

    async def work() -> None:
        steps.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    def interrupted(hand_over: Callable[..., object], *args: Any) -> None:
        if when == "before":
            signal.raise_signal(signal.SIGINT)
        hand_over(*args)
        eventually(lambda: steps)
        signal.raise_signal(signal.SIGINT)

    if when == "for the lock":
        monkeypatch.setattr(loop, "_lock", InterruptedLock())
    else:
        instead_of_the_next_hand_over(loop, interrupted)
    coroutine = work()
    with pytest.raises(KeyboardInterrupt):
        loop.run(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert steps == (["began", "cleaned up"] if when == "after" else [])
    monkeypatch.undo()
    loop.close()


def test_nor_does_it_wait_for_a_loop_that_ends_before_it_is_told() -> None:
    loop = LoopThread("test")
    raised: list[BaseException] = []

    async def work() -> None:
        raise AssertionError("it was never handed over")

    coroutine = work()

    def interrupted(*_: object) -> None:
        instead_of_the_next_hand_over(loop, ended)
        raise KeyboardInterrupt

    def ended(hand_over: Callable[..., object], *args: Any) -> None:
        loop.close()
        hand_over(*args)

    def call() -> None:
        try:
            loop.run(coroutine)
        except BaseException as error:
            raised.append(error)

    instead_of_the_next_hand_over(loop, interrupted)
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [KeyboardInterrupt]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


@pytest.mark.parametrize("why", ["closed", "forked"])
def test_a_coroutine_that_is_refused_is_closed(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = LoopThread("test")
    if why == "closed":
        loop.close()
    else:
        monkeypatch.setattr(loop, "_pid", -1)

    async def work() -> None:
        raise AssertionError("it was refused")

    coroutine = work()
    with pytest.raises(Closed):
        loop.run(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    monkeypatch.undo()
    loop.close()
