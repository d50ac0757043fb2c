"""What a participant does next: single steps, and the invariants over any sequence of events."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from participant_sdk import AddressError, ConnectionClosed, ConnectionLost, ProtocolError, Rejected
from participant_sdk.errors import ParticipantError
from participant_sdk.lifecycle import (
    LASTED,
    STARTING,
    Abort,
    Answered,
    Connect,
    Due,
    Effect,
    Ended,
    Event,
    Finish,
    Leave,
    Lifecycle,
    Perform,
    Received,
    Send,
    State,
    Stop,
    Wait,
)
from participant_sdk.status import error_of
from protos import stream_pb2
from protos.messages import instruction
from protos.sliced import ReceivedMessage

HOME = "home:1"
TRAIN = Received(ReceivedMessage(instruction("train")))
CANCEL = Received(ReceivedMessage(stream_pb2.ServerMessage(cancel=stream_pb2.Cancel())))
LOST = Ended(ConnectionLost("lost the coordinator at home:1 (gone)", code=grpc.StatusCode.UNAVAILABLE))
NOBODY = Ended(
    error_of(
        grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; Connection refused (111)", HOME
    )
)
LOST_THRICE: list[Event] = [Due(), LOST] * 3
CLOSED = Ended(ConnectionClosed("closed"))
REJECTED = Ended(Rejected("refused", code=grpc.StatusCode.ALREADY_EXISTS))


def reconnect(delay: float = 0.0, address: str = "") -> Received:
    message = stream_pb2.Reconnect(delay_seconds=delay, address=address)
    return Received(ReceivedMessage(stream_pb2.ServerMessage(reconnect=message)))


def after(*events: Event, attempts: int | None = None) -> Lifecycle:
    """A lifecycle that has seen these events."""
    lifecycle = Lifecycle(HOME, random=lambda: 0.5, attempts=attempts)
    for event in events:
        lifecycle.handle(event, 0.0)
    return lifecycle


def test_it_connects_when_it_is_due() -> None:
    assert after().handle(Due(), 0.0) == [Connect(HOME)]


def test_an_instruction_is_performed_and_answered() -> None:
    lifecycle = after(Due())
    assert lifecycle.handle(TRAIN, 0.0) == [Perform(TRAIN.received)]
    assert lifecycle.handle(Answered(b"42"), 0.0) == [Send(b"42")]
    assert lifecycle.state is State.IDLE


def test_an_empty_message_is_an_instruction_too() -> None:
    empty = ReceivedMessage(stream_pb2.ServerMessage())
    assert after(Due()).handle(Received(empty), 0.0) == [Perform(empty)]


def test_a_cancel_reaches_the_handler_and_its_answer_is_still_sent() -> None:
    lifecycle = after(Due(), TRAIN)
    assert lifecycle.handle(CANCEL, 0.0) == [Abort()]
    assert lifecycle.handle(Answered(b"42"), 0.0) == [Send(b"42")]


def test_a_cancel_that_crossed_the_answer_means_nothing() -> None:
    assert after(Due(), TRAIN, Answered(b"")).handle(CANCEL, 0.0) == []


def test_a_lost_stream_is_tried_again_with_growing_waits() -> None:
    lifecycle = after()
    waits = []
    for _ in range(7):
        lifecycle.handle(Due(), 0.0)
        (wait,) = lifecycle.handle(LOST, 0.0)
        assert isinstance(wait, Wait)
        assert wait.unexpected
        waits.append(wait)
    assert [wait.seconds for wait in waits] == [0.5, 1, 2, 4, 8, 15, 15]
    assert waits[-1].why == "lost the coordinator at home:1 (gone); trying again in 15.0 s (attempt 7)"


def test_a_stream_that_brought_something_makes_the_waits_short_again() -> None:
    lifecycle = after(*LOST_THRICE, Due(), TRAIN, Answered(b""))
    assert [effect.seconds for effect in lifecycle.handle(LOST, 0.0) if isinstance(effect, Wait)] == [0.5]


def test_a_stream_that_lasted_makes_the_waits_short_again() -> None:
    lifecycle = after(*LOST_THRICE, Due())
    assert [effect.seconds for effect in lifecycle.handle(LOST, LASTED) if isinstance(effect, Wait)] == [0.5]


def unexpected(lifecycle: Lifecycle, event: Event, now: float) -> bool:
    (wait,) = lifecycle.handle(event, now)
    assert isinstance(wait, Wait)
    return wait.unexpected


def test_that_nobody_is_there_is_a_surprise_only_once_it_lasts() -> None:
    lifecycle = Lifecycle(HOME, random=lambda: 0.5)
    for now, surprise in [(100.0, False), (99.9 + STARTING, False), (100.0 + STARTING, True)]:
        lifecycle.handle(Due(), now)
        assert unexpected(lifecycle, NOBODY, now) is surprise


@pytest.mark.parametrize("end", [LOST, CLOSED, Ended(ProtocolError("out of turn"))])
def test_any_other_end_is_a_surprise_from_the_start(end: Ended) -> None:
    assert unexpected(after(Due()), end, 0.0)


def test_that_a_coordinator_vanishes_that_was_there_is_a_surprise_from_the_start() -> None:
    lifecycle = after(Due(), TRAIN, Answered(b""), LOST, Due())
    assert unexpected(lifecycle, NOBODY, 0.0)


def test_a_handler_that_outlives_its_stream_is_waited_for() -> None:
    lifecycle = after(Due(), TRAIN)
    assert lifecycle.handle(LOST, 0.0) == [Abort()]
    (wait,) = lifecycle.handle(Answered(b"late"), 0.0)
    assert isinstance(wait, Wait)


def test_a_refusal_is_final() -> None:
    assert after(Due()).handle(REJECTED, 0.0) == [Finish(REJECTED.error)]
    lifecycle = after(Due(), TRAIN)
    assert lifecycle.handle(REJECTED, 0.0) == [Abort()]
    assert lifecycle.handle(Answered(b""), 0.0) == [Finish(REJECTED.error)]


def test_it_gives_up_after_as_many_attempts_as_asked() -> None:
    lifecycle = after(Due(), LOST, Due(), LOST, Due(), attempts=2)
    assert lifecycle.handle(LOST, 0.0) == [Finish(LOST.error)]


def test_told_to_reconnect_it_leaves_and_waits_exactly_as_long() -> None:
    lifecycle = after(Due())
    leave, wait = lifecycle.handle(reconnect(7.5), 0.0)
    assert isinstance(leave, Leave)
    assert isinstance(wait, Wait)
    assert (wait.seconds, wait.unexpected) == (7.5, False)
    assert lifecycle.handle(Due(), 0.0) == [Connect(HOME)]


@pytest.mark.parametrize("delay", [0.0, -1.0, float("nan"), float("inf")])
def test_without_a_delay_it_waits_a_random_time(delay: float) -> None:
    _, wait = after(Due()).handle(reconnect(delay), 0.0)
    assert isinstance(wait, Wait)
    assert wait.seconds == 0.5


def test_it_goes_where_it_is_sent_and_comes_home_if_that_fails() -> None:
    lifecycle = after(Due(), reconnect(1.0, "other:2"))
    assert lifecycle.handle(Due(), 0.0) == [Connect("other:2")]
    lifecycle.handle(reconnect(1.0), 0.0)
    assert lifecycle.handle(Due(), 0.0) == [Connect("other:2")]
    lifecycle.handle(LOST, 0.0)
    assert lifecycle.handle(Due(), 0.0) == [Connect(HOME)]


def test_an_address_that_is_none_is_not_followed() -> None:
    lifecycle = after(Due(), reconnect(1.0, "http://nowhere"))
    assert lifecycle.handle(Due(), 0.0) == [Connect(HOME)]


def test_told_to_reconnect_while_busy_it_answers_first() -> None:
    lifecycle = after(Due(), TRAIN)
    assert lifecycle.handle(reconnect(7.5), 0.0) == []
    send, leave, wait = lifecycle.handle(Answered(b"42"), 0.0)
    assert send == Send(b"42")
    assert isinstance(leave, Leave)
    assert isinstance(wait, Wait)
    assert wait.seconds == 7.5


def test_a_second_instruction_in_flight_is_the_coordinators_breach() -> None:
    lifecycle = after(Due(), TRAIN)
    leave, abort = lifecycle.handle(TRAIN, 0.0)
    assert isinstance(leave, Leave)
    assert abort == Abort()
    (wait,) = lifecycle.handle(Answered(b""), 0.0)
    assert isinstance(wait, Wait)


def test_a_stop_leaves_at_once_but_waits_for_the_handler() -> None:
    assert after().handle(Stop(), 0.0) == [Finish(None)]
    assert after(Due()).handle(Stop(), 0.0) == [Leave("stopped"), Finish(None)]
    lifecycle = after(Due(), TRAIN)
    assert lifecycle.handle(Stop(), 0.0) == [Leave("stopped"), Abort()]
    assert lifecycle.handle(Stop(), 0.0) == []
    assert lifecycle.handle(Answered(b"42"), 0.0) == [Finish(None)]
    assert after(Due(), LOST).handle(Stop(), 0.0) == [Finish(None)]


def test_a_bad_address_is_refused_at_once() -> None:
    with pytest.raises(AddressError):
        Lifecycle("nowhere", random=lambda: 0.5)


def test_an_event_that_can_not_happen_is_a_bug_and_says_so() -> None:
    with pytest.raises(RuntimeError, match="Answered can't happen to a participant that is IDLE"):
        after(Due()).handle(Answered(b""), 0.0)


class AnySequence(RuleBasedStateMachine):
    """Plays the shell and the coordinator at random, and checks every effect against what it sees itself."""

    def __init__(self) -> None:
        super().__init__()
        self.random = 0.0
        self.lifecycle = Lifecycle(HOME, random=lambda: self.random, attempts=3)
        self.now = 0.0
        self.connected = self.working = self.done = self.stopped = False
        self.due = True
        self.unanswered = 0  # instructions on this stream
        self.error: ParticipantError | None = None

    def feed(self, event: Event) -> None:
        for effect in self.lifecycle.handle(event, self.now):
            self.apply(effect)

    def apply(self, effect: Effect) -> None:
        assert not self.done
        match effect:
            case Connect():
                assert not any([self.connected, self.working, self.due, self.stopped])
                self.connected, self.unanswered = True, 0
            case Perform():
                assert self.connected
                assert not self.working
                self.working = True
            case Abort():
                assert self.working
            case Send():
                assert self.connected
                assert self.unanswered == 1
                self.unanswered = 0
            case Leave():
                assert self.connected
                self.connected = False
            case Wait(seconds):
                assert not any([self.connected, self.working, self.due, self.stopped])
                assert seconds >= 0
                self.due = True
            case Finish(error):
                assert not any([self.connected, self.working])
                self.done, self.due, self.error = True, False, error

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(random=st.floats(0, 1, exclude_max=True))
    def chance_changes(self, random: float) -> None:
        self.random = random

    @precondition(lambda self: self.due)
    @rule()
    def wait_is_over(self) -> None:
        self.due = False
        self.feed(Due())

    @precondition(lambda self: self.connected)
    @rule(message=st.sampled_from([TRAIN, Received(ReceivedMessage(stream_pb2.ServerMessage()))]))
    def instruction_comes(self, message: Received) -> None:
        self.unanswered += 1
        self.feed(message)

    @precondition(lambda self: self.connected)
    @rule()
    def cancel_comes(self) -> None:
        self.feed(CANCEL)

    @precondition(lambda self: self.connected)
    @rule(delay=st.floats(), address=st.sampled_from(["", "other:2", "nonsense"]))
    def reconnect_comes(self, delay: float, address: str) -> None:
        self.feed(reconnect(delay, address))

    @precondition(lambda self: self.connected)
    @rule(event=st.sampled_from([LOST, CLOSED, REJECTED, Ended(ProtocolError("out of turn"))]))
    def stream_ends(self, event: Ended) -> None:
        self.connected = False
        self.feed(event)

    @precondition(lambda self: self.working)
    @rule()
    def handler_returns(self) -> None:
        self.working = False
        self.feed(Answered(b""))

    @precondition(lambda self: not self.connected)
    @rule(event=st.sampled_from([TRAIN, CANCEL, LOST, reconnect(1.0)]))
    def something_was_still_on_its_way(self, event: Event) -> None:
        self.feed(event)

    @rule()
    def user_stops_it(self) -> None:
        self.stopped = True
        self.feed(Stop())

    @invariant()
    def it_never_hangs(self) -> None:
        assert self.done or self.connected or self.working or self.due

    @invariant()
    def it_ends_only_by_a_stop_or_with_an_error(self) -> None:
        if self.done:
            assert self.lifecycle.state is State.DONE
            assert self.stopped or self.error is not None


TestAnySequence = AnySequence.TestCase
