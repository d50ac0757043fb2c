"""Answers that are streamed are handed over once, and whoever gives none is named once, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from manager.api.answers import Answers, AsyncAnswers
from manager.core.call import Call, Send
from manager.core.dispatcher import Dispatcher
from manager.core.members import Member
from manager.errors import Closed
from manager.loop import LoopThread
from manager.payloads.blobs import CAN_SHARE, Blob, Payload
from protos import stream_pb2
from protos.messages import failure, result
from tests.manager.support import make_member

RESULT = result(payload=b"42")
FAILURE = failure(stream_pb2.Failure.UNSPECIFIED, "no")


class Harness:
    """Three members, asked at once by way of a dispatcher whose transport does nothing."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher(self)
        self.members = [make_member(self.dispatcher.new_key()) for _ in range(3)]
        for member in self.members:
            self.dispatcher.joined(member)
        self.listener: Any = None
        self.answers: AsyncAnswers[Any] = AsyncAnswers(
            self.members,  # any three things serve as proxies
            self.dispatcher,
            self._start,
        )

    def _start(self, listener: Any) -> Call:
        self.listener = listener
        return self.dispatcher.stream_call(self.members, [b""], None, None, listener)

    def answer(self, index: int, message: stream_pb2.ParticipantMessage = RESULT) -> None:
        member = self.members[index]
        self.dispatcher.answered([(member, member.tag, message.SerializeToString())])

    @property
    def named(self) -> list[list[int]]:
        """Who answered, failed, was lost, timed out, was cancelled."""
        ends = self.answers
        return [
            [self.members.index(member) for member in each]
            for each in (ends.answered, ends.failures, ends.lost, ends.timed_out, ends.cancelled)
        ]

    # Transport

    def keep(self, instruction: bytes) -> Payload:
        return instruction

    def instruct(self, sends: Sequence[Send]) -> None:
        pass

    def cancel(self, member: Member, tag: int) -> None:
        pass

    def close_batch(self, worker: int, call: Call) -> None:
        raise AssertionError("nothing is reduced here")

    def end(self, member: Member) -> None:
        raise AssertionError("nobody is replaced here")


def with_harness(test: Callable[[Harness], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs an asynchronous test."""

    def run() -> None:
        async def main() -> None:
            harness = Harness()
            await test(harness)
            harness.dispatcher.close()

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


@pytest.mark.skipif(not CAN_SHARE, reason="no shared memory here")
@with_harness
async def test_large_ones_that_wait_keep_no_descriptor(harness: Harness) -> None:
    blob = Blob.of(RESULT.SerializeToString())
    async with harness.answers as answers:
        harness.dispatcher.answered([(harness.members[0], harness.members[0].tag, blob)])
        harness.dispatcher.settle()
        assert blob.descriptor == -1
        assert await anext(answers) == (harness.members[0], RESULT)


@with_harness
async def test_results_come_one_by_one_and_the_others_are_named_by_their_end(harness: Harness) -> None:
    answers = harness.answers
    async with answers:
        harness.answer(2)
        assert await anext(answers) == (harness.members[2], RESULT)
        harness.answer(0, FAILURE)
        harness.dispatcher.ended(harness.members[1])
        assert [arrival async for arrival in answers] == []
    assert harness.named == [[2], [0], [1], [], []]
    assert answers.failures == {harness.members[0]: FAILURE.failure}
    assert str(answers) == "1 results, 1 failures, 1 lost, 0 timed out, 0 cancelled"
    assert (answers.progress.asked, answers.progress.answered, answers.progress.failed) == (3, 1, 2)


@with_harness
async def test_leaving_the_block_gives_up_those_who_have_not_answered(harness: Harness) -> None:
    async with harness.answers as answers:
        harness.answer(1)
        await anext(answers)
    assert len(harness.dispatcher.calls) == 0
    assert harness.named == [[1], [], [], [], [0, 2]]
    assert [arrival async for arrival in answers] == []
    answers.close()
    assert harness.named == [[1], [], [], [], [0, 2]]


@with_harness
async def test_what_has_arrived_when_the_block_is_left_is_named_by_its_end(harness: Harness) -> None:
    async with harness.answers as answers:
        harness.answer(1)
        harness.answer(0, FAILURE)
        harness.dispatcher.ended(harness.members[2])
        harness.dispatcher.settle()
    # A result that was not handed over is kept nowhere.
    assert harness.named == [[], [0], [2], [], [1]]
    assert answers.failures == {harness.members[0]: FAILURE.failure}
    assert [arrival async for arrival in answers] == []
    harness.dispatcher.settle()
    assert harness.named == [[], [0], [2], [], [1]]


@with_harness
async def test_who_is_given_up_when_the_block_is_left_is_named_once(harness: Harness) -> None:
    async with harness.answers as answers:
        harness.answer(0)
        harness.answer(1, FAILURE)
        harness.dispatcher.settle()
        await anext(answers)
    assert harness.named == [[0], [1], [], [], [2]]
    harness.dispatcher.settle()  # now it is told that 2 is cancelled
    harness.answer(2)
    harness.dispatcher.settle()
    assert [arrival async for arrival in answers] == []
    assert harness.named == [[0], [1], [], [], [2]]


@with_harness
async def test_cancelling_who_waits_for_the_next_gives_the_call_up(harness: Harness) -> None:
    waiting = asyncio.ensure_future(anext(harness.answers))
    await asyncio.sleep(0)
    assert len(harness.dispatcher.calls) == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(harness.dispatcher.calls) == 0
    assert harness.named == [[], [], [], [], [0, 1, 2]]


@with_harness
async def test_what_ends_the_call_early_is_raised_once_all_that_came_before_is_handed_over(
    harness: Harness,
) -> None:
    async with harness.answers as answers:
        harness.answer(0)
        harness.dispatcher.settle()
        harness.listener.failed(Closed("the coordinator is gone"))
        assert await anext(answers) == (harness.members[0], RESULT)
        with pytest.raises(Closed, match="the coordinator is gone"):
            await anext(answers)
        assert harness.named == [[0], [], [], [], [1, 2]]


@with_harness
async def test_a_call_that_can_not_be_started_gives_up_nothing(harness: Harness) -> None:
    def refuse(listener: Any) -> Call:
        raise Closed("closed already")

    answers: AsyncAnswers[Any] = AsyncAnswers(harness.members, harness.dispatcher, refuse)
    with pytest.raises(Closed):
        await anext(answers)
    assert answers.progress.asked == 3
    assert len(harness.dispatcher.calls) == 0


@with_harness
async def test_what_is_left_when_everything_is_closed_is_lost(harness: Harness) -> None:
    async with harness.answers as answers:
        harness.answer(0)
        harness.dispatcher.close()
        assert [proxy async for proxy, _ in answers] == [harness.members[0]]
    assert harness.named == [[0], [], [1, 2], [], []]


def test_an_iterator_that_is_collected_on_the_loop_gives_the_call_up_once_it_may() -> None:
    """Not at once: the garbage collector may come amid anything."""
    loop = LoopThread("test")
    iterators: list[Iterator[Any]] = []

    async def begin() -> Harness:
        return Harness()

    async def answer() -> None:
        harness.answers._begin()
        harness.answer(1)

    async def collect() -> int:
        iterators.clear()
        return len(harness.dispatcher.calls)

    async def end() -> int:
        running = len(harness.dispatcher.calls)
        harness.dispatcher.close()
        return running

    harness = loop.run(begin())
    answers: Answers[Any] = Answers(harness.answers, loop)
    loop.run(answer())
    iterators.append(iter(answers))
    assert next(iterators[0]) == (harness.members[1], RESULT)
    assert loop.run(collect()) == 1
    assert loop.run(end()) == 0
    assert harness.named == [[1], [], [], [], [0, 2]]
    loop.close()
