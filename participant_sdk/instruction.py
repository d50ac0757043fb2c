"""An instruction as a handler sees it, and what a handler may return for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from protos import messages, stream_pb2
from protos.messages import Plain, Tensors
from protos.tensors import to_arrays


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """What the caller wants done.

    ``config`` holds plain values by name. ``tensors`` holds arrays by name; they are **read-only** and share
    the message's memory (``array.copy()`` to change one). bfloat16 comes as float32.

    ``cancelled`` is set when the answer is wanted no more: the caller gave up, the stream is lost, or this
    participant is being stopped. A handler that works for long should look at ``cancelled.is_set()`` now and
    then, and return what it has, or raise.
    """

    name: str
    config: Mapping[str, Plain] = field(default_factory=dict)
    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    payload: bytes = b""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def from_message(cls, message: stream_pb2.Instruction, cancelled: threading.Event) -> Instruction:
        """Raises TensorError or ScalarError for what can't be decoded."""
        return cls(
            name=message.name,
            config=messages.from_scalars(message.config),
            tensors=to_arrays(message.tensors),
            payload=message.payload,
            cancelled=cancelled,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a handler found.

    ``tensors``: arrays by name, or ready Tensors (``protos.tensors.to_tensor`` for another dtype).
    ``metrics``: bool, int, float, str or bytes by name. ``weight``: this result's weight in a weighted mean,
    most often the number of examples behind it. ``payload``: bytes of the caller's own format. ``status``: a
    word for people, empty when all went well.
    """

    tensors: Tensors | None = None
    metrics: Mapping[str, Any] | None = None
    weight: float = 0.0
    payload: bytes = b""
    status: str = ""

    def to_message(self) -> stream_pb2.ParticipantMessage:
        """Raises TensorError or ScalarError for what can't be sent."""
        return messages.result(
            tensors=self.tensors,
            metrics=self.metrics,
            weight=self.weight,
            payload=self.payload,
            status=self.status,
        )


Returned: TypeAlias = Result | Mapping[str, Any] | stream_pb2.ParticipantMessage | None
"""What a handler may return: a Result, its tensors alone, a ready message, or nothing (an empty result)."""
