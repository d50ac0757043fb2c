"""Which tensors results have: names, shapes and dtypes, without the numbers in them.

Decides what makes the tensors of two results the same, how to say that they aren't, and how this travels as
text. It needs no NumPy: the coordinator compares schemas, and never sees an array.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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


def dtype_name(dtype: np.dtype[Any]) -> str:
    """``dtype.name``, which NumPy works out anew each time."""
    name = _NAMES.get(dtype)
    if name is None:
        name = _NAMES[dtype] = dtype.name
    return name
