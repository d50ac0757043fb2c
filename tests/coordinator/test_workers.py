"""The links to all workers, in what needs no worker: what goes wrong with one costs the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from coordinator.downlink import Downlink
from coordinator.run_dir import RunDir
from coordinator.settings import Settings
from coordinator.workers import Workers
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
