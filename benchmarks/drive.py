"""A training script for measurements: a coordinator with its workers, and calls to all participants.

Decides how the calls are made: ``awaited`` is one task per participant that awaits each answer of its own,
``cohort`` is one call to all of them after the other, ``idle`` none. What is measured from outside, and with
which load, is left to round_trips.py and idle_memory.py, which run this as a process of its own.

    python -m benchmarks.drive --workers 2 --participants 200 --mode cohort --seconds 10

Prints JSON lines: when it listens (with the workers' pids), when all participants are pooled, and at the end
(after ``--seconds``, or by SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable

import uvloop

from benchmarks.measure import cpu_seconds
from benchmarks.meter import Meter, say
from coordinator import aio
from protos import stream_pb2


class Driver:
    """Sends the same instruction again and again, and counts the answers."""

    def __init__(self, cohort: aio.Cohort[aio.ParticipantProxy], instruction_size: int) -> None:
        instruction = stream_pb2.Instruction(name="echo", payload=bytes(instruction_size))
        self._cohort = cohort
        self._message = stream_pb2.ServerMessage(instruction=instruction)
        self.round_trips = 0

    async def awaited(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for proxy in self._cohort:
                tasks.create_task(self._one(proxy))

    async def _one(self, proxy: aio.ParticipantProxy) -> None:
        while True:
            await proxy.run(self._message)
            self.round_trips += 1

    async def cohort(self) -> None:
        while True:
            outcome = await self._cohort.run(self._message)
            if len(outcome.results) != len(outcome):
                raise RuntimeError(f"not everyone answered: {outcome}")
            self.round_trips += len(outcome.results)

    async def idle(self) -> None:
        await asyncio.Event().wait()


async def drive(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    made = aio.Coordinator[aio.ParticipantProxy](workers=args.workers, listen=args.listen)
    async with made as coordinator:
        workers = [worker.pid for worker in (await coordinator.status()).workers]
        say({"listen": coordinator.listen, "pid": os.getpid(), "workers": workers})
        began = time.monotonic()
        cohort = await coordinator.get_participants(args.participants, timeout=args.timeout)
        spread = [worker.participants for worker in (await coordinator.status()).workers]
        say({"pooled": len(cohort), "spread": spread, "waited_seconds": round(time.monotonic() - began, 3)})

        driver = Driver(cohort, args.instruction_size)
        modes: dict[str, Callable[[], asyncio.Task[None]]] = {
            "awaited": lambda: asyncio.create_task(driver.awaited()),
            "cohort": lambda: asyncio.create_task(driver.cohort()),
            "idle": lambda: asyncio.create_task(driver.idle()),
        }
        calls = modes[args.mode]()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([calls, stopped], timeout=args.warm_up, return_when=asyncio.FIRST_COMPLETED)
        meter, workers_cpu = Meter(driver.round_trips), cpu_seconds(workers)
        seconds = args.seconds or None
        await asyncio.wait([calls, stopped], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        report: dict[str, object] = dict(meter.report(driver.round_trips))
        report["workers_cpu_seconds"] = round(cpu_seconds(workers) - workers_cpu, 3)
        calls.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calls  # raises what has gone wrong, if it has
        say(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0: any free one")
    parser.add_argument("--participants", type=int, default=200, help="starts when so many are there")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for them")
    parser.add_argument("--mode", choices=["awaited", "cohort", "idle"], default="cohort")
    parser.add_argument("--instruction-size", type=int, default=100, help="bytes of payload")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=0, help="seconds counted; 0: until SIGTERM")
    uvloop.run(drive(parser.parse_args()))


if __name__ == "__main__":
    main()
