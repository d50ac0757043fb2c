"""What became of a call to a cohort: every participant, named exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import numpy.typing as npt

from manager.core.backend import Running
from manager.core.call import Answer, OutcomeKind
from manager.errors import ReductionError
from manager.payloads.blobs import Payload, view_of
from manager.reducing.reducers import Contribution, Reducer, decode
from protos import stream_pb2
from protos.messages import Plain

P = TypeVar("P")


@dataclass(frozen=True)
class Progress:
    """How far a call is, as it is told to ``progress=``.

    Attributes:
        asked: how many participants were asked.
        answered: how many have sent a result.
        failed: how many will send none: failed, lost, timed out, cancelled.
        bytes: size of the results so far.
    """

    asked: int
    answered: int
    failed: int
    bytes: int

    @property
    def ended(self) -> int:
        """How many nobody waits for any more."""
        return self.answered + self.failed


@dataclass(frozen=True)
class Ends(Generic[P]):
    """How a call ended, by participant: those who gave no result by attribute, the others in ``answered``."""

    failures: dict[P, stream_pb2.Failure] = field(default_factory=dict)
    lost: list[P] = field(default_factory=list)
    timed_out: list[P] = field(default_factory=list)
    cancelled: list[P] = field(default_factory=list)

    @property
    def answered(self) -> Sequence[P]:
        """Those whose result counts."""
        return ()

    def __len__(self) -> int:
        """How many participants were asked."""
        return (
            len(self.answered)
            + len(self.failures)
            + len(self.lost)
            + len(self.timed_out)
            + len(self.cancelled)
        )

    @property
    def stragglers(self) -> list[P]:
        """Those who may still be working on it: timed out and cancelled."""
        return [*self.timed_out, *self.cancelled]

    def __str__(self) -> str:
        return (
            f"{len(self.failures)} failures, {len(self.lost)} lost, "
            f"{len(self.timed_out)} timed out, {len(self.cancelled)} cancelled"
        )

    def _note(self, proxy: P, answer: Answer) -> None:
        """Takes down an end without a result."""
        kind, payload = answer
        if kind is OutcomeKind.FAILURE:
            self.failures[proxy] = decode_failure(payload)
        elif kind is OutcomeKind.LOST:
            self.lost.append(proxy)
        elif kind is OutcomeKind.TIMED_OUT:
            self.timed_out.append(proxy)
        else:
            self.cancelled.append(proxy)


class Results(Mapping[P, stream_pb2.ParticipantMessage]):
    """What participants sent back, by proxy. Each message is decoded when it is first looked at."""

    def __init__(self, proxies: Sequence[P] = (), answers: Sequence[Answer] = ()) -> None:
        """``answers`` are parallel to ``proxies``."""
        self._proxies = proxies
        self._answers = answers
        self._messages: dict[P, Payload | stream_pb2.ParticipantMessage] | None = None

    def _by_proxy(self) -> dict[P, Payload | stream_pb2.ParticipantMessage]:
        if self._messages is None:  # not before anybody asks: who only counts them needn't wait
            self._messages = {
                proxy: answer[1] for proxy, answer in zip(self._proxies, self._answers, strict=True)
            }
            self._answers = ()
        return self._messages

    def __getitem__(self, proxy: P) -> stream_pb2.ParticipantMessage:
        messages = self._by_proxy()
        message = messages[proxy]
        if not isinstance(message, stream_pb2.ParticipantMessage):
            message = messages[proxy] = decode_result(message)
        return message

    def __iter__(self) -> Iterator[P]:
        return iter(self._proxies)

    def __len__(self) -> int:
        return len(self._proxies)

    def __contains__(self, proxy: object) -> bool:
        return proxy in self._by_proxy()

    def __repr__(self) -> str:
        return f"<results of {len(self)} participants>"


@dataclass(frozen=True)
class Outcome(Ends[P]):
    """How a call ended, by participant proxy. Each participant of the call is in exactly one of these.

    Attributes:
        results: what those who answered sent back.
        failures: what those who failed said of it (stream_pb2.Failure: code, text).
        lost: their stream or their worker ended first.
        timed_out: they had not answered by the deadline.
        cancelled: the quorum was reached, or the call given up, before they answered.
    """

    results: Results[P] = field(default_factory=Results)

    @property
    def answered(self) -> Sequence[P]:
        """Those whose result counts."""
        return self.results._proxies

    def __str__(self) -> str:
        return f"{len(self.results)} results, {super().__str__()}"


@dataclass(frozen=True)
class Reduced(Ends[P]):
    """What the results of a call were reduced to, and how it ended for whom.

    Each participant of the call is in exactly one of ``folded``, ``failures``, ``lost``, ``timed_out`` and
    ``cancelled``.

    Attributes:
        tensors: the reduced tensors by name; empty if nobody's result was folded in.
        metrics: the reduced metrics by name.
        weight: the sum of the weights of all results in it.
        folded: whose results are in it.
        failures: of those who failed, or whose result didn't fit: why (stream_pb2.Failure: code, text).
        lost: their stream or their worker ended first. Whoever a worker that died had folded in is here.
        timed_out: they had not answered by the deadline.
        cancelled: the quorum was reached, or the call given up, before they answered.
    """

    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    metrics: Mapping[str, Plain] = field(default_factory=dict)
    weight: float = 0.0
    folded: Sequence[P] = ()

    @property
    def answered(self) -> Sequence[P]:
        """Those whose result counts."""
        return self.folded

    def __str__(self) -> str:
        return f"{len(self.folded)} folded, {super().__str__()}"


def build(proxies: Sequence[P], call: Running) -> Outcome[P]:
    """The outcome of a call, finished, to these participants."""
    answers = cast(Sequence[Answer], call.outcomes)
    if not call.failed:
        return Outcome(results=Results(proxies, answers))
    both = [(proxy, answer) for proxy, answer in zip(proxies, answers, strict=True) if _is_result(answer)]
    outcome = Outcome(results=Results([proxy for proxy, _ in both], [answer for _, answer in both]))
    for proxy, answer in zip(proxies, answers, strict=True):
        if not _is_result(answer):
            outcome._note(proxy, answer)
    return outcome


def reduced(proxies: Sequence[P], call: Running, reducer: Reducer) -> Reduced[P]:
    """What a reducing call, finished, has come to: merges the workers' states into ``reducer``.

    Raises ReductionError if they can't be merged.
    """
    answer = Contribution({}, {}, 0.0)
    try:
        for state in call.states:
            reducer.merge(decode(view_of(state)))
        if call.states:
            answer = reducer.finish()
    except ValueError as error:  # RefusedError, or a state that can't be read
        raise ReductionError(f"what the workers have folded can't be put together: {error}") from error
    answers = cast(Sequence[Answer], call.outcomes)
    everybody = not call.failed
    ends = Reduced(
        tensors=answer.tensors,
        metrics=answer.metrics,
        weight=answer.weight,
        folded=proxies if everybody else [p for p, a in zip(proxies, answers, strict=True) if _is_result(a)],
    )
    if not everybody:
        for proxy, end in zip(proxies, answers, strict=True):
            if not _is_result(end):
                ends._note(proxy, end)
    return ends


def _is_result(answer: Answer) -> bool:
    return answer[0] is OutcomeKind.RESULT


def progress_of(call: Running) -> Progress:
    return Progress(len(call.outcomes), call.answered, call.failed, call.bytes)


def decode_result(answer: Payload) -> stream_pb2.ParticipantMessage:
    """The participant's message. Managers have made sure that it can be read."""
    return _parse(view_of(answer))  # type: ignore[arg-type] # it takes any buffer


def decode_failure(answer: Payload) -> stream_pb2.Failure:
    """What the participant says of its failure."""
    return _parse(view_of(answer)).failure  # type: ignore[arg-type]


_parse = stream_pb2.ParticipantMessage.FromString
