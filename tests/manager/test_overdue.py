"""Streams that keep others waiting are ended when their time is up, and not because this process was away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import grpc
import pytest

from manager.serving.overdue import Overdue
from manager.serving.verdicts import EndReason, Verdict
from tests.manager.support import LoopClock

VERDICT = Verdict(EndReason.VIOLATION, grpc.StatusCode.UNAVAILABLE, "too late")


class Stream:
    """Takes note of how it is ended."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.over = asyncio.Event()

    def cut(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.over.set()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.serving.overdue.INTERVAL", 0.02)


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await test()

        asyncio.run(limited())

    return run


def expect(overdue: Overdue, stream: Stream, seconds: float, verdict: Verdict = VERDICT) -> None:
    overdue.expect(stream, seconds, verdict)  # type: ignore[arg-type]


@on_a_loop
async def test_a_stream_is_ended_when_its_time_is_up_and_not_before() -> None:
    overdue, stream = Overdue(), Stream()
    since = time.monotonic()
    expect(overdue, stream, 0.1)
    await stream.over.wait()
    assert time.monotonic() - since >= 0.1
    assert stream.verdict == VERDICT
    assert len(overdue) == 0


@on_a_loop
async def test_one_that_did_what_was_expected_is_left_alone() -> None:
    overdue, prompt, late = Overdue(), Stream(), Stream()
    expect(overdue, prompt, 0.05)
    expect(overdue, late, 0.1)
    overdue.forget(prompt)  # type: ignore[arg-type]
    overdue.forget(prompt)  # type: ignore[arg-type]
    await late.over.wait()
    assert prompt.verdict is None


@on_a_loop
async def test_what_is_expected_anew_takes_the_place_of_what_was() -> None:
    overdue, stream, other = Overdue(), Stream(), Stream()
    expect(overdue, stream, 0.02)
    expect(overdue, stream, 3600)
    expect(overdue, other, 0.1)
    await other.over.wait()
    assert stream.verdict is None


@on_a_loop
async def test_there_is_no_timer_when_nothing_is_expected() -> None:
    overdue, stream = Overdue(), Stream()
    expect(overdue, stream, 0.05)
    overdue.forget(stream)  # type: ignore[arg-type]
    while overdue._timer is not None:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    expect(overdue, stream, 0.05)
    await stream.over.wait()


@on_a_loop
async def test_time_in_which_this_process_was_away_does_not_count() -> None:
    clock = LoopClock()
    overdue, stream = Overdue(), Stream()
    expect(overdue, stream, 0.3)
    clock.jump(0.5)  # nothing was read meanwhile
    await clock.passes(0.25)
    assert stream.verdict is None
    await clock.passes(0.1)
    assert stream.verdict == VERDICT
