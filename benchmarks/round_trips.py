"""Round trips per second, and what they cost in CPU time: Muster beside the limit and the known design.

Decides what is compared (the bare echo, a thread per stream, Muster with some numbers of workers in two
modes) and how: the candidates take turns, several times over, and the median of each counts, because a
machine is never quiet for long. Only ratios within one run mean something. How to measure is measure.py's.

    python -m benchmarks.round_trips
    python -m benchmarks.round_trips --size 1000000 --participants 50
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import (
    Bench,
    Child,
    MeasurementError,
    Window,
    build_loadgen,
    observe,
    print_table,
    wait_for_load,
    write_results,
)

START_LIMIT = 30
"""Seconds in which a server has to be ready."""

QUIET = 0.1
"""Cores that other processes may use before a window is taken again, and the quietest counts."""

Roles = dict[str, list[int]]


@dataclass
class Candidate:
    """Something to measure. ``start`` starts the server; returns its address and its processes by role."""

    name: str
    start: Callable[[Bench], tuple[Child, str, Roles]]
    chunks: bool = True
    windows: list[Window] = field(default_factory=list)

    def median(self, figure: Callable[[Window], float]) -> float:
        return statistics.median(map(figure, self.windows))

    @property
    def server_cpu(self) -> float:
        """CPU seconds per 1,000 round trips of all processes but the load generator."""
        return self.median(lambda w: sum(w.cpu_per_1000(role) for role in w.cpu if role != "load generator"))


def baseline(name: str, module: str, *options: object, chunks: bool = True) -> Candidate:
    def start(bench: Bench) -> tuple[Child, str, Roles]:
        server = bench.python(name, f"benchmarks.baselines.{module}", *options)
        ready = server.report(START_LIMIT)
        return server, ready["listen"], {"server": [ready["pid"]]}

    return Candidate(name, start, chunks)


def muster(workers: int, mode: str, *options: object) -> Candidate:
    name = f"Muster, {workers} worker{'s' if workers > 1 else ''}, {mode}"

    def start(bench: Bench) -> tuple[Child, str, Roles]:
        server = bench.python(name, "benchmarks.drive", "--workers", workers, "--mode", mode, *options)
        ready = server.report(START_LIMIT)
        return server, ready["listen"], {"coordinator": [ready["pid"]], "workers": ready["workers"]}

    return Candidate(name, start)


def candidates(args: argparse.Namespace) -> list[Candidate]:
    size = ("--instruction-size", args.size)
    many = (*size, "--participants", args.participants)
    known = [
        baseline("bare echo", "bare_echo", *size),
        baseline("thread per stream", "thread_per_stream", *many, "--callers", args.callers, chunks=False),
    ]
    known += [muster(workers, mode, *many) for workers in args.workers for mode in args.modes]
    return [candidate for candidate in known if args.only is None or args.only in candidate.name]


def measure(candidate: Candidate, args: argparse.Namespace) -> None:
    with Bench(limit=args.warm_up + args.attempts * (args.seconds + 2) + 4 * START_LIMIT) as bench:
        server, address, roles = candidate.start(bench)
        options: list[object] = ["--answer-size", args.answer_size]
        if not candidate.chunks:
            options += ["--chunk-size", 0]
        loadgen = bench.loadgen(address, args.participants, *options)
        wait_for_load(loadgen, args.participants)
        observe(loadgen, roles, args.warm_up)
        windows = [observe(loadgen, roles, args.seconds)]
        while windows[-1].others > QUIET and len(windows) < args.attempts:
            windows.append(observe(loadgen, roles, args.seconds))
        server.finish()
        candidate.windows.append(min(windows, key=lambda window: window.others))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=200)
    parser.add_argument("--size", type=int, default=100, help="bytes of payload of an instruction")
    parser.add_argument("--answer-size", type=int, help="bytes of payload of an answer; the same by default")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--modes", nargs="*", choices=["awaited", "cohort"], default=["awaited", "cohort"])
    parser.add_argument("--callers", type=int, default=32, help="threads of the thread-per-stream's caller")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=1, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=3, help="seconds counted, per repetition")
    parser.add_argument("--attempts", type=int, default=3, help="at most, when the machine is busy")
    parser.add_argument("--only", help="only those with this in their name")
    args = parser.parse_args()
    if args.answer_size is None:
        args.answer_size = args.size
    return args


def rows(all_candidates: Sequence[Candidate]) -> list[list[str]]:
    """The table: medians, and ratios to the first candidate."""
    first = all_candidates[0]
    table = []
    for candidate in all_candidates:
        rate = candidate.median(lambda w: w.per_second)
        rates = [w.per_second for w in candidate.windows]
        by_role = {
            role: candidate.median(lambda w, role=role: w.cpu_per_1000(role))  # type: ignore[misc]
            for role in candidate.windows[0].cpu
        }
        table.append(
            [
                candidate.name,
                f"{rate:,.0f}",
                f"{min(rates):,.0f}-{max(rates):,.0f}",
                f"{rate / first.median(lambda w: w.per_second):.2f}",
                f"{by_role['server']:.4f}" if "server" in by_role else "",
                f"{by_role['workers']:.4f}" if "workers" in by_role else "",
                f"{by_role['coordinator']:.4f}" if "coordinator" in by_role else "",
                f"{candidate.server_cpu / first.server_cpu:.2f}",
                f"{by_role['load generator']:.4f}",
                f"{candidate.median(lambda w: w.others):.2f}",
            ]
        )
    return table


def main() -> None:
    args = parse_args()
    build_loadgen()
    everyone = candidates(args)
    if not everyone:
        sys.exit(f"no candidate has {args.only!r} in its name")
    failures: dict[str, str] = {}
    for repetition in range(args.repetitions):
        for candidate in everyone:
            if candidate.name in failures:
                continue
            print(f"{repetition + 1}/{args.repetitions} {candidate.name}", file=sys.stderr)
            try:
                measure(candidate, args)
            except MeasurementError as error:
                failures[candidate.name] = str(error)
                print(error, file=sys.stderr)
    measured = [candidate for candidate in everyone if candidate.windows]
    if measured:
        columns = ["", "per s", "range", "×", "server", "workers", "coord.", "CPU ×", "load gen.", "others"]
        print_table(
            f"Round trips of {args.participants} participants, "
            f"{args.size:,} bytes down, {args.answer_size:,} up; "
            f"CPU seconds per 1,000; × is relative to {measured[0].name}",
            columns,
            rows(measured),
        )
        results = {c.name: [window.as_dict() for window in c.windows] for c in measured}
        print(write_results("round_trips", vars(args), {"windows": results, "failures": failures}))
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
