"""An instruction as a handler sees it, and what a handler may return for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from protos import messages, stream_pb2
from protos.messages import Plain, Tensors
from protos.sliced import ReceivedMessage, encode_result


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """What the caller wants done.

    ``config`` holds plain values by name. ``tensors`` holds arrays by name; they are **read-only** and share
    the message's memory, which lives as long as any of them (``array.copy()`` to change or to keep one).
    bfloat16 comes as float32. ``payload`` is a copy: what is very large had better come as a tensor.

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
    def from_message(cls, received: ReceivedMessage, cancelled: threading.Event) -> Instruction:
        """Takes its bulk from the message. Raises TensorError or ScalarError for what can't be decoded."""
        message = received.message.instruction
        tensors, payload = received.take_bulk()
        return cls(
            name=message.name,
            config=messages.from_scalars(message.config),
            tensors=tensors,
            payload=payload,
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

    def encode(self) -> bytes | memoryview:
        """The serialised message. Raises TensorError or ScalarError for what can't be sent."""
        return encode_result(
            tensors=self.tensors,
            metrics=self.metrics,
            weight=self.weight,
            payload=self.payload,
            status=self.status,
        )


Returned: TypeAlias = Result | Mapping[str, Any] | stream_pb2.ParticipantMessage | None
"""What a handler may return: a Result, its tensors alone, a ready message, or nothing (an empty result)."""
