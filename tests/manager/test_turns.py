"""What may take long begins in one turn of the loop after another, and none of them lasts long for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from manager.loop import new_event_loop
from manager.serving.turns import LONG, Turns
from tests.manager.support import TurnWatch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


class Subject(Turns):
    """What it lets begin takes so many seconds each."""

    def __init__(self, seconds: float) -> None:
        self.clock = Clock()
        super().__init__(self.clock)
        self.began: list[int] = []
        self._seconds = seconds

    async def work(self, number: int) -> None:
        await self.wait()
        self.began.append(number)
        self.clock.now += self._seconds


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await test()

        with asyncio.Runner(loop_factory=new_event_loop) as runner:  # as a worker has it
            runner.run(limited())

    return run


@on_a_loop
async def test_who_comes_first_begins_first_and_no_turn_lasts_long() -> None:
    turns = Subject(LONG / 4)
    watch = TurnWatch(lambda: turns.clock.now)
    early = [asyncio.ensure_future(turns.work(number)) for number in range(100)]
    while len(turns.began) < 30:  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)
    late = [asyncio.ensure_future(turns.work(number)) for number in range(100, 200)]
    await asyncio.gather(*early, *late)
    assert turns.began == list(range(200))
    assert watch.longest <= 2.5 * LONG
    assert turns.clock.now == pytest.approx(50 * LONG)


@on_a_loop
async def test_something_begins_in_every_other_turn_however_long_turns_are() -> None:
    turns = Subject(2 * LONG)
    watch = TurnWatch(lambda: turns.clock.now)

    def keep_busy() -> None:
        turns.clock.now += 10 * LONG
        if len(turns.began) < 20:
            asyncio.get_running_loop().call_soon(keep_busy)

    keep_busy()
    await asyncio.gather(*map(turns.work, range(20)))
    assert watch.turns <= 2 * 20 + 5


@on_a_loop
async def test_where_little_happens_nothing_waits() -> None:
    turns = Subject(LONG / 4)
    for number in range(3):
        with pytest.raises(StopIteration):
            turns.work(number).send(None)
    assert turns.began == [0, 1, 2]


@on_a_loop
async def test_thousands_that_wait_are_not_all_woken_in_every_turn() -> None:
    turns = Subject(LONG / 4)
    await asyncio.gather(*map(turns.work, range(5000)))
    assert turns.clock.looks <= 3 * 5000
    assert not turns._waiting


@on_a_loop
async def test_those_that_are_ended_while_they_wait_leave_their_turn_to_the_others() -> None:
    turns = Subject(2 * LONG)

    async def work(number: int) -> None:
        await turns.work(number)
        for other in tasks[number + 1 : number + 4]:  # of whom some have been woken by now
            other.cancel()

    tasks = [asyncio.ensure_future(work(number)) for number in range(40)]
    await asyncio.gather(*tasks, return_exceptions=True)
    assert turns.began == list(range(0, 40, 4))
    assert not turns._waiting
    await asyncio.gather(turns.work(40))
    assert turns.began[-1] == 40


@on_a_loop
async def test_there_is_nothing_on_the_loop_when_nobody_waits() -> None:
    turns = Subject(LONG)
    await asyncio.gather(*map(turns.work, range(5)))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not turns._watching
