"""Participants at work while thousands of others connect at once: is one lost, and do calls suffer?

Decides the scene: some participants are called all the time, first alone, then while the storm comes in
through the same workers, until all are pooled and a little longer. Each call is timed by the caller. How to
measure is measure.py's.

    python -m benchmarks.storm
    python -m benchmarks.storm --participants 20000 --source-addresses 2

Exits with 1 if a participant was lost.
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
    print_table,
    wait_until,
    write_results,
)

START_LIMIT = 30
"""Seconds in which the server has to be ready."""

FIGURES = ("calls", "p50_ms", "p99_ms", "worst_ms")


def measure(args: argparse.Namespace) -> Report:
    with Bench(args.timeout + 4 * args.calm + 3 * START_LIMIT) as bench:
        options = ["--workers", args.workers, "--participants", args.busy, "--latencies"]
        server = bench.python("Muster", "benchmarks.drive", "--mode", "awaited", "--warm-up", 0, *options)
        address = server.report(START_LIMIT)["listen"]
        think = ["--think-ms", args.think_ms, "--think-exponential"] if args.think_ms else []
        working = bench.loadgen(address, args.busy, "--id-prefix", "busy-", *think)
        server.report(START_LIMIT)
        time.sleep(args.calm)
        counts(server)  # what was until now, is warm-up
        time.sleep(args.calm)
        calm = counts(server)

        began = time.monotonic()
        load: list[object] = ["--id-prefix", "storm-", "--source-addresses", args.source_addresses]
        storm = bench.loadgen(address, args.participants, *load)
        everyone = args.busy + args.participants
        # Nobody asks the server in between: what it says, it says of all calls since the calm.
        wait_until(
            storm,
            "all connected",
            lambda now: now["open"] + now["lost"] >= args.participants,
            args.timeout,
        )
        time.sleep(args.settle)
        stormy = counts(server, args.timeout)
        if stormy["participants"] < everyone:
            raise MeasurementError(
                f"only {stormy['participants']} of {everyone} are pooled {args.settle:g} s after all have "
                f"connected; give them more with --settle"
            )
        stormy_seconds = time.monotonic() - began
        lost = {"busy": counts(working)["lost"], "storm": counts(storm)["lost"]}
        ends = {**counts(working)["ends"], **counts(storm)["ends"]}
        server.finish()
    return {
        "calm": {figure: calm[figure] for figure in FIGURES},
        "storm": {figure: stormy[figure] for figure in FIGURES},
        "storm_seconds": round(stormy_seconds, 3),
        "pooled": stormy["participants"],
        "spread": stormy["spread"],
        "lost": lost,
        "lost_calls": stormy["lost_calls"],
        "ends": ends,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--busy", type=int, default=100, help="participants that are called all the time")
    parser.add_argument("--participants", type=int, default=5000, help="of the storm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--think-ms", type=float, default=5, help="of the busy ones, on average; 0: none")
    parser.add_argument("--source-addresses", type=int, default=1, help="127.0.0.x to connect from")
    parser.add_argument("--calm", type=float, default=3, help="seconds before the storm")
    parser.add_argument("--settle", type=float, default=5, help="seconds that still count as storm")
    parser.add_argument("--timeout", type=float, default=60, help="seconds until all must be pooled")
    args = parser.parse_args()
    try:
        build_loadgen()
        result = measure(args)
    except MeasurementError as error:
        sys.exit(str(error))
    lost = sum(result["lost"].values()) + result["lost_calls"]
    print_table(
        f"Calls to {args.busy} participants (thinking {args.think_ms:g} ms) while {args.participants:,} "
        f"others connect, {args.workers} workers {result['spread']}; {lost} lost",
        ["", "calls", "p50, ms", "p99, ms", "worst, ms"],
        [
            [
                name,
                f"{result[phase]['calls']:,}",
                *(f"{result[phase][figure]:.1f}" for figure in FIGURES[1:]),
            ]
            for phase, name in (("calm", "before"), ("storm", f"during {result['storm_seconds']:.1f} s"))
        ],
    )
    print(write_results("storm", vars(args), result))
    if lost:
        sys.exit(f"{lost} participants or calls were lost: {result['lost']}, {result['ends']}")


if __name__ == "__main__":
    main()
