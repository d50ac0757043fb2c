"""Decides what may be done now because the coordinator has heard what was reported before. Sans-IO.

A participant that is told to reconnect may be back, at another worker, before the coordinator has read here
that it was told so; it would be taken for a second one of the same name. So it is told only once that report
is acknowledged, or nobody is there to do that. For how long one that is held up is waited for is not decided
here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Callback = Callable[[], None]


class Confirmations:
    """What waits, in the order in which it was reported."""

    def __init__(self) -> None:
        self._unreported: list[Callback] = []
        self._waiting: deque[tuple[int, list[Callback]]] = deque()  # by number

    def __bool__(self) -> bool:
        return bool(self._unreported or self._waiting)

    def add(self, callback: Callback) -> None:
        """To be called back once all that is reported up to now, or is in the next report, has been heard."""
        self._unreported.append(callback)

    def reported(self, number: int) -> None:
        """The report with this number has been sent."""
        if self._unreported:
            self._waiting.append((number, self._unreported))
            self._unreported = []

    def heard(self, number: int) -> list[Callback]:
        """All up to this number has been heard. What may be done."""
        due: list[Callback] = []
        while self._waiting and self._waiting[0][0] <= number:
            due += self._waiting.popleft()[1]
        return due

    def give_up(self) -> list[Callback]:
        """Nobody will hear of it. All that waits may be done."""
        due = [callback for _, callbacks in self._waiting for callback in callbacks] + self._unreported
        self._waiting.clear()
        self._unreported = []
        return due
