"""An outcome names each participant exactly once, under what became of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.calls import Answer, OutcomeKind
from manager.outcome import Outcome, build
from protos import control_pb2, stream_pb2
from protos.messages import failure, result

FAILURE = failure(stream_pb2.Failure.CANCELLED, "no")


def answer_of(kind: OutcomeKind) -> Answer:
    messages = {OutcomeKind.RESULT: result(payload=b"42"), OutcomeKind.FAILURE: FAILURE}
    return kind, messages[kind].SerializeToString() if kind in messages else b""


@given(st.lists(st.sampled_from(OutcomeKind), max_size=30))
def test_each_participant_is_named_once(kinds: list[OutcomeKind]) -> None:
    outcome = build(range(len(kinds)), [answer_of(kind) for kind in kinds])
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
    outcome = build(["a", "b"], [answer_of(OutcomeKind.RESULT), answer_of(OutcomeKind.FAILURE)])
    assert outcome.results == {"a": result(payload=b"42")}
    assert outcome.failures == {"b": FAILURE.failure}


def test_an_empty_answer_is_a_result() -> None:
    assert build(["a"], [(OutcomeKind.RESULT, b"")]).results == {"a": stream_pb2.ParticipantMessage()}


def test_a_view_is_as_good_as_bytes() -> None:
    message = result(payload=b"x" * 100_000)
    answer = memoryview(message.SerializeToString())
    assert build(["a"], [(OutcomeKind.RESULT, answer)]).results == {"a": message}


@pytest.mark.parametrize("kind", [OutcomeKind.RESULT, OutcomeKind.FAILURE])
@pytest.mark.parametrize("answer", [b"\xff", b"\x12\x05ab", memoryview(b"\x1a\x09")])
def test_bytes_that_are_no_message_are_a_failure_in_the_participants_name(
    kind: OutcomeKind, answer: bytes | memoryview
) -> None:
    outcome = build(["a"], [(kind, answer)])
    assert outcome.results == {}
    assert "is not a valid ParticipantMessage" in outcome.failures["a"].text


def test_answers_and_participants_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        build(["a", "b"], [answer_of(OutcomeKind.LOST)])


def test_it_says_how_it_went_in_a_line() -> None:
    outcome = build(range(len(OutcomeKind)), [answer_of(kind) for kind in OutcomeKind])
    assert str(outcome) == "1 results, 1 failures, 1 lost, 1 timed out, 1 cancelled"


def test_two_outcomes_share_nothing() -> None:
    first: Outcome[str] = Outcome()
    first.lost.append("a")
    assert Outcome[str]().lost == []


def test_the_kinds_are_those_of_the_control_api() -> None:
    assert {kind.name: int(kind) for kind in OutcomeKind} == dict(control_pb2.Outcome.items())
