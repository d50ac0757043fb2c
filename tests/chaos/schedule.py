"""Decides which fault comes when. The same seed, length and kinds always give the same schedule.

Kinds are dealt from a shuffled deck, so that each comes even in a short run. What a fault hits is left alone
until it should have recovered, and no worker's slot dies so often that it would be given up for good (see
coordinator/workers/restarts.py): that is for other tests.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

SHORTEST_GAP, LONGEST_GAP = 0.5, 2.2
"""Seconds between the beginnings of two faults."""

DEATHS, PERIOD = 4, 70.0
"""A slot dies at most so often within so many seconds."""


class Kind(NamedTuple):
    cards: int  # in the deck
    hits: str  # worker, group (of participants), script, coordinator or connections
    shortest: float  # seconds that it lasts
    longest: float
    rest: float  # seconds that what it hit is left alone afterwards
    deadly: bool = False


KINDS: dict[str, Kind] = {
    "worker-kill": Kind(4, "worker", 0.0, 0.0, 5.0, deadly=True),
    "worker-stop": Kind(2, "worker", 0.0, 0.0, 9.0, deadly=True),  # until it is found and killed
    "worker-pause": Kind(2, "worker", 0.1, 1.5, 1.0),
    "worker-term": Kind(2, "worker", 0.0, 0.0, 5.0),
    "participants-kill": Kind(2, "group", 0.3, 2.5, 1.0),
    "participants-pause": Kind(2, "group", 0.3, 4.0, 1.0),
    "participants-term": Kind(1, "group", 0.5, 2.0, 1.0),
    "script-kill": Kind(2, "script", 0.2, 1.5, 1.0),
    "cut-some": Kind(2, "connections", 0.0, 0.0, 0.5),
    "cut-all": Kind(1, "connections", 0.0, 0.0, 3.0),
    "freeze": Kind(2, "connections", 1.0, 8.0, 0.5),
    "coordinator-pause": Kind(2, "coordinator", 0.2, 4.0, 2.0),
    "coordinator-kill": Kind(2, "coordinator", 0.1, 2.0, 6.0),
    "restart-workers": Kind(1, "coordinator", 0.0, 0.0, 13.0),
    "drain": Kind(1, "coordinator", 0.1, 1.0, 12.0),
    "workers-term": Kind(1, "coordinator", 0.0, 0.0, 10.0),
}
"""Of the last four, those that the coordinator at hand can do are asked for (see cluster.py)."""

GRACEFUL = frozenset(
    {"worker-pause", "worker-term", "workers-term", "coordinator-pause", "restart-workers", "drain"}
)
"""What loses no result."""


@dataclass(frozen=True)
class Fault:
    """``share`` is of the connections. ``politely``: FIN instead of RST; thawed instead of dropped."""

    at: float
    kind: str
    target: int
    lasts: float
    share: float = 0.0
    politely: bool = False


def make_schedule(
    seed: int, seconds: float, kinds: Iterable[str], *, workers: int, groups: int, scripts: int
) -> list[Fault]:
    dice = random.Random(f"schedule {seed}")
    number_of = {"worker": workers, "group": groups, "script": scripts, "coordinator": 1, "connections": 1}
    wanted = sorted(kinds)
    free_at: dict[tuple[str, int], float] = {}
    deaths: dict[int, list[float]] = {index: [] for index in range(workers)}
    deck: list[str] = []
    faults: list[Fault] = []
    at = dice.uniform(0.0, SHORTEST_GAP)
    while wanted and at < seconds:
        if not deck:
            deck = [name for name in wanted for _ in range(KINDS[name].cards)]
            dice.shuffle(deck)
        name, target = _playable(deck, at, free_at, deaths, number_of, dice)
        if name is not None:
            deck.remove(name)
            kind = KINDS[name]
            lasts = min(dice.uniform(kind.shortest, kind.longest), max(kind.shortest, seconds - at))
            share = 1.0 if name == "cut-all" else dice.uniform(0.05, 0.5)
            hit = kind.hits == "connections"
            faults.append(Fault(at, name, target, lasts, share if hit else 0.0, hit and dice.random() < 0.5))
            free_at[kind.hits, target] = at + lasts + kind.rest
            if kind.deadly:
                deaths[target].append(at)
        at += dice.uniform(SHORTEST_GAP, LONGEST_GAP)
    return faults


def _playable(
    deck: Collection[str],
    at: float,
    free_at: dict[tuple[str, int], float],
    deaths: dict[int, list[float]],
    number_of: dict[str, int],
    dice: random.Random,
) -> tuple[str | None, int]:
    """The first card whose kind has something left to hit, and what."""
    for name in deck:
        kind = KINDS[name]
        targets = [
            target
            for target in range(number_of[kind.hits])
            if free_at.get((kind.hits, target), 0.0) <= at
            and not (kind.deadly and sum(at - time < PERIOD for time in deaths[target]) >= DEATHS)
        ]
        if targets:
            return name, dice.choice(targets)
    return None, 0
