"""The arithmetic of folding, on whichever thread: folding.py decides when, and is told what came of it.

Decides how an answer becomes a contribution, and that whatever a reducer raises is that participant's failure
(or, when it is asked what it has come to, that of its batch).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from manager.batch import Batch, Kinds
from manager.blobs import Payload, share, view_of
from manager.reducers import Contribution, RefusedError, encode, make_reducer
from manager.schema import encode_schema
from manager.shares import Group, Partial, Reduction
from protos.envelope import MalformedMessageError
from protos.messages import ScalarError, from_scalars
from protos.sliced import read_result
from protos.tensors import TensorError

log = logging.getLogger("muster.folding")


def new_batch(id: int, part: int, reduction: Reduction, allowed: Sequence[str]) -> Batch:
    """Raises ValueError for a reducer that can't be. ``allowed`` are import paths besides built-in names."""
    make = partial(make_reducer, reduction.reducer, reduction.options, allowed)
    make()
    return Batch(id, part, make)


def fold(batch: Batch, session: int, answer: Payload) -> str | None:
    """Takes a result into the batch. Returns why it doesn't fit, if it doesn't."""
    try:
        result, tensors = read_result(view_of(answer))
        metrics = from_scalars(result.metrics)
    except (MalformedMessageError, TensorError, ScalarError) as error:
        return str(error)
    try:
        batch.fold(session, Contribution(tensors, metrics, result.weight))
    except RefusedError as error:
        return str(error)
    except Exception as error:  # of a custom reducer
        log.exception("a reducer failed")
        return f"the reducer failed: {error!r}"
    return None


def yielded(batch: Batch) -> tuple[Kinds, int] | Partial:
    """What the batch has come to, and how many bytes that is; it begins anew.

    If a reducer fails at that: the partial that says so.
    """
    try:
        kinds = batch.partial()
        return kinds, sum(tensor.nbytes for _, _, state in kinds.groups for tensor in state.tensors.values())
    except Exception as error:  # of a custom reducer
        return _failed(batch, error)


def partial_of(batch: Batch, kinds: Kinds) -> Partial:
    """The same as it is reported."""
    try:
        groups = [
            Group(encode_schema(schema), sessions if position else (), share(encode(state)))
            for position, (schema, sessions, state) in enumerate(kinds.groups)
        ]
    except Exception as error:  # a custom reducer's state that can't be sent
        return _failed(batch, error)
    return Partial(batch.id, batch.part, groups, closed=batch.closed, given_up=kinds.given_up)


def _failed(batch: Batch, error: Exception) -> Partial:
    log.error("a reducer failed to say what it has come to", exc_info=error)
    return Partial(batch.id, batch.part, [], closed=batch.closed, error=f"the reducer failed: {error!r}")
