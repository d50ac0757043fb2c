"""What keepalive costs: CPU time of thousands of idle streams, with and without pings.

Decides what is set beside what (how the pings are set, and a cluster without participants, for what costs CPU
time without them), and what counts as a cost. How to measure is measure.py's, the cluster cluster.py's.

A participant pings as gRPC does, after so many seconds without a word of the server; and every ping of the
server is such a word. Where both ping at the same interval, either is as likely to be first.

    python -m benchmarks.keepalive
    python -m benchmarks.keepalive --participants 10000 --seconds 60

Exits with 1 if a participant was lost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.cluster import START_LIMIT, Cluster, offered_options, spread
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

NEVER = 3600
"""Seconds between pings that are practically off."""

SERVER, PARTICIPANT = 10, 10
"""Seconds after which each pings: the defaults (PROTOCOL.md, A.11)."""


def measure(
    participants: int, cluster_options: Sequence[str], pings: float, args: argparse.Namespace
) -> Report:
    """The CPU time of one such cluster, at rest."""
    limit = START_LIMIT + args.timeout + args.settle + args.seconds + 60
    with Bench(limit) as bench, Cluster(bench, args.workers, *cluster_options) as cluster:
        roles = {"coordinator": [cluster.pid], "workers": cluster.worker_pids()}
        load = None
        if participants:
            options: list[object] = ["--id-prefix", "idle-", "--connect-rate", args.connect_rate]
            load = bench.loadgen(
                cluster.listen, participants, "--ping-seconds", pings, "--reconnect", *options
            )
            roles["load generator"] = [load.pid]
        _, status = cluster.wait_until_whole(participants, args.timeout, pause=0.1)
        time.sleep(args.settle)
        # Nobody asks the coordinator in between: that would cost it CPU time.
        before, began = {role: cpu_seconds(pids) for role, pids in roles.items()}, time.monotonic()
        load_before = counts(load) if load else {}
        time.sleep(args.seconds)
        cpu = {role: cpu_seconds(pids) - before[role] for role, pids in roles.items()}
        seconds = time.monotonic() - began
        load_after = counts(load) if load else {}
    per_second = {
        name: round((load_after.get(name, 0) - load_before.get(name, 0)) / seconds, 1)
        for name in ("pings", "pinged")
    }
    return {
        "participants": participants,
        "spread": spread(status),
        "seconds": round(seconds, 2),
        "per_cent_of_a_core": {role: round(100 * each / seconds, 2) for role, each in cpu.items()},
        "pings_per_second": per_second,
        "lost": load_after.get("lost", 0),
        "ends": load_after.get("ends", {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connect-rate", type=float, default=1500, help="per second")
    parser.add_argument("--settle", type=float, default=12, help="seconds from pooled to measured")
    parser.add_argument("--seconds", type=float, default=40, help="seconds counted")
    parser.add_argument("--timeout", type=float, default=90, help="seconds until all must be pooled")
    args = parser.parse_args()
    server, off = (f"--keepalive={seconds}" for seconds in (SERVER, NEVER))
    both = f"both ping, {SERVER} and {PARTICIPANT} s"
    variants: dict[str, tuple[int, list[str], float]] = {
        "no participants": (0, [], 0),
        "no pings": (args.participants, [off], 0),
        f"the workers ping, {SERVER} s": (args.participants, [server], 0),
        f"participants ping, {PARTICIPANT} s": (args.participants, [off], PARTICIPANT),
        both: (args.participants, [server], PARTICIPANT),
    }
    found: dict[str, Report] = {}
    try:
        build_loadgen()
        if "--keepalive" not in offered_options():
            print("`coordinator start` has no --keepalive: without pings can't be measured", file=sys.stderr)
            variants = {name: (n, [], p) for name, (n, o, p) in variants.items() if off not in o}
        for name, variant in variants.items():
            print(name, file=sys.stderr)
            found[name] = measure(*variant, args)
    except MeasurementError as error:
        sys.exit("\n".join([str(error), *getattr(error, "__notes__", [])]))
    print_table(
        f"{args.participants:,} idle participants, {args.workers} workers; per cent of a core",
        ["", "workers", "coordinator", "load gen.", "pings per s", "of the workers"],
        [
            [
                name,
                *(
                    f"{one['per_cent_of_a_core'].get(role, 0):.1f}"
                    for role in ("workers", "coordinator", "load generator")
                ),
                *(f"{one['pings_per_second'][which]:,.0f}" for which in ("pings", "pinged")),
            ]
            for name, one in found.items()
        ],
    )
    idle = found.get("no pings", found["no participants"])["per_cent_of_a_core"]["workers"]
    cost = round(found[both]["per_cent_of_a_core"]["workers"] - idle, 2)
    print(f"pings both ways cost the workers {cost:.1f} per cent of a core")
    print(write_results("keepalive", vars(args), {"variants": found, "cost_per_cent": cost}))
    if lost := {name: one["ends"] for name, one in found.items() if one["lost"]}:
        sys.exit(f"participants were lost: {lost}")


if __name__ == "__main__":
    main()
