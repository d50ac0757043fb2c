"""The manager's end of a link: greeting, obeying, giving up. test_downlink.py puts both ends together."""

from __future__ import annotations

import pytest

from manager.link.uplink import (
    FIRST_GREETING_INTERVAL,
    GREETING_INTERVAL,
    LINK_VERSION,
    Drain,
    Effect,
    Exit,
    Greet,
    Obey,
    Opened,
    State,
    Uplink,
)
from protos import link_pb2

EPOCH = 5
BEAT = link_pb2.Heartbeat(refused={"protocol": 3})


def down(*, epoch: int = EPOCH, handshake: int = 1, **body: object) -> link_pb2.Downward:
    return link_pb2.Downward(epoch=epoch, handshake=handshake, **body)  # type: ignore[arg-type]


def make_welcome(*, handshake: int = 1, version: int = LINK_VERSION) -> link_pb2.Welcome:
    return link_pb2.Welcome(version=version, heartbeat_seconds=0.5, grace_seconds=10.0, handshake=handshake)


def receive(uplink: Uplink, message: link_pb2.Downward, now: float) -> list[Effect]:
    return uplink.received(message, now)


def sent(uplink: Uplink) -> list[link_pb2.Upward]:
    """Takes what the shell would send."""
    messages = [link_pb2.Upward.FromString(bytes(frames[0])) for frames in uplink.out]
    uplink.out.clear()
    return messages


def greeting(now: float = 0.0) -> Uplink:
    uplink = Uplink(grace=30.0, now=now)
    assert uplink.tick(BEAT, now) == [Greet()]
    uplink.hello(link_pb2.Hello(worker=2, incarnation=3))
    return uplink


def opened(now: float = 0.0) -> Uplink:
    uplink = greeting(now)
    assert receive(uplink, down(welcome=make_welcome()), now) == [Opened(make_welcome())]
    sent(uplink)
    return uplink


# Greeting


def watch(uplink: Uplink, start: float, end: float) -> list[Effect]:
    """Ticks as the shell does, every tenth of a second."""
    ticks = round((end - start) * 10)
    return [
        effect for n in range(ticks + 1) for effect in uplink.tick(BEAT, start + n * (end - start) / ticks)
    ]


def test_it_greets_at_once() -> None:
    uplink = greeting()
    (message,) = sent(uplink)
    assert message.hello == link_pb2.Hello(version=LINK_VERSION, worker=2, incarnation=3, handshake=1)
    assert message.sequence == 0


def test_it_repeats_its_hello_word_for_word_until_it_is_welcomed() -> None:
    uplink = greeting()
    first = uplink.out.pop()
    assert uplink.next_tick() == FIRST_GREETING_INTERVAL
    assert uplink.tick(BEAT, FIRST_GREETING_INTERVAL - 0.01) == []
    assert uplink.out == []
    assert uplink.tick(BEAT, FIRST_GREETING_INTERVAL) == []
    assert uplink.out == [first]
    uplink.out.clear()
    receive(uplink, down(welcome=make_welcome()), 1.5)
    uplink.tick(BEAT, 1.5)
    assert [message.WhichOneof("body") for message in sent(uplink)] == ["heartbeat"]


def test_a_welcome_opens_the_link_with_its_terms() -> None:
    uplink = greeting()
    assert receive(uplink, down(welcome=make_welcome()), 0.2) == [Opened(make_welcome())]
    assert uplink.state is State.OPEN
    assert uplink.epoch == EPOCH
    assert uplink.next_tick() == 0.2
    uplink.tick(BEAT, 0.2)
    assert uplink.next_tick() == 0.7
    assert watch(uplink, 0.2, 10.2) == []
    assert uplink.tick(BEAT, 10.3) == [Exit("no word from the coordinator for 10.1 s")]


def test_the_second_welcome_of_a_repeated_hello_changes_nothing() -> None:
    uplink = opened()
    uplink.report(link_pb2.Report(), [])
    assert receive(uplink, down(welcome=make_welcome()), 0.1) == []
    uplink.report(link_pb2.Report(), [])
    assert [message.sequence for message in sent(uplink)] == [1, 2]


def test_a_welcome_to_an_earlier_hello_does_not_count() -> None:
    uplink = opened()
    assert receive(uplink, down(identify=link_pb2.Identify()), 1.0) == [Greet()]
    uplink.hello(link_pb2.Hello())
    assert receive(uplink, down(welcome=make_welcome(handshake=1)), 1.1) == []
    assert uplink.state is State.GREETING
    second = make_welcome(handshake=2)
    assert receive(uplink, down(welcome=second), 1.2) == [Opened(second)]


def test_orders_before_the_welcome_are_not_obeyed() -> None:
    assert receive(greeting(), down(sequence=1, orders=link_pb2.Orders()), 0.1) == []


@pytest.mark.parametrize("version", [0, LINK_VERSION + 1])
def test_a_coordinator_of_another_version_is_left_with_a_sentence(version: int) -> None:
    uplink = greeting()
    assert receive(uplink, down(welcome=make_welcome(version=version)), 0.1) == [
        Exit(f"the coordinator speaks link version {version}, this manager {LINK_VERSION}")
    ]
    assert uplink.state is State.CLOSED


def test_a_refusal_says_why() -> None:
    uplink = greeting()
    assert receive(uplink, down(refusal=link_pb2.Refusal(reason="too late")), 0.1) == [
        Exit("the coordinator refused this manager: too late")
    ]


def test_unanswered_hellos_end_after_the_grace_period() -> None:
    uplink = greeting()
    assert watch(uplink, 0.0, 30.0) == []
    assert uplink.tick(BEAT, 30.1) == [Exit("no word from the coordinator for 30.1 s")]


def test_hellos_come_ever_less_often() -> None:
    uplink = greeting()
    waits = []
    for _ in range(8):
        before = uplink.next_tick()
        uplink.tick(BEAT, before)
        waits.append(round(uplink.next_tick() - before, 6))
    assert waits == [0.1, 0.2, 0.4, 0.8, GREETING_INTERVAL, GREETING_INTERVAL, GREETING_INTERVAL, 1.0]


def test_a_manager_that_was_stopped_itself_gives_the_coordinator_another_grace_period() -> None:
    uplink = opened()
    assert uplink.tick(BEAT, 500.0) == []
    assert uplink.state is State.OPEN


@pytest.mark.parametrize(
    ("heartbeat", "grace"), [(0.0, 10.0), (-1.0, 10.0), (float("nan"), 10.0), (0.5, 0.5), (0.5, float("nan"))]
)
def test_times_that_make_no_sense_end_it(heartbeat: float, grace: float) -> None:
    welcome = make_welcome()
    welcome.heartbeat_seconds, welcome.grace_seconds = heartbeat, grace
    (effect,) = receive(greeting(), down(welcome=welcome), 0.1)
    assert isinstance(effect, Exit)
    assert "make no sense" in effect.reason


# Open


def test_orders_are_obeyed_and_say_where_their_payloads_are() -> None:
    uplink = opened()
    orders = link_pb2.Orders(payloads=link_pb2.Payloads(sizes=[1]), end_sessions=[4])
    assert receive(uplink, down(sequence=1, orders=orders), 0.1) == [Obey(orders)]


def test_the_payloads_of_a_report_travel_behind_the_header() -> None:
    uplink = opened()
    uplink.report(link_pb2.Report(end_sessions=[4]), [b"ab", b"c"])
    (frames,) = uplink.out
    report = link_pb2.Upward.FromString(bytes(frames[0])).report
    assert report == link_pb2.Report(payloads=link_pb2.Payloads(sizes=[2, 1]), end_sessions=[4])
    assert frames[1:] == [b"abc"]


def test_orders_can_be_acknowledged_at_once() -> None:
    uplink = opened()
    receive(uplink, down(sequence=1, orders=link_pb2.Orders()), 0.1)
    assert sent(uplink) == []
    uplink.acknowledge()
    assert sent(uplink) == [link_pb2.Upward(acknowledged=1, handshake=1)]


def test_orders_are_obeyed_once() -> None:
    uplink = opened()
    message = down(sequence=1, orders=link_pb2.Orders())
    assert receive(uplink, message, 0.1)
    assert receive(uplink, message, 0.2) == []


def test_orders_behind_a_gap_are_not_obeyed() -> None:
    uplink = opened()
    assert receive(uplink, down(sequence=2, orders=link_pb2.Orders()), 0.1) == []
    (message,) = sent(uplink)
    assert message.resend.first == 1


def test_it_drains_when_told_to() -> None:
    message = down(sequence=1, drain=link_pb2.Drain(grace_seconds=2.5))
    assert receive(opened(), message, 0.1) == [Drain(2.5)]


def test_heartbeats_carry_what_the_shell_reports() -> None:
    uplink = opened()
    uplink.report(link_pb2.Report(), [])
    sent(uplink)
    uplink.tick(link_pb2.Heartbeat(refused={"protocol": 9}, rss_bytes=1), 0.0)
    (message,) = sent(uplink)
    assert message.heartbeat == link_pb2.Heartbeat(sent=1, refused={"protocol": 9}, rss_bytes=1)


def test_a_goodbye_is_numbered_like_a_report() -> None:
    uplink = opened()
    uplink.goodbye("drained")
    (message,) = sent(uplink)
    assert (message.sequence, message.goodbye.reason) == (1, "drained")


def test_no_goodbye_without_a_link() -> None:
    uplink = greeting()
    sent(uplink)
    uplink.goodbye("drained")
    assert sent(uplink) == []


# A coordinator that has lost track, or is another one


@pytest.mark.parametrize(
    "message",
    [
        down(epoch=EPOCH + 1, identify=link_pb2.Identify()),
        down(identify=link_pb2.Identify()),
        down(epoch=EPOCH + 1, heartbeat=link_pb2.Heartbeat()),
        down(epoch=EPOCH + 1, sequence=1, orders=link_pb2.Orders()),
        down(epoch=EPOCH + 1, welcome=make_welcome()),
    ],
    ids=lambda message: f"{message.WhichOneof('body')}, epoch {message.epoch}",
)
def test_a_stranger_is_greeted_and_not_obeyed(message: link_pb2.Downward) -> None:
    uplink = opened()
    assert receive(uplink, message, 1.0) == [Greet()]
    assert uplink.state is State.GREETING
    uplink.hello(link_pb2.Hello())
    (hello,) = sent(uplink)
    assert hello.hello.handshake == 2


def test_a_hundred_identifies_are_answered_by_one_hello() -> None:
    # Each message that a new coordinator can't place is answered with Identify. A Hello lists every session.
    uplink = opened()
    identify = down(epoch=EPOCH + 1, identify=link_pb2.Identify())
    greetings = [effect for _ in range(100) for effect in receive(uplink, identify, 1.0)]
    assert greetings == [Greet()]


def test_numbers_start_anew_with_a_handshake() -> None:
    uplink = opened()
    uplink.report(link_pb2.Report(), [])
    receive(uplink, down(identify=link_pb2.Identify()), 1.0)
    uplink.hello(link_pb2.Hello())
    receive(uplink, down(epoch=EPOCH + 1, welcome=make_welcome(handshake=2)), 1.1)
    assert uplink.epoch == EPOCH + 1
    sent(uplink)
    uplink.report(link_pb2.Report(), [])
    assert [message.sequence for message in sent(uplink)] == [1]


# Closed


def test_a_closed_link_stays_closed() -> None:
    uplink = greeting()
    sent(uplink)
    receive(uplink, down(refusal=link_pb2.Refusal()), 0.1)
    assert receive(uplink, down(welcome=make_welcome()), 0.2) == []
    assert receive(uplink, down(identify=link_pb2.Identify()), 0.2) == []
    assert uplink.tick(BEAT, 1_000.0) == []
    uplink.goodbye("drained")
    assert sent(uplink) == []


def test_a_closed_link_wants_no_more_ticks() -> None:
    # A time in the past would make the shell's timer spin until the process has stopped.
    uplink = opened()
    watch(uplink, 0.0, 100.0)
    assert uplink.state is State.CLOSED
    assert uplink.next_tick() == float("inf")


@pytest.mark.parametrize("grace", [0.2, 0.7, 1.0, 1.9, 30.0])
@pytest.mark.parametrize("says_hello", [True, False])
def test_no_orphan_outlives_its_grace_period_by_much(grace: float, says_hello: bool) -> None:
    uplink = Uplink(grace=grace, now=0.0)
    now, reason = 0.0, ""
    while not reason and now < 2 * grace + 1.0:
        now = max(now + 0.001, uplink.next_tick())
        for effect in uplink.tick(BEAT, now):
            if isinstance(effect, Greet) and says_hello:
                uplink.hello(link_pb2.Hello())
            elif isinstance(effect, Exit):
                reason = effect.reason
    assert reason.startswith("no word from the coordinator for")
    assert now <= 1.3 * grace + 0.1
