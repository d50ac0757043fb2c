"""The control server's half of an attached script, without a socket: what it may ask, and what it gets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from coordinator.batches import MAX_BATCH_BYTES, BatchWriter
from coordinator.control import Attachment
from manager.dispatcher import Dispatcher
from manager.members import Member
from protos import control_pb2
from protos.messages import instruction
from tests.manager.support import make_member

PAYLOAD = instruction("train", payload=bytes(100)).SerializeToString()


class Harness:
    """An attachment to a dispatcher whose transport only takes note."""

    def __init__(self, members: int) -> None:
        self.sends: list[tuple[Member, int, bytes]] = []
        self.cancels: list[int] = []
        self.batches: list[control_pb2.ServerBatch] = []
        self.dispatcher = Dispatcher(self)
        self.members = [make_member(self.dispatcher.new_key()) for _ in range(members)]
        for member in self.members:
            self.dispatcher.joined(member)
        self.attachment = Attachment(
            self.dispatcher, BatchWriter(control_pb2.ServerBatch, self._write, on_error=self._fail)
        )

    async def _write(self, batch: control_pb2.ServerBatch) -> None:
        self.batches.append(batch)

    def _fail(self) -> None:
        raise AssertionError("a batch could not be written")

    def instruct(self, sends: Sequence[tuple[Member, int, bytes]]) -> None:
        self.sends.extend(sends)

    def cancel(self, member: Member, tag: int) -> None:
        self.cancels.append(tag)

    def end(self, member: Member) -> None:
        raise AssertionError("nobody is replaced here")

    async def ask(self, **fields: Any) -> control_pb2.ServerBatch:
        """Hands a batch over, and returns all that came back once the loop has nothing left to do."""
        self.attachment.handle(control_pb2.ClientBatch(**fields))
        return await self.answers()

    async def answers(self) -> control_pb2.ServerBatch:
        for _ in range(10):
            await asyncio.sleep(0)
        merged = control_pb2.ServerBatch()
        for batch in self.batches:
            merged.MergeFrom(batch)
        self.batches.clear()
        return merged


def with_harness(
    members: int,
) -> Callable[[Callable[[Harness], Coroutine[Any, Any, None]]], Callable[[], None]]:
    """Runs an asynchronous test with a harness of so many members."""

    def decorate(test: Callable[[Harness], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        def run() -> None:
            async def main() -> None:
                harness = Harness(members)
                await test(harness)
                harness.attachment.close()
                harness.dispatcher.close()

            asyncio.run(main())

        run.__name__ = test.__name__
        return run

    return decorate


def acquire(number: int, minimum: int = 1, **fields: Any) -> control_pb2.Acquire:
    return control_pb2.Acquire(id=number, min_participants=minimum, **fields)


def call(number: int, harness: Harness, **fields: Any) -> control_pb2.StartCall:
    keys = [member.key for member in harness.members]
    return control_pb2.StartCall(id=number, **{"participants": keys, "payloads": [PAYLOAD], **fields})


@with_harness(3)
async def test_a_broadcast_stays_one_payload(harness: Harness) -> None:
    await harness.ask(calls=[call(1, harness)])
    assert len(harness.sends) == 3
    assert len({id(payload) for _, _, payload in harness.sends}) == 1


@with_harness(2)
async def test_each_outcome_is_told_once(harness: Harness) -> None:
    await harness.ask(calls=[call(7, harness)])
    (first, tag, _), (second, _, _) = harness.sends
    harness.dispatcher.answered([(first, tag, b"")])
    harness.dispatcher.ended(second)
    told = (await harness.answers()).settled
    assert [(settled.call, settled.index, settled.outcome) for settled in told] == [
        (7, 0, control_pb2.RESULT),
        (7, 1, control_pb2.LOST),
    ]
    assert len(harness.dispatcher.calls) == 0


@with_harness(1)
async def test_calls_to_those_who_have_gone_are_lost_at_once(harness: Harness) -> None:
    told = (await harness.ask(calls=[call(1, harness, participants=[999])])).settled
    assert [settled.outcome for settled in told] == [control_pb2.LOST]


@with_harness(2)
async def test_a_script_that_ends_leaves_nothing_behind(harness: Harness) -> None:
    await harness.ask(acquires=[acquire(1, 2, lease=True), acquire(2, 5)])
    await harness.ask(calls=[call(3, harness)])
    assert harness.dispatcher.pool.leased == 2
    harness.attachment.close()
    await harness.answers()
    assert harness.dispatcher.pool.leased == 0
    assert harness.dispatcher.pool.waiting == 0
    assert len(harness.dispatcher.calls) == 0


@with_harness(1)
async def test_a_request_given_up_in_the_same_breath_is_forgotten(harness: Harness) -> None:
    await harness.ask(acquires=[acquire(1, 1, lease=True)], abandons=[1])
    assert harness.dispatcher.pool.leased == 0
    assert (await harness.ask(acquires=[acquire(1, 1)])).granted[0].id == 1, "the number is free again"


@with_harness(1)
async def test_who_goes_between_the_grant_and_its_message_is_told_to_be_gone(harness: Harness) -> None:
    (member,) = harness.members
    harness.attachment.handle(control_pb2.ClientBatch(acquires=[acquire(1)]))
    await asyncio.sleep(0)
    harness.dispatcher.settle()  # granted; the request's own task has not run yet
    harness.dispatcher.ended(member)
    harness.attachment.gone(member)
    told = await harness.answers()
    assert [participant.key for participant in told.granted[0].participants] == [member.key]
    assert list(told.gone) == [member.key]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"acquires": [acquire(1, timeout_seconds=math.nan)]}, "timeout"),
        ({"acquires": [acquire(1, timeout_seconds=-1)]}, "timeout"),
        ({"acquires": [acquire(1, 3, max_participants=2)]}, "maximum of 2"),
        ({"acquires": [acquire(1, 9), acquire(1, 9)]}, "request 1 exists"),
        (
            {"calls": [control_pb2.StartCall(id=1, participants=[1, 1, 1], payloads=[PAYLOAD] * 2)]},
            "2 payloads",
        ),
        ({"calls": [control_pb2.StartCall(id=1, participants=[1], payloads=[b"\x12\x00"])]}, "neither"),
        ({"calls": [control_pb2.StartCall(id=1, participants=[1], payloads=[b""], quorum=0)]}, "quorum"),
        ({"calls": [control_pb2.StartCall(id=1, participants=[1], payloads=[b""])] * 2}, "call 1 exists"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], says: str) -> None:
    async def main() -> None:
        harness = Harness(1)
        with pytest.raises(ValueError, match=says):
            harness.attachment.handle(control_pb2.ClientBatch(**fields))
        harness.attachment.close()
        await harness.answers()
        harness.dispatcher.close()

    asyncio.run(main())


def test_a_batch_ends_before_it_grows_too_large_and_keeps_the_order() -> None:
    async def main() -> None:
        batches: list[control_pb2.ServerBatch] = []

        async def write(batch: control_pb2.ServerBatch) -> None:
            batches.append(batch)

        writer = BatchWriter(control_pb2.ServerBatch, write, on_error=batches.clear)
        for number, size in enumerate([10, MAX_BATCH_BYTES, 10, 10, MAX_BATCH_BYTES - 20, 1]):
            writer.add("gone", number, size)
        for _ in range(10):
            await asyncio.sleep(0)
        assert [list(batch.gone) for batch in batches] == [[0], [1], [2, 3, 4], [5]]

    asyncio.run(main())


def test_a_batch_that_cannot_be_written_ends_the_stream() -> None:
    async def main() -> None:
        ended: list[bool] = []

        async def write(batch: control_pb2.ServerBatch) -> None:
            raise ValueError("too large to be serialised")

        writer = BatchWriter(control_pb2.ServerBatch, write, on_error=lambda: ended.append(True))
        writer.add("gone", 1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert ended == [True]

    asyncio.run(main())
