"""How a process under measurement reports on itself: round trips and CPU time between two moments.

Decides what the JSON lines of the baselines and of drive.py look like. Measuring a process from outside, by
its id, is measure.py's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping


def say(report: Mapping[str, object]) -> None:
    """Prints one JSON line for whoever started this process."""
    print(json.dumps(report), flush=True)


def say_listening(address: str) -> None:
    """The first line: participants may connect now."""
    say({"listen": address, "pid": os.getpid()})


class Meter:
    """Counts from the moment it is made."""

    def __init__(self, round_trips: int) -> None:
        self._round_trips = round_trips
        self._cpu = time.process_time()
        self._began = time.perf_counter()

    def report(self, round_trips: int) -> dict[str, float]:
        """What has happened since: round trips, seconds, CPU seconds of this process with all its threads."""
        seconds = time.perf_counter() - self._began
        cpu = time.process_time() - self._cpu
        done = round_trips - self._round_trips
        return {
            "round_trips": done,
            "seconds": round(seconds, 3),
            "round_trips_per_second": round(done / seconds, 1),
            "cpu_seconds": round(cpu, 3),
            "cpu_seconds_per_1000": round(1000 * cpu / done, 5) if done else 0.0,
        }
