"""Every message in every state of a stream: it has its turn, or it is a breach with a sentence."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.serving.session import Action, BreachError, Session, State
from protos.envelope import Kind

LEGAL = {
    (State.NEW, Kind.EMPTY): (State.IDLE, Action.JOIN),
    (State.NEW, Kind.HELLO): (State.IDLE, Action.JOIN),
    (State.NEW, Kind.LEAVE): (State.ENDED, Action.LEAVE),
    (State.IDLE, Kind.LEAVE): (State.ENDED, Action.LEAVE),
    (State.BUSY, Kind.EMPTY): (State.IDLE, Action.ANSWER),
    (State.BUSY, Kind.RESULT): (State.IDLE, Action.ANSWER),
    (State.BUSY, Kind.FAILURE): (State.IDLE, Action.ANSWER),
    (State.BUSY, Kind.LEAVE): (State.ENDED, Action.LEAVE),
    (State.ENDED, Kind.LEAVE): (State.ENDED, Action.LEAVE),
}
PAIRS = list(itertools.product(State, Kind))


def make_session(state: State) -> Session:
    session = Session()
    if state is not State.NEW:
        session.received(Kind.EMPTY)
    if state is State.BUSY:
        assert session.instructed()
    if state is State.ENDED:
        session.ended()
    assert session.state is state
    return session


@pytest.mark.parametrize(("state", "kind"), PAIRS, ids=lambda value: value.name)
def test_each_message_has_its_turn_or_is_a_breach(state: State, kind: Kind) -> None:
    session = make_session(state)
    if (state, kind) in LEGAL:
        then, action = LEGAL[state, kind]
        assert session.received(kind) is action
        assert session.state is then
    else:
        with pytest.raises(BreachError) as caught:
            session.received(kind)
        assert session.state is state
        unexpected, _, expected = str(caught.value).partition(": ")
        assert unexpected == f"unexpected {kind.name.lower()} message"
        assert len(expected.split()) > 4  # a sentence that says what was expected


@pytest.mark.parametrize("state", State)
def test_only_an_idle_participant_is_instructed(state: State) -> None:
    session = make_session(state)
    assert session.instructed() == (state is State.IDLE)
    assert session.state is (State.BUSY if state is State.IDLE else state)


@pytest.mark.parametrize("state", State)
def test_after_the_end_nothing_may_be_sent_or_received(state: State) -> None:
    session = make_session(state)
    session.ended()
    assert session.state is State.ENDED
    assert not session.instructed()
    with pytest.raises(BreachError):
        session.received(Kind.RESULT)


@given(st.lists(st.sampled_from(["instruct", "end", *Kind]), max_size=40))
def test_answers_never_outnumber_instructions(events: list[str | Kind]) -> None:
    session = Session()
    instructions = answers = joins = 0
    for event in events:
        if isinstance(event, Kind):
            try:
                action = session.received(event)
            except BreachError:
                break
            joins += action is Action.JOIN
            answers += action is Action.ANSWER
        elif event == "instruct":
            instructions += session.instructed()
        else:
            session.ended()
        assert joins <= 1
        assert instructions - answers in (0, 1)
        assert (session.state is State.BUSY) <= (instructions == answers + 1)
