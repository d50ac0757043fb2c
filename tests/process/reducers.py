"""Reducers of our own, for the workers to import. All but the first two can't do what they must."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import cast

import numpy as np

from manager.reducing.reducers import Contribution, Reducer
from manager.timeouts import FOLDING_TIMEOUT


class Median(Reducer):
    """Of single numbers named x: all of them are its state."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[float] = []

    def fold(self, contribution: Contribution) -> None:
        self._values += contribution.tensors["x"].tolist()

    def state(self) -> Contribution:
        return Contribution({"x": np.array(self._values)}, {}, 0.0)

    def merge(self, state: Contribution) -> None:
        self.fold(state)

    def finish(self) -> Contribution:
        return Contribution({"x": np.array([np.median(self._values)])}, {}, 0.0)


class Trimmed(Median):
    """Takes whatever it is given for an option, also what can't be sent to the workers."""

    def __init__(self, *, trim: object = 0) -> None:
        super().__init__()


class Stateless(Median):
    """Can't say what it has come to."""

    def state(self) -> Contribution:
        raise RuntimeError("no idea")


class Complex(Median):
    """Has a state of a kind that can't be sent."""

    def state(self) -> Contribution:
        return Contribution({"x": np.array(self._values, np.complex128)}, {}, 0.0)


class Nothing(Median):
    """Has forgotten to return its state."""

    def state(self) -> Contribution:
        return cast(Contribution, None)


class Picky(Median):
    """Fails in a way of its own at what isn't a positive number."""

    def fold(self, contribution: Contribution) -> None:
        if contribution.tensors["x"].min() <= 0:
            raise RuntimeError("not positive")
        super().fold(contribution)


class Hanging(Median):
    """Blocks the worker's event loop, as code that waits for something it shouldn't does."""

    def fold(self, contribution: Contribution) -> None:
        print("hangs", file=sys.stderr, flush=True)  # noqa: T201 - for the test to know
        threading.Event().wait()


class Slow(Median):
    """Takes half as long as a worker waits for it at its end, as results of many GiB would.

    When it has begun there is a file, which FOLDING names in the environment.
    """

    def fold(self, contribution: Contribution) -> None:
        Path(os.environ["FOLDING"]).touch()
        threading.Event().wait(FOLDING_TIMEOUT / 2)
        super().fold(contribution)


REDUCERS = [
    f"{__name__}:{name}" for name in ("Median", "Trimmed", "Stateless", "Complex", "Nothing", "Picky")
]
"""What may be named in the tests."""
