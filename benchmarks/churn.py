"""Thousands of participants come and go, wave after wave: does memory come back, or does it leak?

Decides the waves (each is a load generator of its own, whose participants leave or are killed) and when
memory is read: after everyone has gone. The first wave fills pools and caches; a leak shows as growth from
then on. How to measure is measure.py's and memory.py's.

    python -m benchmarks.churn

Exits with 1 if the workers or the coordinator have grown by more than ``--target`` from the first wave to the
last.
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
    print_table,
    wait_until,
    write_results,
)
from benchmarks.memory import MIB, memory

START_LIMIT = 30
"""Seconds in which the server has to be ready."""


def measure(args: argparse.Namespace) -> Report:
    with Bench(args.waves * (2 * args.timeout + args.settle) + START_LIMIT) as bench:
        options = ["--workers", args.workers, "--participants", 0]
        server = bench.python("Muster", "benchmarks.drive", "--mode", "idle", *options)
        ready = server.report(START_LIMIT)
        server.report(START_LIMIT)
        time.sleep(1.5)  # past its warm-up: it hears SIGUSR1
        roles: dict[str, list[int]] = {"workers": ready["workers"], "coordinator": [ready["pid"]]}
        waves: list[Report] = []

        def note(seconds: float, there: dict[str, int]) -> None:
            gone = {role: memory(*pids).rss for role, pids in roles.items()}
            waves.append({"seconds": round(seconds, 3), "rss_there": there, "rss_gone": gone})

        note(0, {role: memory(*pids).rss for role, pids in roles.items()})
        for wave in range(args.waves):
            began = time.monotonic()
            load: list[object] = ["--id-prefix", f"wave{wave}-" if args.new_names else "wave-", "--leave"]
            loadgen = bench.loadgen(ready["listen"], args.participants, *load)
            wait_until(
                server, "all pooled", lambda now: now["participants"] >= args.participants, args.timeout
            )
            there = {role: memory(*pids).rss for role, pids in roles.items()}
            if wave % 2 and args.kill:
                loadgen.kill()
            else:
                loadgen.finish()
            wait_until(server, "all gone", lambda now: now["participants"] == 0, args.timeout)
            seconds = time.monotonic() - began
            time.sleep(args.settle)
            note(seconds, there)
            if (now := set(wait_until(server, "", lambda _: True, 10)["workers"])) != set(ready["workers"]):
                raise MeasurementError(f"workers were replaced in wave {wave + 1}: {now}")
        server.finish()
    first, last = waves[1]["rss_gone"], waves[-1]["rss_gone"]
    return {"waves": waves, "last_to_first": {role: round(last[role] / first[role], 3) for role in roles}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--waves", type=int, default=6)
    parser.add_argument("--participants", type=int, default=3000, help="in each wave")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true", help="every second wave is killed instead of leaving")
    parser.add_argument("--new-names", action="store_true", help="nobody comes back under an old name")
    parser.add_argument("--settle", type=float, default=1.5, help="seconds from gone to measured")
    parser.add_argument("--timeout", type=float, default=60, help="seconds until all have come, and gone")
    parser.add_argument("--target", type=float, default=1.1, help="the last wave's memory over the first's")
    args = parser.parse_args()
    if args.waves < 2:
        parser.error("--waves must be at least 2: the last is compared with the first")
    try:
        build_loadgen()
        result = measure(args)
    except MeasurementError as error:
        sys.exit(str(error))
    ratios = result["last_to_first"]
    print_table(
        f"{args.waves} waves of {args.participants:,} participants, {args.workers} workers, RSS in MiB; "
        f"last to first: workers {ratios['workers']:.3f}, coordinator {ratios['coordinator']:.3f}",
        ["wave", "workers, all there", "workers, all gone", "coord., all there", "coord., all gone", "s"],
        [
            [
                str(number or "before"),
                *(f"{wave[f'rss_{when}'][role] / MIB:.1f}" for role in ratios for when in ("there", "gone")),
                f"{wave['seconds']:.1f}",
            ]
            for number, wave in enumerate(result["waves"])
        ],
    )
    print(write_results("churn", vars(args), result))
    for role, ratio in ratios.items():
        if ratio > args.target:
            sys.exit(
                f"{role}: {ratio} times the memory of the first wave is over the target of {args.target:g}"
            )


if __name__ == "__main__":
    main()
