"""Slots and the processes in them, with processes that only say what they were told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from coordinator.errors import WorkerBootError
from coordinator.settings import Settings
from coordinator.workers.process import OnExit
from coordinator.workers.rolling import RollingRestart
from coordinator.workers.run_dir import RunDir
from coordinator.workers.slot import Slot
from coordinator.workers.supervisor import Supervisor
from manager.errors import Closed
from manager.listen import Address
from manager.liveness import AWAY_TIME

TURNS = 20
"""Turns of the loop in which whatever needs no time has happened."""


class FakeProcess:
    def __init__(self, arguments: Sequence[str], on_exit: OnExit) -> None:
        self.pid = 1_000_000
        self.started_at = 0.0
        self.signals: list[signal.Signals] = []
        self.exit = on_exit

    def send_signal(self, number: signal.Signals) -> None:
        self.signals.append(number)

    def join(self) -> None:
        pass


class FakeWorkers:
    """The listener: takes note of who was asked to drain."""

    def __init__(self) -> None:
        self.drained: list[int] = []

    def adopting(self, index: int, incarnation: int, pid: int) -> None: ...

    def starting(self, index: int, incarnation: int, pid: int) -> None: ...

    def ended(self, index: int) -> None: ...

    def drain(self, index: int, grace: float) -> bool:
        self.drained.append(index)
        return True


class Harness:
    def __init__(self, run_dir: RunDir) -> None:
        self.spawned: list[FakeProcess] = []
        self.refusal: OSError | None = None
        self.workers = FakeWorkers()
        settings = Settings(workers=2, grace=5.0)
        listen = Address("127.0.0.1", 50051)
        self.supervisor = Supervisor(settings, listen, "ipc://nowhere", self.workers, run_dir)
        self.rolling = RollingRestart(self.supervisor, settings.grace)

    def spawn(self, arguments: Sequence[str], on_exit: OnExit) -> FakeProcess:
        if self.refusal is not None:
            raise self.refusal
        process = FakeProcess(arguments, on_exit)
        self.spawned.append(process)
        return process

    async def start(self) -> None:
        starting = asyncio.ensure_future(self.supervisor.start())
        await turns()
        for slot in self.supervisor.slots:
            self.supervisor.booted(slot.index)
        await starting

    def exit(self, index: int, code: int) -> None:
        """The worker in this slot ends."""
        process = self.supervisor.slots[index].process
        assert isinstance(process, FakeProcess)
        process.exit(code)

    def restart(self) -> asyncio.Task[list[int]]:
        async def indices(slots: AsyncIterator[Slot]) -> list[int]:
            return [slot.index async for slot in slots]

        return asyncio.ensure_future(indices(self.rolling.all()))


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


Test = Callable[[Harness], Coroutine[Any, Any, None]]


def with_harness(test: Test) -> Callable[[Path, pytest.MonkeyPatch], None]:
    @functools.wraps(test)
    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            run_dir = RunDir(tmp_path / "run", private=False)
            harness = Harness(run_dir)
            monkeypatch.setattr("coordinator.workers.supervisor.SpawnedProcess", harness.spawn)
            await test(harness)
            for slot in harness.supervisor.slots:
                slot.forget_timers()
            run_dir.close(finished=True)

        asyncio.run(main())

    del run.__wrapped__  # pytest would look for its arguments
    return run


@with_harness
async def test_a_first_worker_that_the_system_will_not_start_is_told_in_a_sentence(harness: Harness) -> None:
    harness.refusal = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    with pytest.raises(WorkerBootError, match=r"^worker 0 can't be started: Resource temporarily unavail"):
        await harness.supervisor.start()


@with_harness
async def test_a_later_one_is_tried_again(harness: Harness) -> None:
    await harness.start()
    harness.refusal = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    harness.exit(1, 0)
    slot = harness.supervisor.slots[1]
    assert slot.process is None
    assert slot.next_start is not None


@with_harness
async def test_one_that_says_nothing_is_killed(harness: Harness) -> None:
    await harness.start()
    harness.exit(1, 0)
    slot = harness.supervisor.slots[1]
    assert slot.check is not None
    assert slot.next_start is None
    harness.supervisor._check_boot(slot)
    assert harness.spawned[-1].signals == [signal.SIGKILL]


@with_harness
async def test_one_that_freezes_after_its_goodbye_is_killed(harness: Harness) -> None:
    await harness.start()
    with mock.patch("coordinator.workers.supervisor.EXIT_TIME", 0.0):
        harness.supervisor.departed(1)
    async with asyncio.timeout(20):
        while not harness.spawned[1].signals:  # noqa: ASYNC110 - it is a timer's
            await asyncio.sleep(0.001)
    assert harness.spawned[1].signals == [signal.SIGKILL]
    assert harness.spawned[0].signals == []
    harness.exit(1, -9)
    assert len(harness.spawned) == 3, "at once: it had drained"
    assert harness.supervisor.slots[1].check is not None, "that of the next one's boot"


@with_harness
async def test_one_that_freezes_while_it_boots_holds_up_no_stop(harness: Harness) -> None:
    await harness.start()
    harness.exit(1, 0)
    with mock.patch("coordinator.workers.supervisor.STOP_SLACK", 0.0):
        stopping = asyncio.ensure_future(harness.supervisor.stop(600.0))
        await turns()
    async with asyncio.timeout(20):
        while signal.SIGKILL not in harness.spawned[-1].signals:  # noqa: ASYNC110 - it is a timer's
            await asyncio.sleep(0.001)
    assert harness.spawned[-1].signals == [signal.SIGTERM, signal.SIGKILL]
    assert harness.spawned[0].signals == [], "it may drain for as long as it was told"
    harness.exit(1, -9)
    harness.exit(0, 0)
    await stopping


@with_harness
async def test_a_stop_forgets_no_worker_that_has_said_goodbye(harness: Harness) -> None:
    await harness.start()
    harness.supervisor.departed(1)
    stopping = asyncio.ensure_future(harness.supervisor.stop(600.0))
    await turns()
    assert harness.supervisor.slots[1].check is not None
    harness.exit(0, 0)
    harness.exit(1, 0)
    await stopping


# Rolling restarts


@with_harness
async def test_a_rolling_restart_asks_one_after_the_other(harness: Harness) -> None:
    await harness.start()
    restart = harness.restart()
    await turns()
    assert harness.workers.drained == [0]
    harness.exit(0, 0)
    await turns()
    assert harness.workers.drained == [0]
    harness.supervisor.booted(0)
    await turns()
    assert harness.workers.drained == [0, 1]
    harness.exit(1, 0)
    harness.supervisor.booted(1)
    assert await restart == [0, 1]
    assert [slot.incarnation for slot in harness.supervisor.slots] == [2, 2]


@with_harness
async def test_a_worker_that_boots_is_asked_once_it_has_booted(harness: Harness) -> None:
    await harness.start()
    harness.exit(0, 0)
    assert len(harness.spawned) == 3
    restart = harness.restart()
    await turns()
    assert harness.workers.drained == []
    assert harness.spawned[-1].signals == [], "it would have died of that, which counts as a crash"
    harness.supervisor.booted(0)
    await turns()
    assert harness.workers.drained == [0]
    restart.cancel()


@with_harness
async def test_while_everything_stops_nothing_is_restarted(harness: Harness) -> None:
    await harness.start()
    harness.supervisor.begin_to_stop()
    with pytest.raises(Closed, match="the coordinator is stopping"):
        await harness.restart()
    assert harness.workers.drained == []
    assert len(harness.spawned) == 2


@with_harness
async def test_a_stop_ends_a_rolling_restart_and_says_so(harness: Harness) -> None:
    await harness.start()
    restart = harness.restart()
    await turns()
    harness.supervisor.begin_to_stop()
    with pytest.raises(Closed, match="the coordinator is stopping"):
        await restart
    harness.exit(0, 0)
    assert len(harness.spawned) == 2, "a worker was started again"
    assert not harness.rolling.active


@contextlib.contextmanager
def clock() -> Iterator[Callable[[float], None]]:
    """Gives what makes so many seconds pass at once, as they do for a process that was stopped."""
    real, passed = time.monotonic, 0.0

    def skip(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    def now() -> float:
        return real() + passed

    with mock.patch("time.monotonic", now):
        yield skip


@with_harness
async def test_a_coordinator_that_was_stopped_during_a_stop_hears_its_workers_before_it_kills_them(
    harness: Harness,
) -> None:
    await harness.start()
    with clock() as skip:
        stopping = asyncio.ensure_future(harness.supervisor.stop(5.0))
        await turns()
        skip(60.0)
        await turns()
        assert [process.signals for process in harness.spawned] == [[], []]
        harness.exit(0, 0)  # it had long said goodbye
        skip(1.2)
        await turns()
        assert not stopping.done()
        for _ in range(5):
            skip(1.2)
            await turns()
        assert harness.spawned[1].signals == [signal.SIGTERM], "patience has an end all the same"
        harness.exit(1, 0)
        await stopping


@with_harness
async def test_a_coordinator_that_was_stopped_during_a_rolling_restart_kills_nobody_either(
    harness: Harness,
) -> None:
    await harness.start()
    with clock() as skip:
        restarting = harness.restart()
        await turns()
        skip(60.0)
        await turns()
        assert harness.spawned[0].signals == []
        for _ in range(15):
            skip(1.2)
            await turns()
        assert signal.SIGKILL in harness.spawned[0].signals
        restarting.cancel()
        await asyncio.wait([restarting])


@with_harness
async def test_a_coordinator_that_was_stopped_while_a_worker_booted_hears_it_before_it_kills_it(
    harness: Harness,
) -> None:
    await harness.start()
    with clock() as skip:
        harness.exit(0, 0)
        booting = harness.spawned[-1]
        skip(600.0)
        await turns()
        assert booting.signals == []
        skip(AWAY_TIME + 0.1)
        await turns()
        assert booting.signals == [signal.SIGKILL]
