"""What a person, and a program, gets to see of a run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.chaos.inject import Measured
from tests.chaos.run import Result

MEASURED_ALONE = ("coordinator-kill", "coordinator-pause", "drain")
"""Faults of the coordinator."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them don't exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def times(result: Result) -> dict[str, dict[str, list[float]]]:
    """Seconds to detect and to recover by kind of fault, where no other fault stood in the way meanwhile.

    With the coordinator stopped nobody knows anything; a new one that finds workers dead waits for new ones.
    """
    faults = result.history.disturbances
    away = [fault for fault in faults if fault.kind in MEASURED_ALONE]
    down = [fault for fault in faults if fault.kind.startswith("worker-") and fault.kind != "worker-pause"]
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"detect": [], "recover": []})

    def note(measured: Measured, name: str, since: float, until: float | None) -> None:
        others = down if measured.kind in MEASURED_ALONE else away
        if until is not None and not any(
            fault.start <= until and fault.end >= measured.start for fault in others
        ):
            found[measured.kind][name].append(until - since)

    for measured in result.measured:
        note(measured, "detect", measured.start, measured.detected)
        note(measured, "recover", measured.repaired, measured.recovered)
        if measured.kind == "coordinator-kill":
            note(measured, "detect", measured.start, _first_gone(result, measured.start))
    return dict(found)


def _first_gone(result: Result, since: float) -> float | None:
    """When a script first learned that the coordinator is gone."""
    return min(
        (
            call.ended
            for call in result.history.calls.values()
            if call.how == "gone" and call.ended is not None and since <= call.ended <= since + 10
        ),
        default=None,
    )


def counts(result: Result) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Calls by kind, calls by how they ended, outcomes of participants by kind."""
    calls = result.history.calls.values()
    return (
        Counter(call.kind for call in calls),
        Counter(call.how or "script killed" for call in calls),
        Counter(entry[1] for call in calls for entry in call.told),
    )


def as_dict(result: Result) -> dict[str, Any]:
    kinds, ends, outcomes = counts(result)
    return {
        "seed": result.seed,
        "seconds": result.seconds,
        "faults": dict(result.made),
        "skipped": dict(result.skipped),
        "calls": dict(kinds),
        "ends": dict(ends),
        "outcomes": dict(outcomes),
        "late_answers": result.late_answers,
        "leases": len(result.history.leases),
        "times": times(result),
        "timeouts_late_by": sorted(result.lateness),
        "memory": {name: [vars(before), vars(now)] for name, (before, now) in result.memory.items()},
        "violations": [{"rule": each.rule, "text": each.text} for each in result.violations],
    }


def render(result: Result) -> RenderableType:
    kinds, ends, outcomes = counts(result)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("fault")
    columns = ["made", "detect p50", "p99", "recover p50", "p99", "max"]
    for name in columns:
        table.add_column(name, justify="right")
    measured = times(result)
    for kind, made in sorted(result.made.items()):
        detect = measured.get(kind, {}).get("detect", [])
        recover = measured.get(kind, {}).get("recover", [])
        table.add_row(
            kind,
            str(made),
            *(_seconds(detect, share) for share in (0.5, 0.99)),
            *(_seconds(recover, share) for share in (0.5, 0.99, 1.0)),
        )
    table.add_row(Text("all", "bold"), str(sum(result.made.values())))
    lines = [
        f"{sum(kinds.values()):,} calls: {_listed(kinds)}",
        f"they ended with: {_listed(ends)}",
        f"{sum(outcomes.values()):,} outcomes of participants: {_listed(outcomes)}; {result.late_answers} "
        f"late answers (of the last coordinator), {len(result.history.leases)} leases",
        "timeouts were late by "
        f"{_seconds(result.lateness, 0.5)} (p50), {_seconds(result.lateness, 0.99)} (p99), "
        f"{_seconds(result.lateness, 1.0)} (max of {len(result.lateness)})",
        "memory in MiB, warm and at the end: "
        + ", ".join(
            f"{name} {before.rss >> 20} {now.rss >> 20}" for name, (before, now) in result.memory.items()
        ),
    ]
    if result.skipped:
        lines.append(f"faults that found nothing to hit: {_listed(result.skipped)}")
    violations = [Text(f"{number}. {each}") for number, each in enumerate(result.violations, 1)]
    verdict = Text(
        f"seed {result.seed}: {len(violations)} violations", "bold red" if violations else "bold green"
    )
    return Group(table, *map(Text, lines), *violations, verdict)


def show(result: Result) -> None:
    Console(width=None if Console().is_terminal else 200).print(render(result))


def _seconds(values: Sequence[float], share: float) -> str:
    return f"{percentile(values, share):.2f} s" if values else "-"


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counter.most_common())
