"""Which worker is told to drain when, and what becomes of those who move meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any
from unittest import mock

from coordinator.workers.downlink import Downlink, State
from coordinator.workers.draining import Draining
from coordinator.workers.transport import LinkTransport, Worker
from manager.core.call import Call
from manager.core.dispatcher import Dispatcher
from manager.core.members import Member
from protos import link_pb2


class Cluster:
    """Workers with links that are open, and the participants on them."""

    def __init__(self, count: int) -> None:
        self.workers = [Worker(index, self.link(index), capacity=2) for index in range(count)]
        transport = LinkTransport(self.workers, self.note)
        self.said: list[tuple[int, str | None]] = []  # to whom, and what kind of message
        self.asked: list[tuple[int, float]] = []  # who was told to drain, and its grace
        self.dispatcher = Dispatcher(transport)
        self.draining = Draining(self.workers, self.dispatcher, transport, orphan_grace=30.0)
        self.draining.look_for_room()

    def link(self, index: int) -> Downlink:
        link = Downlink(index, 1, epoch=7, heartbeat=1.0, liveness=3.0, grace=30.0)
        link.received(link_pb2.Upward(hello=link_pb2.Hello(version=1, incarnation=1, handshake=1)), 0.0)
        link.out.clear()
        assert link.state is State.OPEN
        return link

    def note(self, worker: Worker) -> None:
        for frames in worker.downlink.out:
            message = link_pb2.Downward.FromString(bytes(frames[0]))
            self.said.append((worker.index, message.WhichOneof("body")))
            if message.HasField("drain"):
                self.asked.append((worker.index, message.drain.grace_seconds))
        worker.downlink.out.clear()

    @property
    def who(self) -> list[int]:
        return [index for index, _ in self.asked]

    def lets_in(self) -> bool:
        return not self.dispatcher.pool.is_shut

    def join(self, worker: int, name: str) -> Member:
        key = self.dispatcher.new_key()
        member = Member(key, name, {}, worker, session=key, joined_at=float(key))
        self.workers[worker].members[key] = member
        self.dispatcher.joined(member)
        return member

    def call(self, *members: Member) -> Call:
        return self.dispatcher.start_call(members, [b"x"], timeout=None, quorum=None)

    def answer(self, member: Member) -> None:
        self.dispatcher.answered([(member, member.tag, b"\x0a\x00")])
        self.dispatcher.settle()

    def move(self, member: Member) -> None:
        del self.workers[member.worker].members[member.session]
        self.dispatcher.moved(member)
        self.dispatcher.settle()


def with_workers(count: int) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[[], None]]:
    def wrap(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
        @wraps(test)
        def run() -> None:
            async def main() -> None:
                cluster = Cluster(count)
                await test(cluster)
                cluster.dispatcher.close()

            asyncio.run(main())

        del run.__wrapped__  # pytest would look for its arguments
        return run

    return wrap


async def asked(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(20):
        while len(cluster.asked) < count:  # noqa: ASYNC110 - it is a timer's
            await asyncio.sleep(0.001)


def outcomes(calls: Sequence[Call]) -> list[list[str | None]]:
    return [[None if each is None else each[0].name for each in call.outcomes] for call in calls]


@with_workers(2)
async def test_all_are_asked_at_once_if_nothing_waits_behind_anything(cluster: Cluster) -> None:
    cluster.call(cluster.join(0, "a"))
    cluster.draining.drain_all(60.0)
    assert cluster.who == [0, 1]
    assert all(59.0 < grace <= 60.0 for _, grace in cluster.asked)


@with_workers(2)
async def test_one_whose_participant_has_more_to_do_is_asked_later(cluster: Cluster) -> None:
    member = cluster.join(1, "a")
    calls = [cluster.call(member), cluster.call(member), cluster.call(member)]
    cluster.draining.drain_all(60.0)
    assert cluster.who == [0]
    cluster.answer(member)
    assert cluster.who == [0]
    cluster.answer(member)
    assert cluster.who == [0, 1], "it works on the last one"
    cluster.answer(member)
    assert outcomes(calls) == [["RESULT"]] * 3


@with_workers(2)
async def test_its_instruction_is_on_its_way_before_it_is_asked(cluster: Cluster) -> None:
    first = cluster.join(0, "a")
    cluster.call(first)
    cluster.dispatcher.settle()
    cluster.call(first)
    cluster.draining.drain_all(60.0)
    cluster.answer(first)
    said = [body for index, body in cluster.said if index == 0]
    assert said[-2:] == ["orders", "drain"]
    assert said.count("drain") == 1


@with_workers(3)
async def test_what_waits_for_one_that_moves_holds_all(cluster: Cluster) -> None:
    member = cluster.join(0, "a")
    cluster.move(member)
    cluster.call(member)
    cluster.draining.drain_all(60.0)
    assert cluster.who == []
    back = Member(cluster.dispatcher.new_key(), "a", {}, 2, session=9, joined_at=1000.0)
    assert cluster.dispatcher.returned(back) is member
    cluster.workers[2].members[9] = member
    cluster.dispatcher.settle()
    assert sorted(cluster.who) == [0, 1, 2]
    assert list(cluster.dispatcher.pool) == [member]
    cluster.answer(member)


@with_workers(2)
async def test_who_moves_and_is_not_waited_for_holds_nobody(cluster: Cluster) -> None:
    member = cluster.join(0, "a")
    cluster.move(member)
    cluster.draining.drain_all(60.0)
    assert cluster.who == [0, 1]
    assert member.gone
    late = cluster.join(1, "b")
    cluster.move(late)
    assert late.gone, "nobody is expected back any more"


@with_workers(1)
async def test_who_was_asked_to_do_something_as_it_was_told_to_move_is_expected_back(
    cluster: Cluster,
) -> None:
    member = cluster.join(0, "a")
    first, second = cluster.call(member), cluster.call(member)
    cluster.draining.drain_all(60.0)
    cluster.move(member)  # its worker was told to end, too, and the instruction crossed that
    assert member in cluster.dispatcher.pool.away
    assert outcomes([first, second]) == [[None], [None]]


@with_workers(1)
async def test_nobody_is_expected_back_where_nobody_is_let_in(cluster: Cluster) -> None:
    member = cluster.join(0, "a")
    cluster.draining.drain(cluster.workers[0], 60.0)
    call = cluster.call(member)
    cluster.move(member)
    assert member in cluster.dispatcher.pool.away
    cluster.draining.drain_all(60.0)
    assert member.gone
    cluster.dispatcher.settle()
    assert outcomes([call]) == [["LOST"]]


@with_workers(2)
async def test_after_the_grace_they_are_asked_anyway(cluster: Cluster) -> None:
    member = cluster.join(1, "a")
    cluster.call(member)
    cluster.call(member)
    cluster.draining.drain_all(0.01)
    assert cluster.who == [0]
    await asked(cluster, 2)
    assert cluster.asked[1] == (1, 0.0)


@with_workers(2)
async def test_a_shorter_grace_is_passed_on_and_a_longer_one_is_not(cluster: Cluster) -> None:
    member = cluster.join(1, "a")
    cluster.call(member)
    cluster.call(member)
    cluster.draining.drain_all(60.0)
    cluster.draining.drain_all(0.0)
    assert sorted(cluster.asked[1:]) == [(0, 0.0), (1, 0.0)]
    until = cluster.workers[0].drain_until
    cluster.draining.drain(cluster.workers[0], 600.0)
    assert cluster.workers[0].drain_until == until


@with_workers(2)
async def test_a_worker_that_was_told_to_end_goes_at_once(cluster: Cluster) -> None:
    cluster.draining.let_go(cluster.workers[1])
    cluster.draining.let_go(cluster.workers[1])
    await asked(cluster, 1)
    assert cluster.asked == [(1, 30.0)]


@with_workers(2)
async def test_if_all_are_to_end_it_goes_when_they_do(cluster: Cluster) -> None:
    member = cluster.join(1, "a")
    cluster.call(member)
    cluster.call(member)
    cluster.draining.drain_all(600.0)
    cluster.draining._let_go(cluster.workers[1], cluster.workers[1].downlink)
    assert cluster.who == [0]
    cluster.answer(member)
    assert cluster.who == [0, 1]
    assert cluster.asked[1][1] > 590.0


@with_workers(2)
async def test_of_a_signal_to_all_that_comes_to_a_worker_first_nothing_is_lost(cluster: Cluster) -> None:
    member = cluster.join(1, "a")
    cluster.call(member)
    cluster.call(member)
    with mock.patch("coordinator.workers.draining.GROUP_TIME", 0.0):
        cluster.draining.let_go(cluster.workers[1])
        assert cluster.who == []
        cluster.draining.drain_all(600.0)
    for _ in range(3):
        await asyncio.sleep(0.001)
    assert cluster.who == [0]


@with_workers(1)
async def test_the_next_incarnation_is_not_what_was_told_to_end(cluster: Cluster) -> None:
    before = cluster.workers[0].downlink
    cluster.workers[0].downlink = cluster.link(0)
    cluster.draining._let_go(cluster.workers[0], before)
    assert cluster.asked == []


@with_workers(1)
async def test_an_order_that_a_new_handshake_may_have_lost_is_repeated(cluster: Cluster) -> None:
    cluster.draining.drain(cluster.workers[0], 60.0)
    cluster.draining.greeted(cluster.workers[0], leaving=False)
    assert cluster.who == [0, 0]
    assert 50.0 < cluster.asked[1][1] <= 60.0


@with_workers(2)
async def test_one_that_drained_before_this_coordinator_was_there_is_known_to_let_nobody_in(
    cluster: Cluster,
) -> None:
    cluster.draining.greeted(cluster.workers[0], leaving=True)
    await asked(cluster, 1)
    assert cluster.asked == [(0, 30.0)]
    assert cluster.lets_in()
    cluster.draining.drain(cluster.workers[1], 5.0)
    assert not cluster.lets_in()
    worker = cluster.workers[0]
    worker.downlink, worker.drain_until = cluster.link(0), None
    cluster.draining.greeted(worker, leaving=False)
    assert cluster.lets_in()


@with_workers(2)
async def test_while_a_worker_drains_nobody_is_missed_for_whom_there_is_no_room(cluster: Cluster) -> None:
    member, pool = cluster.join(0, "a"), cluster.dispatcher.pool
    for name in "bcd":
        cluster.join(1, name)
    cluster.draining.drain(cluster.workers[0], 60.0)
    cluster.move(member)
    first = pool.next_deadline
    assert first is not None
    assert first > time.monotonic() + pool.return_time_anew - 5.0
    await asyncio.sleep(0.001)
    cluster.draining.tick()
    second = pool.next_deadline
    assert second is not None
    assert second > first
    cluster.workers[0].downlink.gone()
    cluster.draining.tick()
    assert pool.next_deadline == second


@with_workers(1)
async def test_a_call_that_begins_in_the_same_turn_is_there_before_its_worker_is_asked(
    cluster: Cluster,
) -> None:
    member = cluster.join(0, "a")
    cluster.dispatcher.settle()
    cluster.call(member)
    cluster.draining.drain_all(60.0)
    assert cluster.said == [(0, "orders"), (0, "drain")]


@with_workers(2)
async def test_where_workers_have_ports_of_their_own_others_have_no_room_for_who_moves(
    cluster: Cluster,
) -> None:
    cluster.draining._share_port = False
    member, pool = cluster.join(0, "a"), cluster.dispatcher.pool
    cluster.join(0, "b")
    cluster.draining.drain(cluster.workers[0], 60.0)
    cluster.move(member)
    first = pool.next_deadline
    assert first is not None
    assert first > time.monotonic() + pool.return_time_anew - 5.0


@with_workers(1)
async def test_a_worker_without_a_link_can_not_be_asked(cluster: Cluster) -> None:
    cluster.workers[0].downlink.gone()
    assert not cluster.draining.drain(cluster.workers[0], 1.0)
    assert cluster.workers[0].drain_until is None
