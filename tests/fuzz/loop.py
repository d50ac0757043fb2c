"""The loop: so many frames, made from one seed, each within its time, and no growth of memory at the end.

Frame N of a seed is always the same. Targets keep state, so a finding is repeated by running the seed up to
that frame; the frames themselves are shown, too.
"""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from manager.usage import resident_bytes
from tests.fuzz.targets import TARGETS, Frames

MOST_SECONDS = 0.25
"""CPU time that one frame may take, of a few hundred bytes. Most take less than a thousandth."""

MOST_GROWTH = 24 * 2**20
"""Bytes by which the process may grow once it is warm: what freed memory leaves in fragments."""


class FindingError(AssertionError):
    """A frame that did what none may do."""


@dataclass
class Report:
    """What came of it."""

    frames: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    fed: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    growth: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        shares = ", ".join(
            f"{name} {fed} ({100 * self.accepted[name] / fed:.0f} % accepted)"
            for name, fed in self.fed.items()
        )
        return (
            f"{self.frames} frames in {self.seconds:.0f} s: {shares}; slowest "
            f"{1000 * self.slowest:.0f} ms CPU; memory {self.growth / 2**20:+.1f} MiB"
        )


def run(frames: int, seed: int, tell: Callable[[Report], None] = lambda report: None) -> Report:
    """Feeds so many frames to all targets in turn. Raises FindingError at the first that misbehaves."""
    targets = [make() for make in TARGETS]
    report = Report()
    started_at = time.monotonic()
    warm_at, level = min(frames // 5, 100_000), 0
    for number in range(frames):
        if number == warm_at:
            gc.collect()
            level = resident_bytes()
        rng = random.Random(seed << 40 | number)
        target = targets[number % len(targets)]
        made = target.frames(rng)
        began_at = time.thread_time()
        try:
            accepted = target.feed(made, rng)
        except Exception as error:
            raise FindingError(_told(seed, number, target.name, made, repr(error))) from error
        spent = time.thread_time() - began_at
        if spent > MOST_SECONDS:
            raise FindingError(_told(seed, number, target.name, made, f"took {spent:.1f} s of CPU"))
        report.frames += 1
        report.fed[target.name] += 1
        report.accepted[target.name] += accepted
        report.slowest = max(report.slowest, spent)
        if report.frames % 100_000 == 0:
            report.seconds = time.monotonic() - started_at
            tell(report)
    gc.collect()
    report.growth = resident_bytes() - level
    report.seconds = time.monotonic() - started_at
    if report.growth > MOST_GROWTH:
        raise FindingError(f"seed {seed}: memory grew: {report}")
    return report


def _told(seed: int, number: int, target: str, frames: Frames, what: str) -> str:
    shown = "\n".join(frame[:4000].hex() for frame in frames)
    return f"seed {seed}, frame {number}, target {target}: {what}; the frames:\n{shown}"
