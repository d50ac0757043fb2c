"""Candidates that take turns: the frame of the benchmarks that set Muster beside something else.

Decides how servers are compared: each is started anew for every repetition, the candidates take turns, and
the median of each figure counts, because a machine is never quiet for long. A window in which other processes
used the machine is taken again. Which candidates there are is for the benchmarks to say, how to measure is
measure.py's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import Bench, Child, MeasurementError, Window, observe, wait_for_load
from benchmarks.memory import peak_rss

START_LIMIT = 30
"""Seconds in which a server has to be ready."""

ROUND_LIMIT = 60
"""Seconds in which each participant has to have answered once."""

QUIET = 0.1
"""Cores that other processes may use before a window is taken again, and the quietest counts."""

Roles = dict[str, list[int]]
Start = Callable[[Bench], tuple[Child, str, Roles]]


@dataclass
class Candidate:
    """Something to measure. ``start`` starts the server; returns its address and its processes by role.

    ``load`` are the options of the load generator.
    """

    name: str
    start: Start
    load: Sequence[object] = ()
    windows: list[Window] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    """Bytes that all its processes took at most, by repetition."""

    def median(self, figure: Callable[[Window], float]) -> float:
        return statistics.median(map(figure, self.windows))

    @property
    def per_second(self) -> float:
        return self.median(lambda window: window.per_second)

    @property
    def server_cpu(self) -> float:
        """CPU seconds per 1,000 round trips of all processes but the load generator."""
        return self.median(lambda w: sum(w.cpu_per_1000(role) for role in w.cpu if role != "load generator"))

    @property
    def peak(self) -> float:
        return statistics.median(self.peaks)

    def cpu_by_role(self) -> Mapping[str, float]:
        return {
            role: self.median(lambda w, role=role: w.cpu_per_1000(role))  # type: ignore[misc]
            for role in self.windows[0].cpu
        }


def module(bench: Bench, name: str, path: str, *options: object) -> tuple[Child, str, Roles]:
    """Starts a Python module of ours that serves in one process."""
    server = bench.python(name, path, *options)
    ready = server.report(START_LIMIT)
    return server, ready["listen"], {"server": [ready["pid"]]}


def muster(name: str, *options: object, load: Sequence[object] = ()) -> Candidate:
    """drive.py with these options."""

    def start(bench: Bench) -> tuple[Child, str, Roles]:
        server = bench.python(name, "benchmarks.drive", *options)
        ready = server.report(START_LIMIT)
        return server, ready["listen"], {"coordinator": [ready["pid"]], "workers": ready["workers"]}

    return Candidate(name, start, load)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=1, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=3, help="seconds counted, per repetition")
    parser.add_argument("--attempts", type=int, default=3, help="at most, when the machine is busy")
    parser.add_argument(
        "--load-limit", type=float, default=60, help="seconds until all must have answered once"
    )
    parser.add_argument("--only", help="only those with this in their name")


def measure(candidate: Candidate, participants: int, args: argparse.Namespace) -> None:
    """One repetition of one candidate."""
    windows_limit = (1 + args.attempts) * (args.seconds + 2 * ROUND_LIMIT)
    with Bench(args.warm_up + windows_limit + args.load_limit + 3 * START_LIMIT) as bench:
        server, address, roles = candidate.start(bench)
        loadgen = bench.loadgen(address, participants, *candidate.load)
        wait_for_load(loadgen, participants, args.load_limit)
        observe(loadgen, roles, args.warm_up, participants, ROUND_LIMIT)
        windows: list[Window] = []
        while not windows or (windows[-1].others > QUIET and len(windows) < args.attempts):
            windows.append(observe(loadgen, roles, args.seconds, participants, ROUND_LIMIT))
        peak = sum(map(peak_rss, roles.values()))
        server.finish()
        candidate.windows.append(min(windows, key=lambda window: window.others))
        candidate.peaks.append(peak)


def take_turns(
    candidates: Sequence[Candidate], participants: int, args: argparse.Namespace
) -> tuple[list[Candidate], dict[str, str]]:
    """Measures all of them; returns those that could be measured, and why the others failed."""
    candidates = [candidate for candidate in candidates if args.only is None or args.only in candidate.name]
    if not candidates:
        sys.exit(f"no candidate has {args.only!r} in its name")
    failures: dict[str, str] = {}
    for repetition in range(args.repetitions):
        for candidate in candidates:
            if candidate.name in failures:
                continue
            print(f"{repetition + 1}/{args.repetitions} {candidate.name}", file=sys.stderr)
            try:
                measure(candidate, participants, args)
            except MeasurementError as error:
                failures[candidate.name] = str(error)
                print(error, file=sys.stderr)
    return [candidate for candidate in candidates if candidate.windows], failures


def as_json(measured: Sequence[Candidate], failures: Mapping[str, str]) -> dict[str, object]:
    return {
        "windows": {c.name: [window.as_dict() for window in c.windows] for c in measured},
        "peak_bytes": {c.name: c.peaks for c in measured},
        "failures": dict(failures),
    }
