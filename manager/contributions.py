"""What reducers take in, keep and give: named tensors, metrics and a weight.

Decides how a contribution travels (as a stream Result, so that a partial is an ordinary payload), what makes
the tensors of two contributions the same, and how to say that they aren't. What is made of contributions is
the reducers' business (reducers.py, elementwise.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from protos.messages import Plain, from_scalars
from protos.sliced import encode_result, read_result

__all__ = [
    "Contribution",
    "RefusedError",
    "Schema",
    "decode",
    "decode_schema",
    "describe_mismatch",
    "encode",
    "encode_schema",
    "schema_of",
]


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What one participant contributes; also the partial state of a reducer; also the final answer."""

    tensors: Mapping[str, npt.NDArray[Any]]
    metrics: Mapping[str, Plain]
    weight: float


class RefusedError(ValueError):
    """A contribution that doesn't fit. The text says why; it becomes that participant's failure."""


Schema: TypeAlias = tuple[tuple[str, tuple[int, ...], str], ...]
"""The names, shapes and dtype names of some tensors, sorted by name."""

_NAMES: dict[np.dtype[Any], str] = {}
"""NumPy makes up a dtype's name anew each time, which takes longer than all else here."""


def schema_of(tensors: Mapping[str, npt.NDArray[Any]]) -> Schema:
    """The Schema of these tensors, whatever their order."""
    return tuple(sorted([(name, array.shape, dtype_name(array.dtype)) for name, array in tensors.items()]))


def describe_mismatch(schema: Schema, majority_schema: Schema) -> str:
    """How tensors differ from those that most have, in words; empty if they don't.

    Names the first difference in the order of the names, and says how many more tensors differ.
    """
    have = {name: (shape, dtype) for name, shape, dtype in schema}
    wanted = {name: (shape, dtype) for name, shape, dtype in majority_schema}
    problems = []
    for name in sorted(have.keys() | wanted.keys()):
        if name not in have:
            problems.append(f"tensor {name!r} is missing")
        elif name not in wanted:
            problems.append(f"tensor {name!r} is one that most don't have")
        elif have[name][0] != wanted[name][0]:
            problems.append(f"tensor {name!r} has shape {have[name][0]} where most have {wanted[name][0]}")
        elif have[name][1] != wanted[name][1]:
            problems.append(f"tensor {name!r} is {have[name][1]} where most have {wanted[name][1]}")
    if len(problems) > 1:
        return f"{problems[0]} (and {len(problems) - 1} more tensors differ)"
    return "".join(problems)


def encode_schema(schema: Schema) -> str:
    """The schema as text, the same for equal ones."""
    return json.dumps(schema, separators=(",", ":"))


def decode_schema(text: str) -> Schema:
    """The schema that encode_schema made the text of. Raises ValueError for any other text."""
    try:
        entries = json.loads(text)
        return tuple((str(name), tuple(map(int, shape)), str(dtype)) for name, shape, dtype in entries)
    except (TypeError, ValueError) as error:
        raise ValueError(f"no schema: {error}") from None


def encode(contribution: Contribution) -> bytes | memoryview:
    """The contribution as a serialised ParticipantMessage with a Result.

    Raises protos.messages.ScalarError or protos.tensors.TensorError for what can't be sent, and ValueError
    for more than 2 GiB. Large arrays are copied by NumPy, which lets other threads run meanwhile.
    """
    return encode_result(
        tensors=contribution.tensors, metrics=contribution.metrics, weight=contribution.weight
    )


def decode(data: bytes | memoryview) -> Contribution:
    """The contribution in a serialised ParticipantMessage; an empty one if that holds no Result.

    The arrays are read-only and may share the memory of ``data``. A Result's status and payload are ignored.
    Raises protos.envelope.MalformedMessageError, protos.messages.ScalarError or protos.tensors.TensorError,
    all of them ValueErrors.
    """
    read, tensors = read_result(data)
    metrics = read.metrics
    return Contribution(tensors, from_scalars(metrics) if metrics else {}, read.weight)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """``dtype.name``, which NumPy works out anew each time."""
    name = _NAMES.get(dtype)
    if name is None:
        name = _NAMES[dtype] = dtype.name
    return name
