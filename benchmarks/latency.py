"""How long one round trip takes with one participant: in one process, and over a coordinator and its worker.

Decides that the same blocking caller (one_caller.py) is used for both, in turns; the difference between the
two is what the hop over ZeroMQ costs, with both its processes. How to measure is measure.py's.

    python -m benchmarks.latency
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks.measure import Bench, MeasurementError, build_loadgen, print_table, write_results

START_LIMIT = 30
"""Seconds in which a server has to be ready."""


def measure(manager: str, args: argparse.Namespace) -> list[float]:
    """Microseconds of each call."""
    with Bench(args.limit + 2 * START_LIMIT) as bench:
        options = ["--manager", manager, "--calls", args.calls, "--instruction-size", args.size]
        server = bench.python(manager, "benchmarks.one_caller", *options)
        address = server.report(START_LIMIT)["listen"]
        bench.loadgen(address, 1, "--answer-size", args.size)
        microseconds: list[float] = server.report(args.limit)["microseconds"]
    return microseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=100, help="bytes of payload each way")
    parser.add_argument("--calls", type=int, default=2000, help="per repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60, help="seconds for the calls of one repetition")
    args = parser.parse_args()
    # p50 and p99 of each repetition
    found: dict[str, list[tuple[float, float]]] = {"single": [], "coordinator": []}
    try:
        build_loadgen()
        for _ in range(args.repetitions):
            for manager, figures in found.items():
                calls = sorted(measure(manager, args))
                figures.append((statistics.median(calls), calls[int(0.99 * len(calls))]))
    except MeasurementError as error:
        sys.exit(str(error))
    p50 = {manager: statistics.median(f[0] for f in figures) for manager, figures in found.items()}
    p99 = {manager: statistics.median(f[1] for f in figures) for manager, figures in found.items()}
    hop = p50["coordinator"] - p50["single"]
    rows = [
        [
            name,
            f"{p50[manager]:.0f}",
            f"{min(f[0] for f in found[manager]):.0f}-{max(f[0] for f in found[manager]):.0f}",
            f"{p99[manager]:.0f}",
        ]
        for manager, name in (("single", "one process"), ("coordinator", "coordinator, 1 worker"))
    ]
    print_table(
        f"Round trip of one participant, {args.size:,} bytes each way, µs; the hop costs {hop:.0f}",
        ["", "p50", "range", "p99"],
        [*rows, ["the hop over ZeroMQ", f"{hop:.0f}", "", f"{p99['coordinator'] - p99['single']:.0f}"]],
    )
    results = {"p50_and_p99_us": found, "hop_us": round(hop, 1)}
    print(write_results("latency", vars(args), results))


if __name__ == "__main__":
    main()
