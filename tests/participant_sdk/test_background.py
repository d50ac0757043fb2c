"""Blocking callers of the loop in the background: what they give up ends."""

from __future__ import annotations

import asyncio
import inspect
import signal
from typing import Any

import pytest

from participant_sdk.background import background_loop, wait_for
from tests.support import eventually


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_caller_that_is_interrupted_while_it_hands_its_coroutine_over_gives_it_up(when: str) -> None:
    steps: list[str] = []

    async def work() -> None:
        steps.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    coroutine = work()
    with background_loop() as loop:
        there: Any = loop
        hand_over = there.call_soon_threadsafe

        def interrupted(*args: Any) -> None:
            del there.call_soon_threadsafe  # only once
            if when == "before":
                signal.raise_signal(signal.SIGINT)
            hand_over(*args)
            eventually(lambda: steps)
            signal.raise_signal(signal.SIGINT)

        there.call_soon_threadsafe = interrupted
        with pytest.raises(KeyboardInterrupt):
            wait_for(coroutine, loop)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        assert steps == (["began", "cleaned up"] if when == "after" else [])


def test_a_caller_that_is_interrupted_while_it_waits_gives_it_up_too() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)  # handled in the main thread, which waits for us
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    with background_loop() as loop, pytest.raises(KeyboardInterrupt):
        wait_for(work(), loop)
    assert steps == ["cleaned up"]
