"""What a process of the run writes down: one JSON object a line, each out before the next thing happens.

A line is one write to a file opened for appending, so it is there, whole, whenever its writer is killed.
Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Journal:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, event: str, **fields: Any) -> float:
        """Returns the time that the entry bears."""
        now = time.monotonic()
        line = json.dumps({"t": round(now, 4), "event": event, **fields}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")
        return now

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Entry]:
    """All entries. A last line without an end, of a writer that ran out of disk, doesn't count."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
