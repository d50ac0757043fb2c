"""A training script for measurements: a coordinator with its workers, and calls to all participants.

Decides when what happens: participants are waited for, then called (calls.py says how) through a warm-up and
the time that counts. What is measured from outside, and with which load, is left to the benchmarks, which run
this as a process of its own.

    python -m benchmarks.drive --workers 2 --participants 200 --mode cohort --seconds 10

Prints JSON lines: when it listens (with the workers' pids), when all participants are pooled, at each SIGUSR1
what there is at the moment, after ``--rounds``, and at the end (after ``--seconds`` or by SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import time

import uvloop

from benchmarks.calls import Calls, payload_message, quantiles, tensor_message
from benchmarks.measure import cpu_seconds
from benchmarks.meter import Meter, say
from coordinator import aio
from manager.access.security import Security


async def _say_status(coordinator: aio.Coordinator[aio.ParticipantProxy], calls: Calls) -> None:
    """What is so now; latencies are of the calls since this was last said."""
    status = await coordinator.status()
    latencies = calls.take_latencies()
    say(
        {
            "participants": status.participants,
            "busy": status.busy,
            "spread": [worker.participants for worker in status.workers],
            "workers": [worker.pid for worker in status.workers],
            "lost_calls": status.counters.lost,
            "round_trips": calls.round_trips,
            "calls": len(latencies),
            **quantiles(latencies),
        }
    )


async def _call(calls: Calls, mode: str) -> None:
    """Calls until it is cancelled, or fails; says so if it has made all calls that it should."""
    await calls.mode(mode)
    say({"done": calls.round_trips, "rounds": len(calls.rounds)})
    await asyncio.Event().wait()


async def drive(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    security = Security(tls_cert=args.tls_cert, tls_key=args.tls_key, tls_client_ca=args.tls_client_ca)
    made = aio.Coordinator[aio.ParticipantProxy](workers=args.workers, listen=args.listen, security=security)
    async with made as coordinator:
        workers = [worker.pid for worker in (await coordinator.status()).workers]
        say({"listen": coordinator.listen, "pid": os.getpid(), "workers": workers})
        began = time.monotonic()
        cohort = await coordinator.get_participants(args.participants, timeout=args.timeout)
        spread = [worker.participants for worker in (await coordinator.status()).workers]
        say({"pooled": len(cohort), "spread": spread, "waited_seconds": round(time.monotonic() - began, 3)})

        if args.tensor_bytes is None:
            message = payload_message(args.instruction_size)
        else:
            message = tensor_message(args.tensor_bytes)
        calls = Calls(cohort, message, dtype=args.dtype, timed=args.latencies, rounds=args.rounds)
        telling: set[asyncio.Task[None]] = set()

        def tell() -> None:
            telling.add(task := asyncio.create_task(_say_status(coordinator, calls)))
            task.add_done_callback(telling.discard)

        loop.add_signal_handler(signal.SIGUSR1, tell)
        calling = asyncio.create_task(_call(calls, args.mode))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([calling, stopped], timeout=args.warm_up, return_when=asyncio.FIRST_COMPLETED)
        meter, workers_cpu = Meter(calls.round_trips), cpu_seconds(workers)
        seconds = args.seconds or None
        await asyncio.wait([calling, stopped], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        report: dict[str, object] = dict(meter.report(calls.round_trips))
        report["workers_cpu_seconds"] = round(cpu_seconds(workers) - workers_cpu, 3)
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling  # raises what has gone wrong, if it has
        if args.round_times:
            report["rounds"] = [[round(t, 6) for t in times] for times in calls.rounds]
        say(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0: any free one")
    parser.add_argument("--participants", type=int, default=200, help="starts when so many are there")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for them")
    parser.add_argument("--mode", choices=["awaited", "cohort", "stream", "reduce", "idle"], default="cohort")
    parser.add_argument("--instruction-size", type=int, default=100, help="bytes of payload")
    parser.add_argument(
        "--tensor-bytes", type=int, help='an instruction with a float32 tensor "w" of so many bytes instead'
    )
    parser.add_argument("--dtype", default="float32", help="that in which reduce adds up")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=0, help="seconds counted; 0: until SIGTERM")
    parser.add_argument("--rounds", type=int, default=0, help="calls to all, then none; 0: no limit")
    parser.add_argument("--latencies", action="store_true", help="note those of awaited calls, for SIGUSR1")
    for name in ("--tls-cert", "--tls-key", "--tls-client-ca"):
        parser.add_argument(name, help="as of `coordinator start`")
    parser.add_argument("--round-times", action="store_true", help="tell at the end when each call ran")
    uvloop.run(drive(parser.parse_args()))


if __name__ == "__main__":
    main()
