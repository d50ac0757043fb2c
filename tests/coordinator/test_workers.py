"""The links to all workers, in what needs no worker: what goes wrong with one costs the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from coordinator.settings import Settings
from coordinator.workers.downlink import Downlink
from coordinator.workers.links import Workers
from coordinator.workers.run_dir import RunDir
from manager.core.call import OutcomeKind
from manager.core.members import Member
from manager.link.uplink import LINK_VERSION
from protos import link_pb2


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is somebody else's
            await asyncio.sleep(0.001)


def with_workers(path: Path, test: Callable[[Workers], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def main() -> None:
        run_dir = RunDir(path, private=False)
        workers = Workers(Settings(**settings), run_dir, epoch=1)
        workers.open()
        try:
            await test(workers)
        finally:
            await workers.close()
            run_dir.close(finished=True)

    asyncio.run(main())


def test_what_goes_wrong_with_one_worker_ends_nobody_elses_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = [0, 0]

    def tick(self: Downlink, now: float) -> list[Any]:
        ticks[self.index] += 1
        if self.index == 0:
            raise RuntimeError("broken")
        return []

    monkeypatch.setattr(Downlink, "tick", tick)

    async def test(workers: Workers) -> None:
        await until(lambda: min(ticks) >= 3)

    with_workers(tmp_path / "run", test, workers=2, heartbeat=0.01)
    (record,) = [record for record in caplog.records if "worker 0 could not be served" in record.message]
    assert record.exc_info is not None


def test_who_is_one_too_many_is_told_in_the_log_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "muster.coordinator")
    joins = [link_pb2.Join(session=number, participant_id=f"p-{number}") for number in range(1, 6)]

    async def test(workers: Workers) -> None:
        (worker,) = workers.workers
        workers._report(worker, link_pb2.Report(joins=joins), [])
        assert len(workers.dispatcher.pool) == 2
        assert workers.refused == {"max_participants": 3}

    with_workers(tmp_path / "run", test, workers=1, max_participants=2)
    lines = [record.message for record in caplog.records if "turned away" in record.message]
    assert lines == [
        "participant p-3 is turned away: there are 2 already, as many as --max-participants allows"
    ]


def test_what_workers_have_refused_is_remembered_when_they_are_gone(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        first, second = workers.workers
        first.heartbeat = link_pb2.Heartbeat(refused={"credentials": 7, "max_joins": 1})
        second.heartbeat = link_pb2.Heartbeat(refused={"credentials": 2})
        for incarnation in (2, 3):
            workers.starting(0, incarnation, pid=1)
            assert workers.refused == {"credentials": 9, "max_joins": 1}
        first.heartbeat = link_pb2.Heartbeat(refused={"credentials": 1})
        assert first.refused == {"credentials": 8, "max_joins": 1}
        assert workers.refused == {"credentials": 10, "max_joins": 1}

    with_workers(tmp_path / "run", test, workers=2)


def greeting(handshake: int, *sessions: int, worker: int = 0) -> link_pb2.Upward:
    """From a worker with these participants, none of whom works on anything."""
    hello = link_pb2.Hello(
        version=LINK_VERSION,
        worker=worker,
        incarnation=1,
        handshake=handshake,
        capacity=100,
        sessions=[
            link_pb2.Join(session=session, participant_id=f"{worker}-{session}", joined_at=1.0)
            for session in sessions
        ],
    )
    return link_pb2.Upward(handshake=handshake, hello=hello)


def sent_by(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> list[link_pb2.Downward]:
    """What workers are sent from now on."""
    sent: list[link_pb2.Downward] = []

    def send(identity: bytes, frames: Sequence[Any]) -> None:
        sent.append(link_pb2.Downward.FromString(bytes(frames[0])))

    monkeypatch.setattr(workers._router, "send", send)
    return sent


def with_one_participant(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[link_pb2.Downward], Member]:
    """Its worker has greeted for the first time. Gives what that is sent, and the participant."""
    sent = sent_by(workers, monkeypatch)
    workers.starting(0, 1, 1)
    workers._on_message(b"w", greeting(1, 5), [])
    workers.dispatcher.settle()
    (member,) = workers.dispatcher.pool
    return sent, member


def test_a_drain_that_a_new_handshake_may_have_lost_is_sent_again_and_instructions_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(workers: Workers) -> None:
        sent, member = with_one_participant(workers, monkeypatch)
        dispatcher = workers.dispatcher
        calls = [dispatcher.start_call([member], [b"%d" % number], None, None) for number in range(3)]
        dispatcher.settle()
        workers.draining.drain_all(60.0)
        assert not workers.workers[0].drains, "instructions wait for its participant"

        # In one turn: the second is about to be sent, and the last given up, when the worker greets anew.
        dispatcher.answered([(member, member.tag, b"\x0a\x00")])
        dispatcher.calls.give_up(calls[2], OutcomeKind.CANCELLED)
        del sent[:]
        workers._on_message(b"w", greeting(2, 5), [])
        await until(lambda: not workers.dispatcher.calls)

        ends = [OutcomeKind.RESULT, OutcomeKind.LOST, OutcomeKind.CANCELLED]
        assert [answer and answer[0] for call in calls for answer in call.outcomes] == ends
        anew = [message.WhichOneof("body") for message in sent if message.handshake != 1]
        assert anew == ["welcome", "drain"]

    with_workers(tmp_path / "run", test, workers=1)


def test_what_was_given_out_before_a_handshake_is_not_sent_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be worked on for nobody: the worker has said that its participant works on nothing."""

    async def test(workers: Workers) -> None:
        sent, member = with_one_participant(workers, monkeypatch)
        call = workers.dispatcher.start_call([member], [b""], None, None)
        workers._on_message(b"w", greeting(2, 5), [])
        await until(lambda: not workers.dispatcher.calls)
        await until(lambda: not workers.workers[0].orders)
        assert call.outcomes == [(OutcomeKind.LOST, b"")]
        assert [message.WhichOneof("body") for message in sent] == ["welcome", "welcome"]

    with_workers(tmp_path / "run", test, workers=1)


@pytest.mark.parametrize("drains", [False, True])
def test_evening_out_leaves_workers_that_drain_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drains: bool
) -> None:
    async def test(workers: Workers) -> None:
        sent = sent_by(workers, monkeypatch)
        for index, count in enumerate((60, 2, 60)):
            workers.starting(index, 1, index + 1)
            workers._on_message(b"w%d" % index, greeting(1, *range(1, count + 1), worker=index), [])
        workers.dispatcher.settle()
        if drains:
            workers.draining.drain(workers.workers[1], 60.0)
        monkeypatch.setattr(workers, "settled", lambda: True)
        workers._even_out()
        await until(lambda: not any(worker.orders for worker in workers.workers))
        moved = [len(move.sessions) for message in sent for move in message.orders.moves]
        assert bool(moved) is not drains, "as even as can be, among those that let anybody in"

    with_workers(tmp_path / "run", test, workers=3)
