"""Times that were taken many times, and what a scene has found.

Decides which figures stand for a series, and when a target is missed: when its worst time is over it, or
when it was not reached once. What is timed is for the benchmarks to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.measure import Report


@dataclass
class Series:
    """One time, taken many times. ``target`` in seconds; None: only to be known."""

    what: str
    target: float | None = None
    seconds: list[float] = field(default_factory=list)
    missing: int = 0
    """How often it was not reached at all."""

    def quantile(self, part: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered), math.ceil(part * len(ordered))) - 1] if ordered else math.nan

    @property
    def missed(self) -> bool:
        return self.target is not None and (self.missing > 0 or max(self.seconds, default=0) > self.target)

    def row(self) -> list[str]:
        figures = [f"{self.quantile(part):.3f}" for part in (0.5, 0.99, 1)]
        never = f" ({self.missing} never)" if self.missing else ""
        wanted = "" if self.target is None else f"{'> MISSED ' if self.missed else ''}{self.target:g}"
        return [self.what, f"{len(self.seconds)}{never}", *figures, wanted]

    def as_json(self) -> Report:
        named = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        figures = {name: round(self.quantile(part), 4) for name, part in named.items()}
        return {
            "what": self.what,
            "target": self.target,
            "missed": self.missed,
            "never": self.missing,
            **figures,
            "seconds": [round(each, 4) for each in self.seconds],
        }


@dataclass
class Scene:
    """What one scene has found."""

    series: Sequence[Series] = ()
    notes: list[str] = field(default_factory=list)
    details: Report = field(default_factory=dict)
