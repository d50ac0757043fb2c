"""Rounds of federated averaging: Muster's reduce beside Flower's server, the same job for the same clients.

Decides the job (all participants get a model of float32 numbers, each answers with one of the same size, the
server averages them by weight, and the average goes down next), and which Flower. Its grpc-bidi transport is
the one where, as here, each client holds one stream. How candidates are compared is compare.py's.

    python -m benchmarks.flower
    python -m benchmarks.flower --size 1000000

Flower is installed into an environment of its own under benchmarks/build/, the first time.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare import START_LIMIT, Candidate, Roles, add_options, as_json, muster, take_turns
from benchmarks.measure import (
    BUILD,
    Bench,
    Child,
    MeasurementError,
    build_loadgen,
    print_table,
    write_results,
)
from benchmarks.memory import MIB

# The newest release when this was written (2026-11). It still has start_server with the grpc-bidi transport,
# though deprecated since 1.13; the wire is that of 1.25 still. Pinned, so that figures stay comparable.
FLOWER = "1.42.0"

INSTALL_LIMIT = 600
"""Seconds that installing it may take."""


def install_flower() -> Path:
    """Makes Flower's environment if it isn't there yet; returns its Python."""
    home = BUILD / f"flower-{FLOWER}"
    python = home / "bin" / "python"
    complete = home / "complete"
    if complete.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    print(f"installing flwr {FLOWER} into {home}", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        # The same gRPC and NumPy as on Muster's side; only Flower's own weight is to be compared.
        [str(python), "-m", "pip", "install", "--quiet", f"flwr=={FLOWER}", *_own_versions()],
    ):
        try:
            subprocess.run(command, check=True, timeout=INSTALL_LIMIT, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"installing Flower took over {INSTALL_LIMIT} s") from None
        except subprocess.CalledProcessError as error:
            raise MeasurementError(f"Flower can't be installed:\n{error.stderr[-2000:]}") from None
    complete.touch()
    return python


def _own_versions() -> list[str]:
    import grpc
    import numpy as np

    return [f"grpcio=={grpc.__version__}", f"numpy=={np.__version__}"]


def flower(python: Path, max_workers: int | None, args: argparse.Namespace) -> Candidate:
    options = [] if max_workers is None else ["--max-workers", max_workers]
    name = "Flower" + ("" if max_workers is None else f", {max_workers} threads")

    def start(bench: Bench) -> tuple[Child, str, Roles]:
        command = [str(python), "-m", "benchmarks.baselines.flower_server"]
        command += map(str, ["--participants", args.participants, *options])
        server = bench.start(name, command)
        ready = server.report(START_LIMIT)
        return server, ready["listen"], {"server": [ready["pid"]]}

    return Candidate(name, start, ["--flower", "--tensor-bytes", args.size])


def candidates(args: argparse.Namespace) -> list[Candidate]:
    python = install_flower()
    known = [flower(python, max_workers, args) for max_workers in (None, *args.flower_threads)]
    job = ["--mode", "reduce", "--participants", args.participants, "--tensor-bytes", args.size]
    job += ["--dtype", args.dtype]
    for workers in args.workers:
        name = f"Muster, {workers} worker{'s' if workers > 1 else ''}"
        known.append(muster(name, "--workers", workers, *job, load=["--tensor-bytes", args.size]))
    return known


def rows(measured: Sequence[Candidate]) -> list[list[str]]:
    """The table: medians, and ratios to the first candidate."""
    first = measured[0]
    table = []
    for candidate in measured:
        rates = [window.per_second for window in candidate.windows]
        table.append(
            [
                candidate.name,
                f"{candidate.per_second:,.0f}",
                f"{min(rates):,.0f}-{max(rates):,.0f}",
                f"{candidate.per_second / first.per_second:.2f}",
                f"{candidate.server_cpu:.4f}",
                f"{candidate.server_cpu / first.server_cpu:.2f}",
                f"{candidate.peak / MIB:,.0f}",
                f"{candidate.peak / first.peak:.2f}",
                f"{candidate.cpu_by_role()['load generator']:.4f}",
                f"{candidate.median(lambda window: window.others):.2f}",
            ]
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=100, help="bytes of the model, 4 for each number")
    parser.add_argument("--participants", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="of Muster")
    parser.add_argument(
        "--dtype", default="float32", help="that in which Muster adds up; Flower: the model's"
    )
    parser.add_argument(
        "--flower-threads",
        type=int,
        nargs="*",
        default=[],
        help="also Flower with so many threads that call clients (set_max_workers)",
    )
    add_options(parser)
    args = parser.parse_args()
    if args.size < 4 or args.size % 4:
        parser.error("--size must be a multiple of 4")
    try:
        build_loadgen()
        everyone = candidates(args)
    except MeasurementError as error:
        sys.exit(str(error))
    measured, failures = take_turns(everyone, args.participants, args)
    if measured:
        print_table(
            f"Federated averaging with {args.participants} clients, {args.size:,} bytes each way, "
            f"flwr {FLOWER}; CPU seconds per 1,000 round trips; × is relative to {measured[0].name}",
            ["", "per s", "range", "×", "CPU", "CPU ×", "peak MiB", "peak ×", "load gen.", "others"],
            rows(measured),
        )
        results = {**as_json(measured, failures), "flwr": FLOWER}
        print(write_results("flower", vars(args), results))
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
