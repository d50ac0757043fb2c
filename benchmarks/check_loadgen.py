"""Is the load generator right? Each of its ways to answer is examined by a server that knows the answers.

Decides which variants are tried: sizes around the limits of HTTP/2 frames, flow-control windows, gRPC
messages and chunks, each kind of ServerMessage, cancels, and messages too large to be kept. The server is
grpc.aio (and Flower's own), so what is checked is that the hand-made HTTP/2 and protobuf of loadgen/ are
those of everyone else. To be run after a change there.

    python -m benchmarks.check_loadgen
    python -m benchmarks.check_loadgen --flower      # with Flower's server too; installs it the first time
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import time
from collections.abc import Callable, Sequence

import grpc.aio

from benchmarks.baselines.bare_echo import OPTIONS
from benchmarks.compare import START_LIMIT
from benchmarks.examine import WINDOW, Averages, Cancels, Comebacks, Echoes, Examiner, Pings
from benchmarks.flower import install_flower
from benchmarks.measure import Bench, Child, MeasurementError, Report, build_loadgen, counts
from benchmarks.memory import MIB, peak_rss

THINK_MS = 400
LARGE = 20 * 1000 * 1000
MOST_MEMORY = 4 * LARGE
"""Bytes that the load generator may take with answers of LARGE bytes, for any number of participants: to make
one it needs two copies, for a moment three."""

ECHO = ["--echo", "--id-prefix", "check-"]
VARIANTS: Sequence[tuple[str, Callable[[], Examiner], Sequence[object]]] = [
    ("echo", Echoes, ECHO),
    ("echo, small window", Echoes, [*ECHO, "--window", WINDOW]),
    ("echo, thinking", Echoes, [*ECHO, "--think-ms", 2, "--think-exponential", "--source-addresses", 3]),
    ("a small tensor", lambda: Averages(100, 100), ["--tensor-bytes", 100]),
    ("an empty tensor", lambda: Averages(0, 0), ["--tensor-bytes", 0]),
    ("a large tensor", lambda: Averages(LARGE, LARGE), ["--tensor-bytes", LARGE]),
    ("pings", lambda: Pings(2.5), ["--ping-seconds", 1]),
    ("comebacks", Comebacks, ["--reconnect", "--id-prefix", "check-"]),
    ("cancels", lambda: Cancels(THINK_MS / 1000), ["--accept-cancel", "--think-ms", THINK_MS]),
]


async def check(
    bench: Bench, examiner: Examiner, participants: int, timeout: float, *options: object
) -> tuple[Report, int]:
    """Lets the examiner talk to all participants; returns the load generator's counts and peak memory."""
    servers, addresses = [], []
    for handler in examiner.handlers():
        server = grpc.aio.server(options=[*OPTIONS, ("grpc.http2.min_ping_interval_without_data_ms", 500)])
        server.add_generic_rpc_handlers((handler,))
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    if isinstance(examiner, Comebacks):
        examiner.elsewhere = addresses[1]
    loadgen = await asyncio.to_thread(bench.loadgen, addresses[0], participants, *options)
    end = await asyncio.to_thread(wait_for_the_end, loadgen, examiner, participants, timeout)
    peak = peak_rss([loadgen.pid])
    for server in servers:
        await server.stop(0)
    return end, peak


def wait_for_the_end(loadgen: Child, examiner: Examiner, participants: int, timeout: float) -> Report:
    """Until all have gone, or time is up."""
    waited, pause = 0.0, 0.1
    while not examiner.is_over(now := counts(loadgen), participants) and waited < timeout:
        asyncio.run(asyncio.sleep(pause))
        waited += pause
    return now


def check_mute(participants: int) -> bool:
    """Whether participants find out that a server doesn't speak any more, and come back."""
    with Bench(limit=60) as bench, socket.create_server(("127.0.0.1", 0)) as mute:  # nobody accepts
        options = ["--ping-seconds", 1, "--reconnect"]
        loadgen = bench.loadgen(f"127.0.0.1:{mute.getsockname()[1]}", participants, *options)
        time.sleep(2)  # 1.5 to notice
        now = counts(loadgen)
        fine = now["ends"] == {"the server doesn't answer pings": participants}
        fine &= now["reconnects"] == participants
    print(f"a mute server: {'right' if fine else 'WRONG'}")
    if not fine:
        print(f"  {now}")
    return bool(fine)


def check_flower(participants: int, timeout: float, tensor_bytes: int) -> bool:
    """Whether Flower's own server gets from the load generator what it should."""
    with Bench(limit=timeout + 30) as bench:
        options = ["--check", "--participants", participants, "--tensor-bytes", tensor_bytes]
        command = [str(install_flower()), "-m", "benchmarks.baselines.flower_server", *map(str, options)]
        server = bench.start("Flower", command)
        address = server.report(START_LIMIT)["listen"]
        loadgen = bench.loadgen(address, participants, "--flower", "--tensor-bytes", tensor_bytes)
        found = server.report(timeout)
        end = wait_for_the_end(loadgen, Examiner(), participants, 10)
    fine = all(found.values()) and end["left"] == participants
    print(f"Flower, {tensor_bytes} bytes: {'right' if fine else 'WRONG'}")
    if not fine:
        print(f"  {found}\n  {end}")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=60, help="seconds for each of the checks")
    parser.add_argument("--flower", action="store_true", help="also by Flower's server")
    args = parser.parse_args()
    wrong = False
    try:
        build_loadgen()
        for name, make, options in VARIANTS:
            examiner = make()
            with Bench(limit=args.timeout + 30) as bench:
                checking = check(bench, examiner, args.participants, args.timeout, *options)
                end, peak = asyncio.run(checking)
            fine = examiner.is_fine(args.participants) and end["left"] == args.participants
            fine &= "--ping-seconds" not in options or end["pings"] >= 2 * args.participants
            fine &= "--echo" in options or peak < MOST_MEMORY  # an echo has to keep what it got
            wrong |= not fine
            print(f"{name}: {'right' if fine else 'WRONG'}")
            if not fine:
                print(f"  passed {dict(examiner.passed)}\n  failed {dict(examiner.failed)}")
                print(f"  {end}\n  {peak / MIB:.0f} MiB at most")
        wrong |= not check_mute(args.participants)
        if args.flower:
            wrong |= not all(check_flower(args.participants, args.timeout, size) for size in (100, LARGE))
    except MeasurementError as error:
        sys.exit(str(error))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
