"""What an attached script makes of what the coordinator says, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from coordinator.control.access import Access
from coordinator.control.client import Link
from coordinator.control.writer import BatchWriter
from manager.api.outcome import Progress, progress_of
from manager.core.call import OutcomeKind
from manager.core.members import Member
from manager.errors import ReductionError
from manager.reducing.shares import Reduction
from protos import control_pb2
from tests.manager.support import make_member

THERE = control_pb2.Payload(data=b"state")
GONE = control_pb2.Payload(descriptor=9_999, size=5)
"""In the memory of a process that doesn't exist."""


class Harness:
    """A link whose stream only takes note of what is written."""

    def __init__(self) -> None:
        self.batches: list[control_pb2.ClientBatch] = []
        self.link = Link(Access.of("nowhere:1", None, None))
        self.link._writer = BatchWriter(control_pb2.ClientBatch, self._write, on_error=self._fail)
        self.members: list[Member] = [make_member(key) for key in range(1, 4)]

    async def _write(self, batch: control_pb2.ClientBatch) -> None:
        self.batches.append(batch)

    def _fail(self) -> None:
        raise AssertionError("a batch could not be written")

    def reduce(self) -> Any:
        return self.link.start_call(self.members, [b"go"], None, None, Reduction("sum"))

    def hear(self, **fields: Any) -> None:
        self.link._handle(control_pb2.ServerBatch(**fields))

    async def written(self) -> control_pb2.ClientBatch:
        """All that has been written so far."""
        for _ in range(10):
            await asyncio.sleep(0)
        merged = control_pb2.ClientBatch()
        for batch in self.batches:
            merged.MergeFrom(batch)
        return merged


def with_harness(test: Callable[[Harness], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs an asynchronous test."""

    def run() -> None:
        async def main() -> None:
            await test(Harness())

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


def settled(call: Any, *outcomes: control_pb2.Outcome.ValueType) -> control_pb2.Settled:
    return control_pb2.Settled(call=call.id, indices=range(len(outcomes)), outcomes=outcomes)


@with_harness
async def test_the_states_of_a_reducing_call_are_there_when_it_has_ended(harness: Harness) -> None:
    call = harness.reduce()
    harness.hear(states=[control_pb2.State(call=call.id, payload=THERE)] * 2)
    assert not call.waiter.done()
    harness.hear(settled=[settled(call, *[control_pb2.RESULT] * 3)])
    await call.waiter
    assert call.states == [b"state", b"state"]
    assert [kind for kind, _ in call.outcomes] == [OutcomeKind.RESULT] * 3


@pytest.mark.parametrize("payloads", [[GONE], [THERE, GONE], [GONE, GONE], [GONE, THERE, GONE]])
def test_states_that_cannot_be_opened_fail_their_call_and_no_other(
    payloads: list[control_pb2.Payload],
) -> None:
    @with_harness
    async def test(harness: Harness) -> None:
        call, other = harness.reduce(), harness.reduce()
        harness.hear(
            states=[control_pb2.State(call=call.id, payload=payload) for payload in payloads],
            settled=[settled(call, *[control_pb2.RESULT] * 3), settled(other, *[control_pb2.LOST] * 3)],
        )
        with pytest.raises(ReductionError, match="can't be opened"):
            await call.waiter
        await other.waiter
        opened = list((await harness.written()).opened)
        assert opened == [9_999] * payloads.count(GONE), "the coordinator would keep them"

    test()


@with_harness
async def test_a_state_of_a_call_that_was_given_up_is_let_go_of(harness: Harness) -> None:
    call = harness.reduce()
    harness.link.give_up_call(call)
    harness.hear(states=[control_pb2.State(call=call.id, payload=GONE)])
    written = await harness.written()
    assert list(written.opened) == [9_999]
    assert list(written.cancels) == [call.id]
    assert not call.waiter.done()


@with_harness
async def test_who_has_moved_is_the_same_member_where_it_is_now(harness: Harness) -> None:
    """A script hears of that when it is given the participant again."""

    async def granted(**fields: Any) -> Member:
        asking = asyncio.ensure_future(harness.link.acquire(1, None, {}, None, exclusive=False))
        await asyncio.sleep(0)
        (number,) = harness.link._requests
        participant = control_pb2.Participant(key=7, id="p", **fields)
        harness.hear(granted=[control_pb2.Granted(id=number, participants=[participant])])
        (member,) = (await asking).members
        return member

    member = await granted(worker=0, peer="before", attributes={"battery": "full", "region": "eu"})
    assert (member.worker, member.peer) == (0, "before")
    assert await granted(worker=1, peer="after", attributes={"battery": "low"}) is member
    assert (member.worker, member.peer, member.attributes) == (1, "after", {"battery": "low"})
    harness.hear(gone=[7])
    assert member.gone


@with_harness
async def test_progress_is_what_was_told_and_exact_at_the_end(harness: Harness) -> None:
    call = harness.reduce()
    harness.hear(advanced=[control_pb2.Advanced(call=call.id, answered=2, bytes=30)])
    harness.hear(advanced=[control_pb2.Advanced(call=call.id, answered=1, bytes=5)])
    assert progress_of(call) == Progress(3, answered=3, failed=0, bytes=35)
    harness.hear(settled=[settled(call, control_pb2.RESULT, control_pb2.FAILURE, control_pb2.RESULT)])
    assert progress_of(call) == Progress(3, answered=2, failed=1, bytes=35)
