"""How much memory a round of reduce takes at most: of the workers, of the coordinator, and of the system.

Decides the load: every participant answers each reduce with a tensor of the same size. What all results
together would take is told beside it: the point of reducing in the workers is that it isn't needed. Memory is
polled from before the participants come until the last round is over; how, is memory.py's.

    python -m benchmarks.reduce_memory
    python -m benchmarks.reduce_memory --participants 50 --tensor-bytes 104857600
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.measure import (
    Bench,
    MeasurementError,
    Report,
    build_loadgen,
    counts,
    cpu_seconds,
    print_table,
    write_results,
)
from benchmarks.memory import MIB, Watch, peak_rss

START_LIMIT = 30
"""Seconds in which the server has to be ready."""


def measure(workers: int, args: argparse.Namespace) -> Report:
    with Bench(args.timeout + args.limit + 3 * START_LIMIT) as bench:
        options = ["--workers", workers, "--participants", args.participants, "--timeout", args.timeout]
        options += ["--tensor-bytes", args.instruction_bytes, "--rounds", args.rounds, "--dtype", args.dtype]
        server = bench.python("Muster", "benchmarks.drive", "--mode", "reduce", *options)
        ready = server.report(START_LIMIT)
        roles: dict[str, list[int]] = {"workers": ready["workers"], "coordinator": [ready["pid"]]}
        with Watch(roles, args.interval) as watch:
            load = bench.loadgen(ready["listen"], args.participants, "--tensor-bytes", args.tensor_bytes)
            server.report(args.timeout + 10)
            began = time.monotonic()
            cpu_before = {role: cpu_seconds(pids) for role, pids in roles.items()}
            done = server.report(args.limit)
            seconds = time.monotonic() - began
        cpu = {role: cpu_seconds(pids) - cpu_before[role] for role, pids in roles.items()}
        peaks = {role: [peak_rss([pid]) for pid in pids] for role, pids in roles.items()}
        end = counts(load, timeout=60)
        server.finish()
    if end["lost"]:
        raise MeasurementError(f"participants were lost: {end['ends']}")
    return {
        "seconds": round(seconds, 3),
        "reduced": done["done"],
        "roles": {
            role: {
                "rss_before": watch.before[role].rss,
                "rss_growth": watch.growth(role).rss,
                "pss_growth": watch.growth(role).pss,
                "peak_rss_each": peaks[role],
                "cpu_seconds": round(cpu[role], 3),
            }
            for role in roles
        },
        "shared_growth": watch.shared_growth,
    }


def rows(workers: int, result: Report) -> list[list[str]]:
    table = []
    for role, m in result["roles"].items():
        table.append(
            [
                f"{workers} worker{'s' if workers > 1 else ''}: {role}",
                f"{m['rss_before'] / MIB:,.0f}",
                f"{m['rss_growth'] / MIB:,.0f}",
                f"{m['pss_growth'] / MIB:,.0f}",
                ", ".join(f"{peak / MIB:,.0f}" for peak in m["peak_rss_each"]),
                f"{result['shared_growth'] / MIB:,.0f}" if role == "workers" else "",
                f"{m['cpu_seconds']:.1f}",
                f"{result['seconds']:.1f}" if role == "workers" else "",
            ]
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--tensor-bytes", type=int, default=10_000_000, help="of each result")
    parser.add_argument(
        "--instruction-bytes", type=int, default=100, help="of the first instruction's tensor"
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32", help="that in which the workers add up")
    parser.add_argument("--interval", type=float, default=0.05, help="seconds between two looks")
    parser.add_argument("--timeout", type=float, default=60, help="seconds until all must be pooled")
    parser.add_argument("--limit", type=float, default=300, help="seconds for all rounds")
    args = parser.parse_args()
    if args.tensor_bytes % 4 or args.instruction_bytes % 4:
        parser.error("sizes of tensors must be multiples of 4")
    results: dict[str, Report] = {}
    table = []
    try:
        build_loadgen()
        for workers in args.workers:
            results[str(workers)] = measure(workers, args)
            table += rows(workers, results[str(workers)])
    except MeasurementError as error:
        sys.exit(str(error))
    together = args.participants * args.tensor_bytes
    print_table(
        f"{args.rounds} times reduce, {args.participants:,} results of {args.tensor_bytes / MIB:,.1f} MiB "
        f"({together / MIB:,.0f} MiB together); MiB",
        ["", "before", "RSS growth", "PSS growth", "peak RSS of each", "shared mem. growth", "CPU s", "s"],
        table,
    )
    print(write_results("reduce_memory", vars(args), results))


if __name__ == "__main__":
    main()
