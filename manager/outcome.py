"""What became of a call to a cohort: every participant, named exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError

from manager.calls import Answer, OutcomeKind, Payload
from protos import stream_pb2

P = TypeVar("P")


@dataclass(frozen=True)
class Outcome(Generic[P]):
    """How a call ended, by participant proxy. Each participant of the call is in exactly one of these.

    Attributes:
        results: what those who answered sent back.
        failures: what those who failed said of it (stream_pb2.Failure: code, text).
        lost: their stream or their worker ended first.
        timed_out: they had not answered by the deadline.
        cancelled: the quorum was reached, or the call given up, before they answered.
    """

    results: dict[P, stream_pb2.ParticipantMessage] = field(default_factory=dict)
    failures: dict[P, stream_pb2.Failure] = field(default_factory=dict)
    lost: list[P] = field(default_factory=list)
    timed_out: list[P] = field(default_factory=list)
    cancelled: list[P] = field(default_factory=list)

    @property
    def stragglers(self) -> list[P]:
        """Those who may still be working on it: timed out and cancelled."""
        return [*self.timed_out, *self.cancelled]

    def __len__(self) -> int:
        """How many participants were asked."""
        return (
            len(self.results)
            + len(self.failures)
            + len(self.lost)
            + len(self.timed_out)
            + len(self.cancelled)
        )

    def __str__(self) -> str:
        return (
            f"{len(self.results)} results, {len(self.failures)} failures, {len(self.lost)} lost, "
            f"{len(self.timed_out)} timed out, {len(self.cancelled)} cancelled"
        )


def build(proxies: Sequence[P], answers: Sequence[Answer]) -> Outcome[P]:
    """The outcome of a call whose answers are parallel to ``proxies``."""
    outcome: Outcome[P] = Outcome()
    for proxy, (kind, answer) in zip(proxies, answers, strict=True):
        if kind is OutcomeKind.RESULT:
            message, failure = decode_result(answer)
            if failure is None:
                outcome.results[proxy] = message
            else:
                outcome.failures[proxy] = failure
        elif kind is OutcomeKind.FAILURE:
            outcome.failures[proxy] = decode_failure(answer)
        elif kind is OutcomeKind.LOST:
            outcome.lost.append(proxy)
        elif kind is OutcomeKind.TIMED_OUT:
            outcome.timed_out.append(proxy)
        else:
            outcome.cancelled.append(proxy)
    return outcome


def decode_result(answer: Payload) -> tuple[stream_pb2.ParticipantMessage, stream_pb2.Failure | None]:
    """The participant's message, and why it can't be read if it can't."""
    try:
        return _parse(answer), None  # type: ignore[arg-type] # it takes any buffer
    except DecodeError:
        return stream_pb2.ParticipantMessage(), _undecodable(answer)


def decode_failure(answer: Payload) -> stream_pb2.Failure:
    """What the participant says of its failure."""
    try:
        return _parse(answer).failure  # type: ignore[arg-type]
    except DecodeError:
        return _undecodable(answer)


_parse = stream_pb2.ParticipantMessage.FromString


def _undecodable(answer: Payload) -> stream_pb2.Failure:
    return stream_pb2.Failure(text=f"its answer of {len(answer)} bytes is not a valid ParticipantMessage")
