"""The link loses nothing, over real ZeroMQ sockets: with a transport that drops, delays, repeats and
reorders, with queues that are full, and with a worker that is stopped for a while.

The coordinator's parts and two workers live on one event loop, so that what goes between them can be
disturbed; participants are real, on gRPC. Without a new handshake no result may be lost, so every call must
bring all results, exactly once, and sums must be exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from coordinator import Coordinator
from coordinator.settings import make_settings
from coordinator.workers.links import Workers
from coordinator.workers.run_dir import RunDir
from manager.api.cohort import AsyncCohort
from manager.api.participants import AsyncParticipants
from manager.api.proxy import AsyncParticipantProxy
from manager.core.backend import Backend
from manager.link import sockets
from manager.link.sockets import LinkSocket
from manager.listen import Address
from manager.loop import new_event_loop
from manager.worker import Worker, WorkerSettings
from protos import link_pb2
from protos.frames import Buffer
from tests.support import PATIENCE, Devices, eventually, instruction, tensors

EPOCH = 1_000
HEARTBEAT = 0.1
DEVICES = 12


class Faults:
    """Takes the place of ``LinkSocket.send``: a share of the messages meets each of four fates."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int, share: float) -> None:
        self.counts: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._share = share
        self._held: dict[LinkSocket, list[Buffer]] = {}
        self._send = LinkSocket.send
        patch.setattr(LinkSocket, "send", lambda socket, frames: self.send(socket, list(frames)))

    def heal(self) -> None:
        """From here on nothing happens to messages."""
        self._share = 0.0

    def send(self, socket: LinkSocket, frames: list[Buffer]) -> bool:
        fate = int(self._rng.random() / self._share) if self._share else 9
        held = self._held.pop(socket, None)
        match fate:
            case 0:
                self.counts["dropped"] += 1
            case 1:
                self.counts["delayed"] += 1
                self._later(self._rng.uniform(0.0, 2 * HEARTBEAT), socket, frames)
            case 2:
                self.counts["repeated"] += 1
                self._send(socket, frames)
                self._later(self._rng.uniform(0.0, 2 * HEARTBEAT), socket, frames)
            case 3 if held is None:
                self.counts["reordered"] += 1
                self._held[socket] = frames  # goes out behind the next
            case _:
                self.counts["untouched"] += 1
                self._send(socket, frames)
        if held is not None:
            self._send(socket, held)
        return True

    def _later(self, seconds: float, socket: LinkSocket, frames: list[Buffer]) -> None:
        def send() -> None:
            if not socket._closed:
                self._send(socket, frames)

        asyncio.get_running_loop().call_later(seconds, send)


class Pool(AsyncParticipants[AsyncParticipantProxy]):
    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self._workers = workers

    def _get_backend(self) -> Backend:
        return self._workers.dispatcher


class InOneLoop:
    """Both ends of two links."""

    def __init__(self, workers: Workers, managers: list[Worker]) -> None:
        self.workers = workers
        self.managers = managers
        self.pool = Pool(workers)

    @property
    def unacknowledged(self) -> int:
        return sum(worker.downlink._end.unacknowledged for worker in self.workers.workers) + sum(
            manager._uplink.unacknowledged for manager in self.managers
        )

    @property
    def handshakes(self) -> list[int]:
        return [manager._uplink._handshake for manager in self.managers]


async def soon(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - of many things at once
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def both_ends(run_dir: Path, devices: Devices) -> AsyncIterator[InOneLoop]:
    """Two workers with participants, and a coordinator without a supervisor."""
    directory = RunDir(run_dir, private=False)
    settings = make_settings(workers=2, heartbeat=HEARTBEAT, liveness=10.0)
    workers = Workers(settings, directory, epoch=EPOCH)
    workers.settled = lambda: False  # nobody is evened out
    killed: list[int] = []
    workers.on_silent = killed.append
    workers.open()
    managers, runs = [], []
    for index in range(2):
        workers.starting(index, 1, os.getpid())
        own = WorkerSettings(workers.endpoint, index, 1, Address("127.0.0.1", 0), share_port=False)
        managers.append(Worker(own))
        runs.append(asyncio.ensure_future(managers[-1].run()))
    try:
        await soon(lambda: all(worker.address for worker in workers.workers), "two handshakes")
        for worker in workers.workers:
            await asyncio.to_thread(
                devices.join, worker.address, DEVICES // 2, prefix=f"device{worker.index}"
            )
        yield InOneLoop(workers, managers)
        assert not killed
        workers.draining.drain_all(0.0)
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*runs) == [None, None]
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        await workers.close()
        directory.close(finished=True)


def in_a_loop(test: Coroutine[Any, Any, None]) -> None:
    """Runs it on a loop of the kind that workers run on. Garbage is collected as before when it ends."""
    thresholds = gc.get_threshold()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(test)
    finally:
        gc.set_threshold(*thresholds)


Cohort = AsyncCohort[AsyncParticipantProxy]


async def run_again(cohort: Cohort, rounds: int) -> None:
    for number in range(rounds):
        payload = b"run %d" % number
        outcome = await cohort.run(instruction("echo", payload), timeout=PATIENCE)
        assert [message.result.payload for message in outcome.results.values()] == [payload] * DEVICES
        assert set(outcome.results) == set(cohort)


async def one_by_one(cohort: Cohort, rounds: int) -> None:
    for number in range(rounds):
        proxy = cohort[number % DEVICES]
        answer = await proxy.run(instruction("echo", b"one %d" % number), PATIENCE)
        assert (answer.result.payload, answer.result.status) == (b"one %d" % number, proxy.id)


async def reduce_again(cohort: Cohort, rounds: int) -> None:
    for number in range(rounds):
        array = np.array([number, 1.0])
        reduced = await cohort.reduce(tensors({"x": array}), "sum", timeout=PATIENCE)
        assert len(reduced.answered) == DEVICES, reduced
        assert np.array_equal(reduced.tensors["x"], array * DEVICES)


async def stream_again(cohort: Cohort, rounds: int) -> None:
    for number in range(rounds):
        seen: Counter[str] = Counter()
        async with cohort.stream(instruction("echo", b"stream %d" % number), timeout=PATIENCE) as answers:
            async for proxy, answer in answers:
                assert answer.result.payload == b"stream %d" % number
                seen[proxy.id] += 1
        assert seen == {proxy.id: 1 for proxy in cohort}


async def quorum_again(cohort: Cohort, rounds: int) -> None:
    for _ in range(rounds):
        outcome = await cohort.run(instruction("echo", b"quorum"), timeout=PATIENCE, quorum=DEVICES // 2)
        assert len(outcome.results) >= DEVICES // 2
        assert len(outcome.results) + len(outcome.cancelled) == DEVICES, outcome


async def cancel_again(cohort: Cohort, rounds: int) -> None:
    rng = random.Random(rounds)
    for _ in range(rounds):
        call = asyncio.ensure_future(cohort.run(instruction("echo", b"cancelled")))
        await asyncio.sleep(rng.uniform(0.0, 0.05))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_call_notices_what_becomes_of_a_third_of_all_messages(
    tmp_path: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    async def test() -> None:
        faults = Faults(monkeypatch, seed, share=0.09)
        async with both_ends(tmp_path, devices) as link:
            cohort = await link.pool.get_participants(DEVICES, timeout=PATIENCE)
            assert len(cohort) == DEVICES
            kinds = (run_again, one_by_one, reduce_again, stream_again, quorum_again, cancel_again)
            async with asyncio.TaskGroup() as group:
                for kind in kinds:
                    group.create_task(kind(cohort, 6))
            faults.heal()
            await run_again(cohort, 5)
            await reduce_again(cohort, 5)
            await soon(lambda: not link.unacknowledged, "acknowledgement of everything")
            assert link.handshakes == [1, 1], "a new handshake would have lost results"
            assert len(link.workers.dispatcher.calls) == 0
        for fate in ("dropped", "delayed", "repeated", "reordered"):
            assert faults.counts[fate] > 10, faults.counts

    in_a_loop(test())


def test_nothing_is_lost_when_queues_are_full(
    tmp_path: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in (zmq.SNDHWM, zmq.RCVHWM):
        monkeypatch.setitem(sockets.COMMON_OPTIONS, option, 2)
    refused: list[bool] = []
    send = LinkSocket.send

    def watched(socket: LinkSocket, frames: list[Buffer]) -> bool:
        sent = send(socket, frames)
        refused.extend([True] if not sent else [])
        return sent

    monkeypatch.setattr(LinkSocket, "send", watched)

    async def test() -> None:
        async with both_ends(tmp_path, devices) as link:
            cohort = await link.pool.get_participants(DEVICES, timeout=PATIENCE)
            refused.clear()
            # The workers read nothing for a while; each of these is a message of its own.
            deaf = [manager._socket for manager in link.managers]
            readers = [socket._readable for socket in deaf]
            for socket in deaf:
                monkeypatch.setattr(socket, "_readable", lambda: None)
                socket._loop.add_reader(socket._fd, socket._readable)
            calls, nothing = [], link_pb2.Downward(epoch=EPOCH).SerializeToString()
            router = link.workers._router._socket
            for worker in link.workers.workers:
                refusals = 0
                while refusals < 50:  # in a row: what the system itself holds for a socket must be full, too
                    if send(router, [worker.identity, nothing]):
                        refusals = 0
                    else:
                        refusals += 1
                        await asyncio.sleep(0.005)  # ZeroMQ's thread may just be slow
            for number in range(100):
                proxy = cohort[number % DEVICES]
                calls.append(asyncio.ensure_future(proxy.run(instruction("echo", b"%d" % number), PATIENCE)))
                await asyncio.sleep(0)
            assert refused, "the queues were not full"
            for socket, reader in zip(deaf, readers, strict=True):
                monkeypatch.setattr(socket, "_readable", reader)
                socket._loop.add_reader(socket._fd, reader)
                reader()
            answers = await asyncio.gather(*calls)
            assert sorted(int(answer.result.payload) for answer in answers) == list(range(100))
            await run_again(cohort, 3)
            await soon(lambda: not link.unacknowledged, "acknowledgement of everything")
            assert link.handshakes == [1, 1]

    in_a_loop(test())


def test_a_worker_that_is_stopped_for_a_while_loses_no_order(devices: Devices) -> None:
    with Coordinator(workers=2, listen="127.0.0.1:0", liveness=20.0, log_level="critical") as coordinator:
        joined = devices.join(coordinator.listen, DEVICES)
        cohort = coordinator.get_participants(DEVICES, timeout=20)
        pids = [worker.pid for worker in coordinator.status().workers]
        victim = cohort[0].worker
        theirs = [proxy for proxy in cohort if proxy.worker == victim]
        with ThreadPoolExecutor(8) as threads:
            os.kill(pids[victim], signal.SIGSTOP)
            try:
                stopped_at = time.monotonic()
                calls = [
                    threads.submit(theirs[0].run, instruction("echo", b"%d" % number), 30)
                    for number in range(4)
                ]
                # Broadcasts that are given up at once: an instruction and a cancel each, by the thousand.
                others = coordinator.get_participants(len(cohort), timeout=20)
                while time.monotonic() - stopped_at < 2.0:
                    outcome = others.run(instruction("echo", b"-"), timeout=0.0)
                    assert len(outcome.timed_out) >= len(theirs)
            finally:
                os.kill(pids[victim], signal.SIGCONT)
            assert [call.result(30).result.payload for call in calls] == [b"0", b"1", b"2", b"3"]
        outcome = cohort.run(instruction("echo", b"afterwards"), timeout=30)
        assert len(outcome.results) == DEVICES
        assert [worker.pid for worker in coordinator.status().workers] == pids
        eventually(lambda: all(device.received[b"afterwards"] == 1 for device in joined))
