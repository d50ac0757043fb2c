"""What a reducer is, and which one a name stands for.

Decides the interface that all reducers have, the names of the built-in ones, and that a caller's own reducer
is found by its import path if whoever started the coordinator has allowed that path; nothing else that a
caller sends is ever imported. What the built-in ones compute is elementwise.py's business.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from typing import ClassVar, Final

from manager.reducing.contributions import Contribution, RefusedError, decode, encode
from protos.messages import Plain

__all__ = [
    "BUILT_IN",
    "Contribution",
    "Reducer",
    "RefusedError",
    "check_allowed",
    "decode",
    "encode",
    "make_reducer",
]


class Reducer(ABC):
    """Makes one answer of many contributions. Subclass it for a reducer of your own.

    Each worker process makes a reducer and folds its participants' contributions into it as they arrive, in
    no particular order. Its state then goes to the coordinator, which merges the states of all workers into a
    reducer that it has made of the same class and options, and finishes that one. So the answer must not
    depend on the order, nor on who was folded where.

    The arrays of a contribution or a state are read-only and their memory goes away after ``fold`` or
    ``merge``: copy what is to be kept. Sums are the usual state; a reducer that needs all contributions at
    once (a median, say) can keep copies of them, and send all of them as its state.

    Each worker is a process of its own, so NumPy multiplies matrices in one thread there, unless
    OPENBLAS_NUM_THREADS or OMP_NUM_THREADS in the environment of the coordinator says otherwise.
    """

    uniform: ClassVar[bool] = True
    """Whether all contributions that are folded together must have the same tensors: names, shapes, dtypes.

    If so, contributions with other tensors than most are refused before they get here.
    """

    def __init__(self, **options: Plain) -> None:
        """Raises ValueError or TypeError for options that make no sense; here, for any."""
        if options:
            raise TypeError(f"there is no option {', '.join(map(repr, options))}")

    @abstractmethod
    def fold(self, contribution: Contribution) -> None:
        """Takes the contribution in, or raises RefusedError having changed nothing at all."""

    @abstractmethod
    def state(self) -> Contribution:
        """Everything folded and merged so far, to be sent to another process: it must survive
        contributions.encode and decode unchanged.

        Its arrays may be the reducer's own: they are used before the next fold or merge, and not written to.
        """

    @abstractmethod
    def merge(self, state: Contribution) -> None:
        """Takes in the state of another reducer of the same class and options, or raises RefusedError having
        changed nothing.
        """

    @abstractmethod
    def finish(self) -> Contribution:
        """The answer: what is made of everything folded and merged so far."""


BUILT_IN: Final[Mapping[str, str]] = {
    "sum": "manager.reducing.elementwise:Sum",
    "mean": "manager.reducing.elementwise:Mean",
    "weighted_mean": "manager.reducing.elementwise:WeightedMean",
    "min": "manager.reducing.elementwise:Min",
    "max": "manager.reducing.elementwise:Max",
}


def make_reducer(name: str, options: Mapping[str, Plain], allowed: Collection[str]) -> Reducer:
    """A new reducer: a built-in one, or that of an import path ``package.module:Class`` among ``allowed``.

    Raises ValueError, which says what to do about it, if there is none of this name, the path isn't allowed
    or leads to no reducer, or the options make no sense to it.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"a reducer is named, as in reducer='mean', or by the import path of your own, "
            f"reducer='package.module:Class' (which coordinator start --reducer allows); not {name!r}"
        )
    path = BUILT_IN.get(name)
    if path is None:
        if ":" not in name:
            raise ValueError(
                f"there is no reducer {name!r}: use {', '.join(BUILT_IN)}, or the import path of your own, "
                f"package.module:Class"
            )
        if name not in allowed:
            raise ValueError(
                f"reducer {name!r} isn't allowed here: allow it with coordinator start --reducer {name}, or "
                f"reducers=[{name!r}] where the program starts the workers itself"
            )
        path = name
    reducer = _load(path)
    try:
        return reducer(**options)
    except Exception as error:  # whatever a class of the caller's does
        raise ValueError(f"reducer {name!r} can't be made with these options: {error}") from error


def check_allowed(paths: Iterable[str]) -> None:
    """Imports each of the paths. Raises ValueError for one that leads to no reducer, and says why."""
    for path in paths:
        _load(path)


def _described(error: Exception) -> str:
    """With where it was raised, if that isn't in its text, nor Python's own machinery of imports."""
    text = f"{type(error).__name__}: {error}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, SyntaxError) or where.filename.startswith("<frozen "):
        return text
    return f"{text} ({where.filename}, line {where.lineno})"


@functools.cache
def _load(path: str) -> type[Reducer]:
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise ValueError(f"reducer {path!r} is no import path of the form package.module:Class")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"reducer {path!r} can't be imported: {_described(error)}") from error
    reducer = getattr(module, class_name, None)
    if reducer is None:
        raise ValueError(f"reducer {path!r}: module {module_name} has no {class_name}")
    if not (isinstance(reducer, type) and issubclass(reducer, Reducer)):
        raise ValueError(f"reducer {path!r} is no subclass of manager.Reducer")
    if inspect.isabstract(reducer):
        lacking = ", ".join(sorted(reducer.__abstractmethods__))
        raise ValueError(f"reducer {path!r} lacks {lacking}")
    return reducer
