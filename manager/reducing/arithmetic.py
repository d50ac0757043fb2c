"""The arithmetic of folding, on whichever thread: folding.py decides when, and is told what came of it.

Decides how an answer becomes a contribution, and that whatever a reducer raises is that participant's failure
(or, when it is asked what it has come to, that of its batch).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from manager.payloads.blobs import Payload, share, view_of
from manager.reducing.batch import Batch, Kinds
from manager.reducing.reducers import Contribution, Reducer, RefusedError, encode, make_reducer
from manager.reducing.schema import encode_schema
from manager.reducing.shares import Group, Partial, Reduction
from protos.envelope import MalformedMessageError
from protos.messages import ScalarError, from_scalars
from protos.sliced import read_result
from protos.tensors import TensorError

log = logging.getLogger("muster.folding")


def new_batch(id: int, part: int, reduction: Reduction, allowed: Sequence[str]) -> ResultBatch:
    """Raises ValueError for a reducer that can't be. ``allowed`` are import paths besides built-in names."""
    make = partial(make_reducer, reduction.reducer, reduction.options, allowed)
    make()
    return ResultBatch(id, part, make)


class ResultBatch(Batch):
    """A batch that takes in answers, and says what they have come to as it is reported."""

    __slots__ = ("_logged",)

    def __init__(self, id: int, part: int, make: Callable[[], Reducer]) -> None:
        super().__init__(id, part, make)
        self._logged = False  # that the reducer failed: a thousand answers needn't say it

    def take(self, session: int, answer: Payload) -> str | None:
        """Takes a session's result in; ``folded`` must follow. Returns why it doesn't fit, if it doesn't."""
        try:
            result, tensors = read_result(view_of(answer))
            metrics = from_scalars(result.metrics)
        except (MalformedMessageError, TensorError, ScalarError) as error:
            return str(error)
        try:
            self.fold(session, Contribution(tensors, metrics, result.weight))
        except RefusedError as error:
            return str(error)
        except Exception as error:  # of a custom reducer
            self._log("a reducer failed", error)
            return f"the reducer failed: {error!r}"
        return None

    def come_to(self) -> tuple[Kinds, int] | Partial:
        """What it has come to, and how many bytes that is; it begins anew.

        If a reducer fails at that: the partial that says so.
        """
        try:
            kinds = self.partial()
            size = sum(tensor.nbytes for _, _, state in kinds.groups for tensor in state.tensors.values())
        except Exception as error:  # of a custom reducer
            return self._failed(error)
        return kinds, size

    def reported(self, kinds: Kinds) -> Partial:
        """What it has come to, as it is sent."""
        try:
            groups = [
                Group(encode_schema(schema), sessions if position else (), share(encode(state)))
                for position, (schema, sessions, state) in enumerate(kinds.groups)
            ]
        except Exception as error:  # a custom reducer's state that can't be sent
            return self._failed(error)
        return Partial(self.id, self.part, groups, closed=self.closed, given_up=kinds.given_up)

    def _failed(self, error: Exception) -> Partial:
        self._log("a reducer failed to say what it has come to", error)
        return Partial(self.id, self.part, [], closed=self.closed, error=f"the reducer failed: {error!r}")

    def _log(self, text: str, error: Exception) -> None:
        if not self._logged:
            self._logged = True
            log.error(text, exc_info=error)
