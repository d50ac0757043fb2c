"""One metric's share of a reduction: how the numbers that participants report under a name become one.

Decides what a partial state of a metric is and how two of them join. Which values are numbers at all, and how
states travel, is elementwise.py's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, TypeAlias

Number: TypeAlias = int | float

State: TypeAlias = tuple[Number, ...]
"""What is known of the values so far: a number for each of a measure's parts."""

INT64: Final = range(-(2**63), 2**63)
"""The integers that a metric can hold."""


class Measure(ABC):
    """How the values of a metric become one."""

    parts: ClassVar[tuple[str, ...]]
    """The names of a state's numbers."""

    @abstractmethod
    def of(self, value: Number, weight: float) -> State:
        """The state of a single value."""

    @abstractmethod
    def join(self, left: State, right: State) -> State:
        """The state of the values of both. Raises OverflowError for integers that leave 64 bits."""

    @abstractmethod
    def answer(self, state: State) -> Number:
        """What is made of the values."""


class MeanMeasure(Measure):
    """Σ weight·value / Σ weight in float64, over those who report the metric."""

    parts = ("sum", "weight")

    def of(self, value: Number, weight: float) -> State:
        return value * weight, weight

    def join(self, left: State, right: State) -> State:
        return left[0] + right[0], left[1] + right[1]

    def answer(self, state: State) -> Number:
        return state[0] / state[1]


class SumMeasure(Measure):
    """Σ value: exact and an int while all values are ints, else a float. Weights don't matter."""

    parts = ("ints", "floats", "number_of_floats")

    def of(self, value: Number, weight: float) -> State:
        return (0, value, 1) if isinstance(value, float) else (value, 0.0, 0)

    def join(self, left: State, right: State) -> State:
        ints = left[0] + right[0]
        if ints not in INT64:
            raise OverflowError
        return ints, left[1] + right[1], left[2] + right[2]

    def answer(self, state: State) -> Number:
        ints, floats, number_of_floats = state
        return ints + floats if number_of_floats else ints


class ExtremeMeasure(Measure):
    """The smallest or largest value, by ``min`` or ``max``. NaN, if allowed, wins."""

    parts = ("value",)

    def __init__(self, choose: Callable[[Number, Number], Number]) -> None:
        self._choose = choose

    def of(self, value: Number, weight: float) -> State:
        return (value,)

    def join(self, left: State, right: State) -> State:
        if left[0] != left[0]:
            return left
        if right[0] != right[0]:
            return right
        if left[0] == right[0]:  # 1 and 1.0: whatever the order, the float
            return left if isinstance(left[0], float) else right
        return (self._choose(left[0], right[0]),)

    def answer(self, state: State) -> Number:
        return state[0]
