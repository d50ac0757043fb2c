"""What TLS costs a worker: per round trip, and per connection, beside plaintext in the same run.

Decides the variants (plaintext, TLS, mutual TLS with a certificate per participant) and what each does: calls
to all participants for a while, then connections that come and go. The load generator speaks no TLS, so a
process in between does (front.py), for all variants alike. Handshakes are full ones: nothing is resumed.

    python -m benchmarks.tls
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import (
    Bench,
    Child,
    MeasurementError,
    Report,
    build_loadgen,
    cpu_seconds,
    observe,
    print_table,
    wait_for_load,
    wait_until,
    write_results,
)
from coordinator.commands.certs import Certs, make

START_LIMIT = 60
"""Seconds in which servers have to be ready."""

VARIANTS = ("plaintext", "TLS", "mutual TLS")


@dataclass
class Figures:
    """Of one variant, by repetition."""

    round_trip: list[float] = field(default_factory=list)
    """CPU seconds of the workers per 1,000 round trips."""
    connection: list[float] = field(default_factory=list)
    """CPU milliseconds of the workers per connection: it comes, says hello, and leaves."""
    per_second: list[float] = field(default_factory=list)
    """Connections per second, from the first to the last that is pooled."""


def start(bench: Bench, variant: str, certs: Certs, *options: object) -> tuple[Child, list[int], str]:
    """The server, its workers' pids, and where the load generator connects."""
    server_options: list[object] = []
    front_options: list[object] = []
    if variant != "plaintext":
        server_options = ["--tls-cert", certs.server.certificate, "--tls-key", certs.server.key]
        front_options = ["--ca", certs.ca.certificate]
    if variant == "mutual TLS":
        server_options += ["--tls-client-ca", certs.ca.certificate]
        front_options += ["--certificates", certs.path / "participants"]
    server = bench.python("Muster", "benchmarks.drive", *options, *server_options)
    ready = server.report(START_LIMIT)
    front = bench.python("front", "benchmarks.front", "--to", ready["listen"], *front_options)
    return server, ready["workers"], front.report(START_LIMIT)["listen"]


def round_trips(variant: str, certs: Certs, args: argparse.Namespace) -> float:
    with Bench(args.seconds + 3 * START_LIMIT) as bench:
        options = ["--workers", args.workers, "--participants", args.participants, "--mode", "cohort"]
        server, workers, address = start(bench, variant, certs, *options, "--instruction-size", args.size)
        loadgen = bench.loadgen(address, args.participants, "--answer-size", args.size)
        wait_for_load(loadgen, args.participants, START_LIMIT)
        observe(loadgen, {"workers": workers}, 1.0, args.participants, START_LIMIT)
        window = observe(loadgen, {"workers": workers}, args.seconds, args.participants, START_LIMIT)
        server.finish()
        return window.cpu_per_1000("workers")


def connections(variant: str, certs: Certs, args: argparse.Namespace) -> tuple[float, float]:
    """CPU milliseconds per connection, and connections per second."""
    with Bench(4 * START_LIMIT) as bench:
        options = ["--workers", args.workers, "--participants", 0, "--mode", "idle"]
        server, workers, address = start(bench, variant, certs, *options)
        server.report(START_LIMIT)
        time.sleep(1.5)  # past its warm-up: it hears SIGUSR1
        before, began = cpu_seconds(workers), time.monotonic()
        loadgen = bench.loadgen(address, args.connections, "--leave")
        wait_until(
            server, "all pooled", lambda now: now["participants"] >= args.connections, START_LIMIT, 0.05
        )
        seconds = time.monotonic() - began
        loadgen.finish()
        wait_until(server, "all gone", lambda now: now["participants"] == 0, START_LIMIT)
        cpu = cpu_seconds(workers) - before
        server.finish()
        return 1000 * cpu / args.connections, args.connections / seconds


def measure(args: argparse.Namespace) -> dict[str, Figures]:
    figures = {variant: Figures() for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as directory:
        most = max(args.participants, args.connections)
        print(f"making {most} certificates", file=sys.stderr)
        certs = make(Path(directory) / "certs", ["127.0.0.1"], [f"p{number}" for number in range(most)])
        for repetition in range(args.repetitions):
            for variant in VARIANTS:
                print(f"{repetition + 1}/{args.repetitions} {variant}", file=sys.stderr)
                figures[variant].round_trip.append(round_trips(variant, certs, args))
                cpu, per_second = connections(variant, certs, args)
                figures[variant].connection.append(cpu)
                figures[variant].per_second.append(per_second)
    return figures


def rows(figures: dict[str, Figures]) -> list[list[str]]:
    plain = figures["plaintext"]
    return [
        [
            variant,
            f"{(round_trip := statistics.median(each.round_trip)):.4f}",
            f"{round_trip / statistics.median(plain.round_trip):.2f}",
            f"{(connection := statistics.median(each.connection)):.2f}",
            f"{connection / statistics.median(plain.connection):.2f}",
            f"{statistics.median(each.per_second):,.0f}",
        ]
        for variant, each in figures.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--participants", type=int, default=200)
    parser.add_argument("--size", type=int, default=100, help="bytes of payload, of instructions and answers")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5, help="seconds of calls, per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    try:
        build_loadgen()
        figures = measure(args)
    except MeasurementError as error:
        sys.exit(str(error))
    print_table(
        f"{args.participants} participants, {args.size} bytes, {args.workers} workers; "
        f"{args.connections:,} connections",
        ["", "workers' CPU s per 1,000 round trips", "ratio", "CPU ms per connection", "ratio", "per second"],
        rows(figures),
    )
    results: Report = {variant: vars(each) for variant, each in figures.items()}
    print(write_results("tls", vars(args), results))


if __name__ == "__main__":
    main()
