"""What idle participants cost: memory of workers and coordinator per participant, and how long a storm takes.

Decides the load (thousands of participants that connect at once and then wait for an instruction) and the
target. Memory is taken before they come and after they have settled; what a worker needs for itself alone is
thus left out. How to measure is measure.py's and memory.py's.

    python -m benchmarks.idle_memory
    python -m benchmarks.idle_memory --participants 20000 --source-addresses 2

Exits with 1 if a participant costs the workers more than ``--target`` KiB, or if one was lost.
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
from benchmarks.memory import MIB, memory


def measure(args: argparse.Namespace) -> Report:
    with Bench(limit=args.timeout + args.settle + 60) as bench:
        options = ["--workers", args.workers, "--participants", args.participants, "--timeout", args.timeout]
        server = bench.python("Muster", "benchmarks.drive", "--mode", "idle", *options)
        ready = server.report(30)
        roles: dict[str, list[int]] = {"workers": ready["workers"], "coordinator": [ready["pid"]]}
        before = {role: memory(*pids) for role, pids in roles.items()}
        cpu_before = {role: cpu_seconds(pids) for role, pids in roles.items()}

        began = time.monotonic()
        load: list[object] = ["--id-prefix", "idle-", "--connect-rate", args.connect_rate]
        load += ["--source-addresses", args.source_addresses, "--leave"]
        loadgen = bench.loadgen(ready["listen"], args.participants, *load)
        pooled = server.report(args.timeout + 10)
        pooled_seconds = time.monotonic() - began
        storm_cpu = {role: cpu_seconds(pids) - cpu_before[role] for role, pids in roles.items()}

        time.sleep(args.settle)
        after = {role: memory(*pids) for role, pids in roles.items()}
        load_counts = counts(loadgen)
        loadgen.finish()
        server.finish()
    return {
        "pooled": pooled["pooled"],
        "spread": pooled["spread"],
        "pooled_seconds": round(pooled_seconds, 3),
        "lost": load_counts["lost"],
        "ends": load_counts["ends"],
        "storm_cpu_seconds": {role: round(cpu, 3) for role, cpu in storm_cpu.items()},
        "memory": {
            role: {
                "rss_before": before[role].rss,
                "rss_after": after[role].rss,
                "rss_kib_each": round((after[role].rss - before[role].rss) / 1024 / args.participants, 2),
                "pss_kib_each": round((after[role].pss - before[role].pss) / 1024 / args.participants, 2),
            }
            for role in roles
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connect-rate", type=float, default=0, help="per second; 0: all at once")
    parser.add_argument("--source-addresses", type=int, default=1, help="127.0.0.x to connect from")
    parser.add_argument("--settle", type=float, default=2, help="seconds from pooled to measured")
    parser.add_argument("--timeout", type=float, default=60, help="seconds until all must be pooled")
    parser.add_argument("--target", type=float, default=45, help="KiB of worker memory (RSS) each")
    args = parser.parse_args()
    build_loadgen()
    try:
        result = measure(args)
    except MeasurementError as error:
        sys.exit(str(error))
    print_table(
        f"{result['pooled']:,} idle participants, {args.workers} workers ({result['spread']}), "
        f"all pooled after {result['pooled_seconds']:.2f} s, {result['lost']} lost",
        ["", "RSS before, MiB", "after, MiB", "KiB each (RSS)", "KiB each (PSS)", "CPU s of the storm"],
        [
            [
                role,
                f"{m['rss_before'] / MIB:.1f}",
                f"{m['rss_after'] / MIB:.1f}",
                f"{m['rss_kib_each']:.1f}",
                f"{m['pss_kib_each']:.1f}",
                f"{result['storm_cpu_seconds'][role]:.2f}",
            ]
            for role, m in result["memory"].items()
        ],
    )
    print(write_results("idle_memory", vars(args), result))
    each = result["memory"]["workers"]["rss_kib_each"]
    if each > args.target:
        sys.exit(f"{each} KiB per participant is over the target of {args.target:g} KiB")
    if result["lost"]:
        sys.exit(f"participants were lost: {result['ends']}")


if __name__ == "__main__":
    main()
