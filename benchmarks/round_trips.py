"""Round trips per second, and what they cost in CPU time: Muster beside the limit and the known design.

Decides what is compared: the bare echo, alone and as many of it as there are workers, a thread per stream,
and Muster with some numbers of workers in four modes. Only ratios within one run mean something. How
candidates are compared is compare.py's.

    python -m benchmarks.round_trips
    python -m benchmarks.round_trips --size 1000000 --participants 50
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.compare import Candidate, Roles, add_options, as_json, module, muster, take_turns
from benchmarks.measure import Bench, Child, build_loadgen, print_table, write_results

MODES = ["awaited", "stream", "cohort", "reduce"]


def baseline(name: str, path: str, *options: object, load: Sequence[object]) -> Candidate:
    return Candidate(name, lambda bench: module(bench, name, f"benchmarks.baselines.{path}", *options), load)


def echoes(processes: int, *options: object, load: Sequence[object]) -> Candidate:
    """Bare echoes on one port, each with its share of the connections, as workers have: several processes on
    one machine cost more for each round trip than one alone, whatever they do."""
    name = f"bare echo, {processes} processes"

    def start(bench: Bench) -> tuple[Child, str, Roles]:
        path = "benchmarks.baselines.bare_echo"
        server, address, roles = module(bench, name, path, *options)
        for _ in range(1, processes):
            _, _, others = module(bench, name, path, *options, "--listen", address)
            roles["server"] += others["server"]
        return server, address, roles

    return Candidate(name, start, load)


def candidates(args: argparse.Namespace) -> list[Candidate]:
    size = ("--instruction-size", args.size)
    many = (*size, "--participants", args.participants)
    load = ("--answer-size", args.answer_size)
    unchunked = (*load, "--chunk-size", 0)
    known = [
        baseline("bare echo", "bare_echo", *size, load=load),
        *(echoes(workers, *size, load=load) for workers in args.workers if workers > 1),
        baseline("thread per stream", "thread_per_stream", *many, "--callers", args.callers, load=unchunked),
    ]
    for workers in args.workers:
        for mode in args.modes:
            name = f"Muster, {workers} worker{'s' if workers > 1 else ''}, {mode}"
            options: list[object] = ["--workers", workers, "--mode", mode, *many]
            answers: Sequence[object] = load
            if mode == "reduce":  # there must be something to add up
                options += ["--tensor-bytes", args.size, "--dtype", "float32"]
                answers = ("--tensor-bytes", args.answer_size)
            known.append(muster(name, *options, load=answers))
    return known


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=200)
    parser.add_argument("--size", type=int, default=100, help="bytes of payload of an instruction")
    parser.add_argument("--answer-size", type=int, help="bytes of payload of an answer; the same by default")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES)
    parser.add_argument("--callers", type=int, default=32, help="threads of the thread-per-stream's caller")
    add_options(parser)
    args = parser.parse_args()
    if args.answer_size is None:
        args.answer_size = args.size
    return args


def rows(all_candidates: Sequence[Candidate]) -> list[list[str]]:
    """The table: medians, and ratios to the first candidate."""
    first = all_candidates[0]
    table = []
    for candidate in all_candidates:
        rates = [w.per_second for w in candidate.windows]
        by_role = candidate.cpu_by_role()
        table.append(
            [
                candidate.name,
                f"{candidate.per_second:,.0f}",
                f"{min(rates):,.0f}-{max(rates):,.0f}",
                f"{candidate.per_second / first.per_second:.2f}",
                f"{by_role['server']:.4f}" if "server" in by_role else "",
                f"{by_role['workers']:.4f}" if "workers" in by_role else "",
                f"{by_role['coordinator']:.4f}" if "coordinator" in by_role else "",
                f"1/{by_role['workers'] / by_role['coordinator']:.1f}" if "coordinator" in by_role else "",
                f"{candidate.server_cpu / first.server_cpu:.2f}",
                f"{by_role['load generator']:.4f}",
                f"{candidate.median(lambda w: w.others):.2f}",
            ]
        )
    return table


def main() -> None:
    args = parse_args()
    build_loadgen()
    measured, failures = take_turns(candidates(args), args.participants, args)
    if measured:
        columns = [
            "",
            "per s",
            "range",
            "×",
            "server",
            "workers",
            "coord.",
            "share",
            "CPU ×",
            "load gen.",
            "others",
        ]
        print_table(
            f"Round trips of {args.participants} participants, "
            f"{args.size:,} bytes down, {args.answer_size:,} up; "
            f"CPU seconds per 1,000; × is relative to {measured[0].name}",
            columns,
            rows(measured),
        )
        print(write_results("round_trips", vars(args), as_json(measured, failures)))
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
