"""A broadcast to thousands of participants and the gathering of their answers: how long, and what takes it.

Decides the call (``cohort.run`` to all of them, again and again) and the stages that can be told apart from
outside, by the clocks of the caller and of the participants: until the first instruction arrives, until the
last one does, until the last answer has gone out, until the caller has them all. How to measure is
measure.py's.

    python -m benchmarks.gather
    python -m benchmarks.gather --workers 1 --participants 10000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.calls import quantiles
from benchmarks.measure import (
    Bench,
    MeasurementError,
    Report,
    build_loadgen,
    observe,
    print_table,
    wait_for_load,
    write_results,
)

START_LIMIT = 30
"""Seconds in which the server has to be ready."""

STAGES = (
    "the first instruction arrives",
    "the last instruction arrives",
    "the first answer is out",
    "the last answer is out",
    "the caller has all answers",
)
"""What has happened at the end of each stage, in the order of the last column; times count from the call."""


def measure(args: argparse.Namespace) -> Report:
    with Bench(2 * args.timeout + args.seconds + args.warm_up + 8 * START_LIMIT) as bench:
        options = ["--workers", args.workers, "--participants", args.participants, "--timeout", args.timeout]
        options += ["--instruction-size", args.size, "--warm-up", 0, "--round-times"]
        server = bench.python("Muster", "benchmarks.drive", "--mode", "cohort", *options)
        ready = server.report(START_LIMIT)
        load: list[object] = ["--answer-size", args.size, "--round-times"]
        loadgen = bench.loadgen(ready["listen"], args.participants, *load)
        pooled = server.report(args.timeout + 10)
        wait_for_load(loadgen, args.participants, args.timeout)
        roles = {"coordinator": [ready["pid"]], "workers": ready["workers"]}
        warm_up = observe(loadgen, roles, args.warm_up, args.participants)
        window = observe(loadgen, roles, args.seconds, args.participants)
        calls = server.finish()["rounds"]
        passages = loadgen.finish()["rounds"]
    skipped = max(1, round(warm_up.round_trips / args.participants))
    rounds = list(zip(calls, passages, strict=False))[skipped:]
    if not rounds:
        raise MeasurementError(f"not one whole round in {args.seconds:g} s; give it more with --seconds")
    return {
        "rounds": len(rounds),
        "spread": pooled["spread"],
        "round": quantiles([ended - began for (began, ended), _ in rounds]),
        "until": {stage: quantiles(times) for stage, times in zip(STAGES, _stages(rounds), strict=True)},
        "window": window.as_dict(),
    }


def _stages(rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[list[float]]:
    """For each stage, the seconds from the call until its end, in each of the rounds."""
    return [
        [([*seen, ended])[stage] - began for (began, ended), seen in rounds] for stage in range(len(STAGES))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=5000)
    parser.add_argument("--size", type=int, default=100, help="bytes of payload each way")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warm-up", type=float, default=2, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=10, help="seconds counted")
    parser.add_argument("--timeout", type=float, default=60, help="seconds until all must be pooled")
    args = parser.parse_args()
    try:
        build_loadgen()
        result = measure(args)
    except MeasurementError as error:
        sys.exit(str(error))
    cpu = result["window"]["cpu_seconds_per_1000"]
    by_role = ", ".join(f"{role} {seconds:.4f}" for role, seconds in cpu.items())
    print_table(
        f"{result['rounds']} broadcasts to {args.participants:,} participants, {args.size:,} bytes each way, "
        f"{args.workers} workers {result['spread']}; a round takes {result['round']['p50_ms']:.1f} ms (p50), "
        f"{result['round']['p99_ms']:.1f} ms (p99); CPU seconds per 1,000 answers: {by_role}",
        ["time from the call until", "p50, ms", "p99, ms", "worst, ms"],
        [
            [stage, *(f"{times[figure]:.1f}" for figure in ("p50_ms", "p99_ms", "worst_ms"))]
            for stage, times in result["until"].items()
        ],
    )
    print(write_results("gather", vars(args), result))


if __name__ == "__main__":
    main()
