"""Which streams have been waited for too long: one timer for all of them, which runs only if there are any.

Decides when the time is up; what then happens to a stream was said when the waiting began. Coarse on
purpose, so that to begin and to end costs no more than an entry in a table: for what may take seconds,
never for messages that are answered at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from manager.serving.stream import Stream
    from manager.serving.verdicts import Verdict

INTERVAL: Final = 0.5
"""Seconds between two looks. A stream is ended so much later than it is due, at most."""


class Overdue:
    """Streams that something is expected of by a certain time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: dict[Stream, tuple[float, Verdict]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0

    def __len__(self) -> int:
        return len(self._due)

    def expect(self, stream: Stream, seconds: float, verdict: Verdict) -> None:
        """Ends the stream with this verdict after so long, in the place of what was expected of it before."""
        self._due[stream] = (self._loop.time() + seconds, verdict)
        if self._timer is None:
            self._schedule()

    def forget(self, stream: Stream) -> None:
        """Nothing is expected any more. To be called before a stream is over."""
        self._due.pop(stream, None)

    def _schedule(self) -> None:
        self._looks_at = self._loop.time() + INTERVAL
        self._timer = self._loop.call_at(self._looks_at, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = now - self._looks_at
        if late > INTERVAL:
            # This process was stopped, or very busy. What came meanwhile is still to be read.
            self._due = {stream: (at + late, verdict) for stream, (at, verdict) in self._due.items()}
        for stream in [stream for stream, (at, _) in self._due.items() if at <= now]:
            _, verdict = self._due.pop(stream)
            stream.cut(verdict)
        if self._due:
            self._schedule()
