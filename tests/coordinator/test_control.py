"""The control server's half of an attached script, without a socket: what it may ask, and what it gets."""

from __future__ import annotations

import asyncio
import math
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.control.attachment import CONTROL_VERSION, Attachment
from coordinator.control.passing import Outgoing
from coordinator.control.server import Subject, _Servicer
from coordinator.control.writer import MAX_BATCH_BYTES, BatchWriter
from coordinator.workers.links import _spare_descriptors
from coordinator.workers.slot import Slot
from manager.core.call import Call, Send
from manager.core.dispatcher import Dispatcher
from manager.core.members import Member
from manager.payloads.blobs import CAN_SHARE, SHARE_SIZE, Blob, Payload, Sample, open_shared, view_of
from manager.reducing.schema import encode_schema
from manager.reducing.shares import Folded, Group, Partial, Reduction
from protos import control_pb2, link_pb2, stream_pb2
from protos.frames import Shared
from protos.messages import instruction, result
from tests.manager.support import make_member

PAYLOAD = control_pb2.Payload(data=instruction("train", payload=bytes(100)).SerializeToString())
EMPTY = control_pb2.Payload()
SCHEMA = encode_schema((("w", (2,), "float32"),))

needs_shared_memory = pytest.mark.skipif(not CAN_SHARE, reason="needs memory that can be shared")


class Harness:
    """An attachment to a dispatcher whose transport only takes note."""

    def __init__(self, members: int) -> None:
        self.sends: list[Send] = []
        self.closes: list[tuple[int, int]] = []
        self.cancels: list[int] = []
        self.ends: list[Member] = []
        self.batches: list[control_pb2.ServerBatch] = []
        self.sample = Sample()
        self.dispatcher = Dispatcher(self)
        self.members = [make_member(self.dispatcher.new_key()) for _ in range(members)]
        for member in self.members:
            self.dispatcher.joined(member)
        self.attachment = Attachment(
            self.dispatcher,
            BatchWriter(control_pb2.ServerBatch, self._write, on_error=self._fail),
            self.sample.message(),
        )

    async def _write(self, batch: control_pb2.ServerBatch) -> None:
        self.batches.append(batch)

    def _fail(self) -> None:
        raise AssertionError("a batch could not be written")

    @property
    def instructed(self) -> list[tuple[Member, int, Payload]]:
        """Who was sent what, one by one."""
        return [(member, send.tag, send.payload) for send in self.sends for member in send.members]

    def keep(self, instruction: bytes) -> Payload:
        raise AssertionError("what comes from a script is kept as it came")

    def instruct(self, sends: Sequence[Send]) -> None:
        self.sends.extend(sends)

    def cancel(self, member: Member, tag: int) -> None:
        self.cancels.append(tag)

    def close_batch(self, worker: int, call: Call) -> None:
        self.closes.append((worker, call.id))

    def end(self, member: Member) -> None:
        self.ends.append(member)

    def replace(self, member: Member) -> None:
        """The same participant connects again, on a new stream."""
        again = make_member(self.dispatcher.new_key(), member.participant_id)
        self.members.append(again)
        self.dispatcher.joined(again)

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
    (send,) = harness.sends
    assert list(send.members) == harness.members
    assert view_of(send.payload) == PAYLOAD.data


@with_harness(3)
async def test_a_broadcast_to_those_at_work_stays_one_payload(harness: Harness) -> None:
    await harness.ask(calls=[call(1, harness), call(2, harness)])
    harness.dispatcher.answered([(member, tag, b"") for member, tag, _ in harness.instructed])
    await harness.answers()
    assert len(harness.instructed) == 6
    assert len({id(payload) for _, _, payload in harness.instructed[3:]}) == 1


@with_harness(2)
async def test_each_outcome_is_told_once(harness: Harness) -> None:
    await harness.ask(calls=[call(7, harness)])
    (first, tag, _), (second, _, _) = harness.instructed
    harness.dispatcher.answered([(first, tag, b"")])
    harness.dispatcher.ended(second)
    told = (await harness.answers()).settled
    assert told == [
        control_pb2.Settled(call=7, indices=[0, 1], outcomes=[control_pb2.RESULT, control_pb2.LOST])
    ], "nobody's answer has bytes, so none is sent along"
    assert len(harness.dispatcher.calls) == 0


@with_harness(3)
async def test_answers_with_bytes_come_with_their_outcome(harness: Harness) -> None:
    answers = [result(payload=payload).SerializeToString() for payload in (b"a", b"b")]
    await harness.ask(calls=[call(7, harness)])
    (first, tag, _), (second, _, _), (third, _, _) = harness.instructed
    harness.dispatcher.answered([(third, tag, answers[0]), (second, tag, b""), (first, tag, answers[1])])
    told = (await harness.answers()).settled
    assert sorted(
        (index, outcome, answer.data)
        for each in told
        for index, outcome, answer in zip(
            each.indices, each.outcomes, each.answers or [EMPTY] * len(each.indices), strict=True
        )
    ) == [
        (0, control_pb2.RESULT, answers[1]),
        (1, control_pb2.RESULT, b""),
        (2, control_pb2.RESULT, answers[0]),
    ]


@with_harness(3)
async def test_large_answers_do_not_share_a_message(harness: Harness) -> None:
    large = result(payload=bytes(MAX_BATCH_BYTES // 2)).SerializeToString()
    await harness.ask(calls=[call(7, harness)])
    harness.dispatcher.answered([(member, tag, large) for member, tag, _ in harness.instructed])
    for _ in range(10):
        await asyncio.sleep(0)
    indices = [list(settled.indices) for batch in harness.batches for settled in batch.settled]
    assert indices == [[0], [1], [2]]
    assert max(batch.ByteSize() for batch in harness.batches) <= MAX_BATCH_BYTES + 1_000


@with_harness(1)
async def test_who_was_replaced_may_still_answer_until_its_end_is_reported(harness: Harness) -> None:
    (member,) = harness.members
    await harness.ask(calls=[call(1, harness), call(2, harness), call(3, harness)])
    harness.replace(member)
    told = await harness.answers()
    assert harness.ends == [member]
    assert list(told.settled) == [], "its answer may be on its way"
    assert len(harness.dispatcher.calls) == 3
    assert list(harness.dispatcher.pool) == harness.members[1:]
    harness.dispatcher.answered([(member, member.tag, b"")])
    told = await harness.answers()
    assert told.settled == [control_pb2.Settled(call=1, indices=[0], outcomes=[control_pb2.RESULT])]
    harness.dispatcher.ended(member)
    told = await harness.answers()
    assert sorted((each.call, *each.outcomes) for each in told.settled) == [
        (2, control_pb2.LOST),
        (3, control_pb2.LOST),
    ]
    assert harness.ends == [member]


@with_harness(1)
async def test_a_script_hears_once_that_somebody_was_replaced(harness: Harness) -> None:
    (member,) = harness.members
    gone: list[Member] = []
    harness.dispatcher.on_ended = gone.append
    harness.replace(member)
    assert gone == [member]
    harness.dispatcher.ended(member)
    assert gone == [member]


@with_harness(1)
async def test_nothing_waits_for_who_was_replaced_when_everything_is_closed(harness: Harness) -> None:
    (member,) = harness.members
    await harness.ask(calls=[call(1, harness)])
    harness.replace(member)
    await harness.answers()
    harness.dispatcher.close()
    told = await harness.answers()
    assert told.settled == [control_pb2.Settled(call=1, indices=[0], outcomes=[control_pb2.LOST])]
    assert len(harness.dispatcher.calls) == 0
    assert not member.busy


# Reducing calls


@with_harness(3)
async def test_a_reducing_call_is_told_as_it_goes_and_its_states_before_its_end(harness: Harness) -> None:
    reduction = Reduction("sum", {"dtype": "float64"})
    asked = call(7, harness, reduction=reduction.message())
    await harness.ask(calls=[asked])
    (send,) = harness.sends
    assert send.call is not None
    assert send.call.reduction == reduction
    first, second, third = harness.members
    by_session = {member.session: member for member in harness.members}
    folded = Folded(send.call.id, 1, [first.session, second.session], 30, tag=0)
    harness.dispatcher.folded(0, folded, by_session)
    told = await harness.answers()
    assert told == control_pb2.ServerBatch(advanced=[control_pb2.Advanced(call=7, answered=2, bytes=30)])
    harness.dispatcher.ended(third)
    told = await harness.answers()
    assert [list(settled.indices) for settled in told.settled] == [[2]]
    harness.dispatcher.partial(0, Partial(send.call.id, 1, [Group(SCHEMA, [], b"state")], closed=False))
    for _ in range(10):
        await asyncio.sleep(0)
    kinds = [field.name for batch in harness.batches for field, _ in batch.ListFields()]
    assert kinds.index("states") <= kinds.index("settled")
    told = await harness.answers()
    assert told.states == [control_pb2.State(call=7, payload=control_pb2.Payload(data=b"state"))]
    assert told.settled == [
        control_pb2.Settled(call=7, indices=[0, 1], outcomes=[control_pb2.RESULT, control_pb2.RESULT])
    ]
    assert len(harness.dispatcher.calls) == 0


@with_harness(3)
async def test_a_worker_may_say_of_everybody_at_once_that_they_are_folded_in(harness: Harness) -> None:
    await harness.ask(calls=[call(7, harness, reduction=Reduction("sum").message())])
    (send,) = harness.sends
    assert send.call is not None
    by_session = {member.session: member for member in harness.members}
    harness.dispatcher.folded(0, Folded(send.call.id, 1, [], 30, send.tag), by_session)
    told = await harness.answers()
    assert told == control_pb2.ServerBatch(advanced=[control_pb2.Advanced(call=7, answered=3, bytes=30)])
    harness.dispatcher.partial(0, Partial(send.call.id, 1, [Group(SCHEMA, [], b"state")], closed=False))
    told = await harness.answers()
    assert told.states == [control_pb2.State(call=7, payload=control_pb2.Payload(data=b"state"))]
    assert told.settled == [control_pb2.Settled(call=7, indices=[0, 1, 2], outcomes=[control_pb2.RESULT] * 3)]


@with_harness(2)
async def test_what_a_reducer_could_not_say_is_told_as_failures_with_the_reason(harness: Harness) -> None:
    await harness.ask(calls=[call(7, harness, reduction=Reduction("sum").message())])
    (send,) = harness.sends
    assert send.call is not None
    by_session = {member.session: member for member in harness.members}
    harness.dispatcher.folded(0, Folded(send.call.id, 1, [], 30, send.tag), by_session)
    partial = Partial(send.call.id, 1, [], closed=False, error="the reducer failed")
    harness.dispatcher.partial(0, partial)
    told = await harness.answers()
    assert list(told.states) == []
    (settled,) = told.settled
    assert list(settled.indices) == [0, 1]
    assert list(settled.outcomes) == [control_pb2.FAILURE] * 2
    for answer in settled.answers:
        said = stream_pb2.ParticipantMessage.FromString(answer.data)
        assert said.failure.text == "the reducer failed"


@with_harness(2)
async def test_a_reducing_call_that_is_cancelled_asks_for_what_workers_have(harness: Harness) -> None:
    asked = call(7, harness, reduction=Reduction("sum").message())
    await harness.ask(calls=[asked])
    told = await harness.ask(cancels=[7])
    (send,) = harness.sends
    assert send.call is not None
    assert harness.closes == [(0, send.call.id)]
    assert told == control_pb2.ServerBatch()
    harness.dispatcher.partial(0, Partial(send.call.id, 1, [], closed=True))
    told = await harness.answers()
    assert told.settled == [control_pb2.Settled(call=7, indices=[0, 1], outcomes=[control_pb2.CANCELLED] * 2)]


# Payloads in shared memory


@with_harness(1)
async def test_the_first_message_is_answered_with_whose_memory_can_be_opened(harness: Harness) -> None:
    sample = Sample()
    greeting = harness.attachment.greet(control_pb2.ClientBatch(version=1, memory=sample.message()))
    assert greeting.version == CONTROL_VERSION
    assert greeting.shares_memory == CAN_SHARE
    assert greeting.memory == (harness.sample.message() or link_pb2.Memory())
    stranger = control_pb2.ClientBatch(memory=link_pb2.Memory(pid=1, descriptor=1, content=b"no"))
    assert not harness.attachment.greet(stranger).shares_memory


@needs_shared_memory
@with_harness(2)
async def test_an_instruction_in_the_scripts_memory_is_opened_once(harness: Harness) -> None:
    sample = Sample()
    harness.attachment.greet(control_pb2.ClientBatch(version=1, memory=sample.message()))
    large = instruction("train", payload=bytes(SHARE_SIZE)).SerializeToString()
    blob = Blob.of(large)
    shared = control_pb2.Payload(descriptor=blob.descriptor, size=len(blob))
    await harness.ask(calls=[call(1, harness, payloads=[shared])])
    (send,) = harness.sends
    assert list(send.members) == harness.members
    assert view_of(send.payload) == large


@needs_shared_memory
@with_harness(1)
async def test_an_answer_in_shared_memory_is_kept_until_the_script_has_opened_it(harness: Harness) -> None:
    sample = Sample()
    harness.attachment.greet(control_pb2.ClientBatch(version=1, memory=sample.message()))
    await harness.ask(shares_memory=True, calls=[call(1, harness)])
    large = result(payload=bytes(SHARE_SIZE)).SerializeToString()
    blob = Blob.of(large)
    shared, alive = Shared(blob.descriptor, len(blob)), weakref.ref(blob)
    harness.dispatcher.answered([(harness.members[0], harness.members[0].tag, blob)])
    del blob
    (settled,) = (await harness.answers()).settled
    assert settled.answers == [control_pb2.Payload(descriptor=shared.descriptor, size=shared.size)]
    assert view_of(open_shared(os.getpid(), shared, sealed=True)) == large
    assert alive() is not None
    await harness.ask(opened=[shared.descriptor])
    assert alive() is None


@needs_shared_memory
@with_harness(1)
async def test_an_answer_in_shared_memory_is_copied_for_a_script_without_it(harness: Harness) -> None:
    await harness.ask(calls=[call(1, harness)])
    large = result(payload=bytes(SHARE_SIZE)).SerializeToString()
    harness.dispatcher.answered([(harness.members[0], harness.members[0].tag, Blob.of(large))])
    (settled,) = (await harness.answers()).settled
    assert settled.answers == [control_pb2.Payload(data=large)]


@needs_shared_memory
@pytest.mark.parametrize("keep", [False, True])
def test_what_is_sent_is_kept_until_it_is_opened_unless_somebody_else_does(keep: bool) -> None:
    outgoing = Outgoing()
    outgoing.shares_memory = True
    blob = Blob.of(bytes(SHARE_SIZE))
    alive, descriptor = weakref.ref(blob), blob.descriptor
    shared = control_pb2.Payload(descriptor=descriptor, size=SHARE_SIZE)
    assert outgoing.message(blob, keep=keep) == shared
    del blob
    assert (alive() is not None) == keep
    outgoing.opened(descriptor)
    assert alive() is None


@needs_shared_memory
def test_what_has_no_descriptor_any_more_is_sent_as_bytes() -> None:
    outgoing = Outgoing()
    outgoing.shares_memory = True
    blob = Blob.of(b"content")
    blob.settle()
    assert outgoing.message(blob) == control_pb2.Payload(data=b"content")


@needs_shared_memory
@with_harness(2)
async def test_an_answer_takes_no_descriptor_unless_it_is_passed_on(harness: Harness) -> None:
    first, second = harness.members
    await harness.ask(calls=[call(1, harness, participants=[first.key])])
    harness.dispatcher.start_call([second], [b""], None, None)
    passed_on, stays, late = (Blob.of(result(payload=b"42").SerializeToString()) for _ in range(3))
    _spare_descriptors([first, second, None], [passed_on, stays, late])
    assert passed_on.descriptor >= 0
    assert stays.descriptor == -1
    assert view_of(stays) == view_of(passed_on)


# What a script may not ask, and what it leaves behind


@with_harness(1)
async def test_calls_to_those_who_have_gone_are_lost_at_once(harness: Harness) -> None:
    told = (await harness.ask(calls=[call(1, harness, participants=[999])])).settled
    assert [list(settled.outcomes) for settled in told] == [[control_pb2.LOST]]


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
        (
            {
                "calls": [
                    control_pb2.StartCall(
                        id=1, participants=[1], payloads=[control_pb2.Payload(data=b"\x12\x00")]
                    )
                ]
            },
            "neither",
        ),
        ({"calls": [control_pb2.StartCall(id=1, participants=[1], payloads=[EMPTY], quorum=0)]}, "quorum"),
        ({"calls": [control_pb2.StartCall(id=1, participants=[1], payloads=[EMPTY])] * 2}, "call 1 exists"),
        (
            {
                "calls": [
                    control_pb2.StartCall(
                        id=1,
                        participants=[1, 2, 1],
                        payloads=[EMPTY],
                        reduction=link_pb2.Reduction(reducer="mean"),
                    )
                ]
            },
            "named twice",
        ),
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


def test_a_call_whose_instruction_is_gone_is_lost_and_costs_the_script_nothing_else() -> None:
    async def main() -> None:
        harness = Harness(1)
        start = control_pb2.StartCall(
            id=1, participants=[1, 2], payloads=[control_pb2.Payload(size=2**20, descriptor=2**31 - 1)]
        )
        harness.attachment.handle(control_pb2.ClientBatch(calls=[start]))
        (settled,) = (await harness.answers()).settled
        assert (settled.call, list(settled.indices)) == (1, [0, 1])
        assert list(settled.outcomes) == [control_pb2.LOST, control_pb2.LOST]
        harness.attachment.close()
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


# Rolling restarts


@pytest.mark.parametrize("sent", [False, True])
def test_a_rolling_restart_ends_with_its_client(sent: bool) -> None:
    """Wherever it is then: while a worker is restarted, or while it is told of one that was."""
    active = False

    async def restarted() -> AsyncGenerator[Slot]:
        nonlocal active
        active = True
        try:
            if sent:
                yield Slot(0)
            await asyncio.Event().wait()
        finally:
            active = False

    class Context:
        async def write(self, message: control_pb2.Restarted) -> None:
            await asyncio.Event().wait()  # nobody reads

    async def main() -> None:
        subject = SimpleNamespace(
            dispatcher=None, settings=SimpleNamespace(workers=1), restart_workers=restarted
        )
        servicer = _Servicer(cast(Subject, subject))
        handler = asyncio.ensure_future(
            servicer.RestartWorkers(control_pb2.RestartRequest(), cast(Any, Context()))
        )
        for _ in range(5):
            await asyncio.sleep(0)
        assert active
        handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handler
        assert not active

    asyncio.run(main())
