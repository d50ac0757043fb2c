"""What happened in a run, read back from the journals of all who took part. audit.py judges it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.journal import Entry, read

PROBE = "probe"
"""The call with which the run itself asks everybody in the end. No script tells of it."""


@dataclass
class Call:
    """A call as its script tells it. ``told`` is in the form of script.Told."""

    id: str
    script: str  # the life of the script that made it
    kind: str
    asked: list[str]
    acquired: float  # when its script asked for these participants
    began: float
    timeout: float | None = None
    quorum: int | None = None
    reducer: str = ""
    ended: float | None = None
    how: str = ""  # outcome, given up, gone or error; empty: it never ended
    ends: int = 0  # how often it ended
    told: list[list[Any]] = field(default_factory=list)
    sums: dict[str, list[float]] = field(default_factory=dict)
    weight: float = 0.0
    since: float = 0.0  # when it was given up
    why: str = ""


@dataclass(frozen=True)
class Received:
    participant: str
    call: str
    nonce: str
    at: float
    intact: bool = True
    addressed: bool = True


@dataclass(frozen=True)
class Answer:
    participant: str
    call: str
    nonce: str
    what: str  # result or failure
    at: float
    check: int = 0
    weight: float = 0.0
    odd: bool = False


@dataclass(frozen=True)
class Leased:
    """``members`` are [participant, key] of one life of the coordinator."""

    id: str
    coordinator: int
    members: list[tuple[str, int]]
    since: float
    until: float


@dataclass(frozen=True)
class Disturbance:
    """A fault and the time in which it may have had effects.

    ``touched``: participants that it may have cost their session, None for all; empty if it costs nobody
    anything. ``holds_up``: "coordinator" or "worker", if nothing was decided there meanwhile.
    """

    kind: str
    start: float
    end: float
    touched: frozenset[str] | None = frozenset()
    holds_up: str = ""


@dataclass
class History:
    calls: dict[str, Call] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    leases: list[Leased] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    killed: dict[str, float] = field(default_factory=dict)
    """Lives of scripts that were killed, and when."""
    complaints: list[str] = field(default_factory=list)
    """What scripts and participants themselves found wrong."""


def load(directory: Path, disturbances: Iterable[Disturbance], killed: dict[str, float]) -> History:
    """Everything in the journals of this directory."""
    history = History(disturbances=list(disturbances), killed=dict(killed))
    for path in sorted(directory.glob("participant-*.jsonl")):
        _read_participant(history, path.stem.removeprefix("participant-"), read(path))
    for path in sorted(directory.glob("script-*.jsonl")):
        _read_script(history, path.stem.removeprefix("script-"), read(path))
    return history


def _read_participant(history: History, participant: str, entries: list[Entry]) -> None:
    for entry in entries:
        match entry["event"]:
            case "received":
                history.received.append(
                    Received(
                        participant,
                        entry["call"],
                        entry["nonce"],
                        entry["t"],
                        entry["intact"],
                        entry["addressed"],
                    )
                )
            case "answered":
                history.answers.append(
                    Answer(
                        participant,
                        entry["call"],
                        entry["nonce"],
                        entry["what"],
                        entry["t"],
                        entry.get("check", 0),
                        entry.get("weight", 0.0),
                        entry.get("odd", False),
                    )
                )
            case "refused":
                history.complaints.append(
                    f"participant {participant} was refused at {entry['t']}: {entry['why']}"
                )


def _read_script(history: History, script: str, entries: list[Entry]) -> None:
    leased: dict[str, Entry] = {}
    released: dict[str, float] = {}
    for entry in entries:
        match entry["event"]:
            case "begin":
                history.calls[entry["call"]] = Call(
                    entry["call"],
                    script,
                    entry["kind"],
                    entry["asked"],
                    entry["acquired"],
                    entry["t"],
                    entry["timeout"],
                    entry["quorum"],
                    entry.get("reducer", ""),
                )
            case "end":
                _end(history.calls[entry["call"]], entry)
            case "leased":
                leased[entry["lease"]] = entry
            case "released":
                released[entry["lease"]] = entry["t"]
            case "twice":
                history.complaints.append(
                    f"script {script} got a cohort with a participant twice: {entry['participants']}"
                )
    last = entries[-1]["t"] if entries else 0.0
    for lease, entry in leased.items():
        members = [(id, key) for id, key in entry["members"]]
        until = released.get(lease, last)  # it died with it: certainly held until its last word
        history.leases.append(Leased(lease, entry["coordinator"], members, entry["t"], until))


def _end(call: Call, entry: Entry) -> None:
    call.ends += 1
    call.ended = entry["t"]
    call.how = entry["how"]
    call.told = entry.get("told", [])
    call.sums = entry.get("sums", {})
    call.weight = entry.get("weight", 0.0)
    call.since = entry.get("since", 0.0)
    call.why = entry.get("why", "")
