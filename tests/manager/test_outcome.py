"""An outcome names each participant exactly once, under what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from manager.api.outcome import Outcome, Results, build, reduced
from manager.core.call import Answer, Call, OutcomeKind
from manager.core.calls import CallTable
from manager.errors import ReductionError
from manager.payloads.blobs import CAN_SHARE, SHARE_SIZE, Blob, Payload
from manager.reducing.reducers import BUILT_IN, Contribution, Reducer, encode, make_reducer
from manager.serving.incoming import checked
from protos import control_pb2, stream_pb2
from protos.envelope import Kind
from protos.frames import OWN_FRAME
from protos.messages import failure, result
from tests.manager.support import make_member

FAILURE = failure(stream_pb2.Failure.CANCELLED, "no")


def answer_of(kind: OutcomeKind) -> Answer:
    messages = {OutcomeKind.RESULT: result(payload=b"42"), OutcomeKind.FAILURE: FAILURE}
    return kind, messages[kind].SerializeToString() if kind in messages else b""


def ended(answers: Sequence[Answer], states: Sequence[Payload] = ()) -> Call:
    """A call that has finished so."""
    members = [make_member(key) for key, _ in enumerate(answers, 1)]
    call = Call(1, members, [b"go"], None, None, stream=False, reduction=None)
    call.outcomes = list(answers)
    call.pending = 0
    call.results = sum(kind is OutcomeKind.RESULT for kind, _ in answers)
    call.states = states
    return call


@given(st.lists(st.sampled_from(OutcomeKind), max_size=30))
def test_each_participant_is_named_once(kinds: list[OutcomeKind]) -> None:
    outcome = build(range(len(kinds)), ended([answer_of(kind) for kind in kinds]))
    named = [
        *((proxy, OutcomeKind.RESULT) for proxy in outcome.results),
        *((proxy, OutcomeKind.FAILURE) for proxy in outcome.failures),
        *((proxy, OutcomeKind.LOST) for proxy in outcome.lost),
        *((proxy, OutcomeKind.TIMED_OUT) for proxy in outcome.timed_out),
        *((proxy, OutcomeKind.CANCELLED) for proxy in outcome.cancelled),
    ]
    assert sorted(named) == list(enumerate(kinds))
    assert len(outcome) == len(kinds)
    assert outcome.stragglers == [*outcome.timed_out, *outcome.cancelled]


def test_results_and_failures_come_with_what_was_said() -> None:
    outcome = build(["a", "b"], ended([answer_of(OutcomeKind.RESULT), answer_of(OutcomeKind.FAILURE)]))
    assert outcome.results == {"a": result(payload=b"42")}
    assert outcome.failures == {"b": FAILURE.failure}


@pytest.mark.parametrize("somebody_failed", [False, True])
def test_a_result_is_decoded_when_it_is_first_looked_at_and_then_kept(somebody_failed: bool) -> None:
    answers = [answer_of(OutcomeKind.RESULT), (OutcomeKind.RESULT, b"\xff")]
    proxies = ["a", "b"]
    if somebody_failed:
        answers.insert(1, answer_of(OutcomeKind.FAILURE))
        proxies.insert(1, "f")
    outcome = build(proxies, ended(answers))
    assert len(outcome.results) == 2
    assert list(outcome.results) == ["a", "b"]
    assert "b" in outcome.results
    assert "c" not in outcome.results
    assert repr(outcome.results) == "<results of 2 participants>"
    assert outcome.results["a"] is outcome.results["a"]
    assert outcome.results.get("c") is None
    with pytest.raises(KeyError):
        outcome.results["c"]
    with pytest.raises(DecodeError):
        outcome.results["b"]  # which managers see to: see below


class Unread(Sequence[Answer]):
    """Answers that nobody may look at yet."""

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Answer]: ...
    def __getitem__(self, index: int | slice) -> Answer | Sequence[Answer]:
        raise AssertionError("they are read already")

    def __iter__(self) -> Iterator[Answer]:
        raise AssertionError("they are read already")

    def __len__(self) -> int:
        return 2


def test_whoever_only_counts_results_does_not_wait_for_them_to_be_gathered() -> None:
    results = Results(["a", "b"], Unread())
    assert len(results) == 2
    assert list(results) == ["a", "b"]
    assert repr(results) == "<results of 2 participants>"
    with pytest.raises(AssertionError, match="read already"):
        results["a"]


def test_an_empty_answer_is_a_result() -> None:
    outcome = build(["a"], ended([(OutcomeKind.RESULT, b"")]))
    assert outcome.results == {"a": stream_pb2.ParticipantMessage()}


def test_a_view_is_as_good_as_bytes() -> None:
    message = result(payload=b"x" * 100_000)
    answer = memoryview(message.SerializeToString())
    assert build(["a"], ended([(OutcomeKind.RESULT, answer)])).results == {"a": message}


@pytest.mark.skipif(not CAN_SHARE, reason="needs memory that can be shared")
@pytest.mark.parametrize("settled", [False, True])
def test_shared_memory_is_as_good_as_bytes_with_a_descriptor_and_without(settled: bool) -> None:
    message = result(payload=b"x" * SHARE_SIZE)
    blob = Blob.of(message.SerializeToString())
    if settled:  # as backends do with what stays: descriptors are few
        blob.settle()
    outcome = build(["a"], ended([(OutcomeKind.RESULT, blob)]))
    assert outcome.results == {"a": message}


# What a manager makes of answers, so that what reaches a caller can always be read


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.FAILURE])
@pytest.mark.parametrize(
    "answer",
    [
        b"\xff",
        b"\x12\x05ab",
        memoryview(b"\x1a\x09"),
        b"\x12\x03\xff\xff\xff",
        memoryview(b"\x1a\x03\xff\xff\xff"),
    ],
)
def test_bytes_that_are_no_message_are_a_failure_in_the_participants_name(
    kind: Kind, answer: bytes | memoryview
) -> None:
    table, member = CallTable(), make_member(1)
    call = table.start([member], [b"go"])
    table.answered([(member, member.tag, checked(answer, kind))])
    outcome = build(["a"], call)
    assert outcome.results == {}
    assert "is not a valid ParticipantMessage" in outcome.failures["a"].text


def failure_of(size: int) -> bytes:
    """A failure whose message has so many bytes."""
    frame = len(failure(stream_pb2.Failure.UNSPECIFIED, "x" * (size // 2)).SerializeToString()) - size // 2
    message = failure(stream_pb2.Failure.UNSPECIFIED, "x" * (size - frame)).SerializeToString()
    assert len(message) == size
    return message


@pytest.mark.parametrize("size", [OWN_FRAME, 2 * OWN_FRAME])
@pytest.mark.parametrize(
    "hold",
    [
        bytes,
        memoryview,
        pytest.param(
            Blob.of, marks=pytest.mark.skipif(not CAN_SHARE, reason="needs memory that can be shared")
        ),
    ],
)
def test_a_failure_that_is_larger_than_any_text_is_another_one(
    size: int, hold: Callable[[bytes], Payload]
) -> None:
    told = checked(hold(failure_of(size)), Kind.FAILURE)
    assert isinstance(told, bytes), "the coordinator tells a failure by its first byte"
    assert len(told) < OWN_FRAME
    (text,) = build(["a"], ended([(OutcomeKind.FAILURE, told)])).failures.values()
    assert text.text.startswith(f"its answer of {size} bytes is not a valid ParticipantMessage: ")


@pytest.mark.skipif(not CAN_SHARE, reason="needs memory that can be shared")
def test_a_failure_in_memory_of_its_own_becomes_bytes() -> None:
    message = FAILURE.SerializeToString()
    told = checked(Blob.of(message), Kind.FAILURE)
    assert isinstance(told, bytes)
    assert told == message


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", Kind.EMPTY),
        (result(payload=b"42").SerializeToString(), Kind.RESULT),
        (memoryview(result(payload=b"42").SerializeToString()), Kind.RESULT),
        (FAILURE.SerializeToString(), Kind.FAILURE),
        (failure_of(OWN_FRAME - 1), Kind.FAILURE),
        (result(payload=bytes(OWN_FRAME)).SerializeToString(), Kind.RESULT),
    ],
)
def test_an_answer_that_can_be_read_stays_as_it_is(answer: bytes | memoryview, kind: Kind) -> None:
    assert checked(answer, kind) is answer


def test_answers_and_participants_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        build(["a", "b"], ended([answer_of(OutcomeKind.LOST)]))
    with pytest.raises(ValueError, match="shorter"):
        build(["a", "b"], ended([answer_of(OutcomeKind.RESULT)])).results["a"]


@given(st.lists(st.sampled_from(OutcomeKind), max_size=30))
def test_each_participant_of_a_reducing_call_is_named_once(kinds: list[OutcomeKind]) -> None:
    answers = [(kind, b"") if kind is OutcomeKind.RESULT else answer_of(kind) for kind in kinds]
    states = [encode(folded(np.float32(1), weight=2.5).state())] if OutcomeKind.RESULT in kinds else []
    ends = reduced(range(len(kinds)), ended(answers, states), make_reducer("weighted_mean", {}, BUILT_IN))
    named = [
        *((proxy, OutcomeKind.RESULT) for proxy in ends.folded),
        *((proxy, OutcomeKind.FAILURE) for proxy in ends.failures),
        *((proxy, OutcomeKind.LOST) for proxy in ends.lost),
        *((proxy, OutcomeKind.TIMED_OUT) for proxy in ends.timed_out),
        *((proxy, OutcomeKind.CANCELLED) for proxy in ends.cancelled),
    ]
    assert sorted(named) == list(enumerate(kinds))
    assert len(ends) == len(kinds)
    assert ends.weight == (2.5 if states else 0.0)


def folded(*values: np.float32, weight: float = 1.0) -> Reducer:
    """A reducer, as a worker has it, with these folded in."""
    reducer = make_reducer("weighted_mean", {}, BUILT_IN)
    for value in values:
        reducer.fold(Contribution({"w": np.array([value])}, {}, weight))
    return reducer


def test_the_states_of_all_workers_are_merged() -> None:
    states = [encode(folded(np.float32(1), np.float32(3)).state()), encode(folded(np.float32(5)).state())]
    answers = [(OutcomeKind.RESULT, b"")] * 3
    call = ended(answers, states)
    ends = reduced(["a", "b", "c"], call, make_reducer("weighted_mean", {}, BUILT_IN))
    assert ends.tensors["w"].tolist() == [3]
    assert ends.weight == 3
    assert str(ends) == "3 folded, 0 failures, 0 lost, 0 timed out, 0 cancelled"


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(result(payload=b"of another reducer").SerializeToString(), id="of another reducer"),
        pytest.param(b"\xff", id="no protobuf"),
        pytest.param(b"", id="nothing"),
        pytest.param(failure(stream_pb2.Failure.UNSPECIFIED, "no").SerializeToString(), id="a failure"),
        pytest.param(memoryview(b"\x12\x03\xff\xff\xff"), id="a result that is none"),
        pytest.param(
            Blob.of(b"\xff") if CAN_SHARE else b"\xff", id="no protobuf, in memory that can be shared"
        ),
    ],
)
@pytest.mark.parametrize("position", [0, 1])
def test_states_that_can_not_be_merged_or_read_are_an_error(state: Payload, position: int) -> None:
    states: list[Payload] = [encode(folded(np.float32(1)).state())]
    states.insert(position, state)
    call = ended([(OutcomeKind.RESULT, b"")] * 2, states)
    with pytest.raises(ReductionError, match="can't be put together"):
        reduced(["a", "b"], call, make_reducer("weighted_mean", {}, BUILT_IN))


def test_it_says_how_it_went_in_a_line() -> None:
    outcome = build(range(len(OutcomeKind)), ended([answer_of(kind) for kind in OutcomeKind]))
    assert str(outcome) == "1 results, 1 failures, 1 lost, 1 timed out, 1 cancelled"


def test_two_outcomes_share_nothing() -> None:
    first: Outcome[str] = Outcome()
    first.lost.append("a")
    assert Outcome[str]().lost == []


def test_the_kinds_are_those_of_the_control_api() -> None:
    assert {kind.name: int(kind) for kind in OutcomeKind} == dict(control_pb2.Outcome.items())
