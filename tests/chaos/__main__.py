"""``python -m tests.chaos``: see ``--help``. Exit code 1 if anything is wrong."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import click

from tests.chaos.audit import SLACK
from tests.chaos.cluster import Shape
from tests.chaos.report import as_dict, show
from tests.chaos.run import Run
from tests.chaos.schedule import GRACEFUL, KINDS

GROUPS = {
    "worker": [kind for kind in KINDS if kind.startswith(("worker-", "workers-"))],
    "participants": [kind for kind in KINDS if kind.startswith("participants-")],
    "connections": ["cut-some", "cut-all", "freeze"],
    "coordinator": ["coordinator-pause", "coordinator-kill", "restart-workers", "drain"],
    "graceful": sorted(GRACEFUL),
    "none": [],
}


def chosen(names: Iterable[str]) -> set[str] | None:
    """Kinds by their own names or those of groups; None if none is named."""
    kinds: set[str] = set()
    asked = [name for given in names for name in given.split(",")]
    for name in asked:
        if name not in KINDS and name not in GROUPS:
            raise click.BadParameter(f"{name!r}: there are {', '.join([*GROUPS, *KINDS])}")
        kinds.update(GROUPS.get(name, [name]))
    return kinds if asked else None


@click.command()
@click.option("--seed", type=int, default=7, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="Time with faults."
)
@click.option("--minutes", type=click.FloatRange(0.1), help="The same in minutes.")
@click.option("--faults", multiple=True, metavar="KIND|GROUP,…", help="Only these.  [default: all that work]")
@click.option(
    "--slack",
    type=click.FloatRange(0),
    default=SLACK,
    show_default=True,
    help="Seconds by which calls may end late: more beside other work.",
)
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="A file for the figures, as JSON."
)
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="A new directory for all logs."
)
def main(
    seed: int,
    seconds: float,
    minutes: float | None,
    faults: tuple[str, ...],
    slack: float,
    report: Path | None,
    keep: Path | None,
) -> None:
    """Runs a cluster of 3 workers, 64 participants and 2 training scripts; kills, stops, cuts and restarts
    everything in it as the seed says; and tells what of its promises did not hold."""
    kinds = chosen(faults)
    if keep is not None:
        keep.mkdir(parents=True)
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        run = Run(
            Path(directory).absolute(), seed, 60 * minutes if minutes else seconds, kinds, Shape(), slack
        )
        result = asyncio.run(run.run())
    show(result)
    if report is not None:
        report.write_text(json.dumps(as_dict(result), indent=2), encoding="utf-8")
    sys.exit(1 if result.violations else 0)


if __name__ == "__main__":
    main()
