"""What reducers take in, keep and give: named tensors, metrics and a weight.

Decides how a contribution travels (as a stream Result, so that a partial is an ordinary payload). Which have
the same tensors is schema.py's to say; what is made of contributions is the reducers' business (reducers.py,
elementwise.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from protos.messages import Plain, from_scalars
from protos.sliced import encode_result, read_result

__all__ = ["Contribution", "RefusedError", "decode", "encode"]


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What one participant contributes; also the partial state of a reducer; also the final answer."""

    tensors: Mapping[str, npt.NDArray[Any]]
    metrics: Mapping[str, Plain]
    weight: float


class RefusedError(ValueError):
    """A contribution that doesn't fit. The text says why; it becomes that participant's failure."""


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
