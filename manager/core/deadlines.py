"""Decides which deadlines have come. Sans-IO; times are monotonic seconds."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Things by id that have a deadline. One that ends earlier is removed."""

    def __init__(self) -> None:
        self._living: dict[int, T] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        """How many entries are kept, those of things that were removed included."""
        return len(self._heap)

    def add(self, deadline: float, id: int, thing: T) -> None:
        living = self._living
        living[id] = thing
        # Those that are removed leave their entry behind; don't let them outgrow the living.
        if len(self._heap) > 64 + 2 * len(living):
            self._heap = [entry for entry in self._heap if entry[1] in living]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (deadline, id))

    def remove(self, id: int) -> None:
        """Does nothing if there is none of this id."""
        if self._living:
            self._living.pop(id, None)

    def due(self, now: float) -> T | None:
        """One whose deadline has come, if any; it is removed."""
        while self._heap and self._heap[0][0] <= now:
            _, id = heapq.heappop(self._heap)
            if (thing := self._living.pop(id, None)) is not None:
                return thing
        return None

    @property
    def next(self) -> float | None:
        """The nearest deadline."""
        while self._heap and self._heap[0][1] not in self._living:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
