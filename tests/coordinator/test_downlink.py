"""The coordinator's end of a link, alone and against the manager's with a lossy pipe between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.workers.downlink import Beat, Departed, Downlink, Event, Greeted, Reported, Silent, State
from manager.link import uplink
from manager.link.uplink import LINK_VERSION, Greet, Obey, Opened, Uplink
from protos import link_pb2
from protos.frames import Buffer, Shared, unpack

HEARTBEAT = 0.5
LIVENESS = 3.0


def make_downlink(
    *,
    index: int = 0,
    incarnation: int = 1,
    epoch: int = 7,
    liveness: float = LIVENESS,
    memory: link_pb2.Memory | None = None,
) -> Downlink:
    return Downlink(
        index,
        incarnation,
        epoch=epoch,
        heartbeat=HEARTBEAT,
        liveness=liveness,
        grace=30.0,
        memory=memory,
    )


def make_hello(*, handshake: int = 1, incarnation: int = 1, version: int = LINK_VERSION) -> link_pb2.Hello:
    return link_pb2.Hello(version=version, incarnation=incarnation, handshake=handshake)


def up(*, handshake: int = 1, **body: object) -> link_pb2.Upward:
    return link_pb2.Upward(handshake=handshake, **body)  # type: ignore[arg-type] # one body, by its name


def sent(downlink: Downlink) -> list[link_pb2.Downward]:
    """Takes what the shell would send."""
    messages = [link_pb2.Downward.FromString(bytes(frames[0])) for frames in downlink.out]
    downlink.out.clear()
    return messages


def opened(now: float = 0.0, liveness: float = LIVENESS) -> Downlink:
    downlink = make_downlink(liveness=liveness)
    assert downlink.received(up(hello=make_hello()), now)
    sent(downlink)
    return downlink


# The handshake


def test_a_hello_is_welcomed_with_what_the_worker_must_know() -> None:
    downlink = make_downlink()
    hello = make_hello(handshake=3)
    assert downlink.received(up(hello=hello), 1.0) == [Greeted(hello)]
    assert downlink.state is State.OPEN
    (message,) = sent(downlink)
    assert message.epoch == 7
    assert message.sequence == 0
    assert message.welcome == link_pb2.Welcome(
        version=LINK_VERSION, heartbeat_seconds=HEARTBEAT, grace_seconds=30.0, handshake=3
    )


def test_a_welcome_says_whose_memory_can_be_opened() -> None:
    memory = link_pb2.Memory(pid=1, descriptor=3, content=b"to try")
    downlink = make_downlink(memory=memory)
    downlink.opens_memory = True
    downlink.received(up(hello=make_hello()), 1.0)
    (message,) = sent(downlink)
    assert message.welcome.shares_memory
    assert message.welcome.memory == memory


def test_a_repeated_hello_is_welcomed_again_and_begins_nothing_anew() -> None:
    downlink = opened()
    downlink.orders(link_pb2.Orders(end_sessions=[5]), [])
    (orders,) = sent(downlink)
    assert downlink.received(up(hello=make_hello()), 1.0) == []
    (welcome,) = sent(downlink)
    assert welcome.HasField("welcome")
    # The worker had not been welcomed when the orders came; it can still ask for them.
    downlink.received(up(resend=link_pb2.Resend(first=1)), 1.1)
    assert sent(downlink) == [orders]


def test_a_repeated_hello_is_a_sign_of_life() -> None:
    downlink = opened(now=0.0)
    downlink.received(up(hello=make_hello()), LIVENESS)
    assert downlink.tick(LIVENESS + 1.0) == []


def test_a_new_hello_begins_anew() -> None:
    downlink = opened()
    downlink.orders(link_pb2.Orders(end_sessions=[5]), [])
    sent(downlink)
    assert downlink.received(up(sequence=1, report=link_pb2.Report()), 0.1) == [Reported(link_pb2.Report())]
    second = make_hello(handshake=2)
    assert downlink.received(up(hello=second), 1.0) == [Greeted(second)]
    assert downlink.received(up(sequence=1, report=link_pb2.Report()), 1.1) == [], "it is of the first one"
    message = up(handshake=2, sequence=1, report=link_pb2.Report())
    assert downlink.received(message, 1.1) == [Reported(link_pb2.Report())]
    downlink.orders(link_pb2.Orders(end_sessions=[6]), [])
    assert [message.sequence for message in sent(downlink)] == [0, 1]


def test_a_hello_that_a_later_one_has_overtaken_is_ignored() -> None:
    downlink = make_downlink()
    downlink.received(up(hello=make_hello(handshake=2)), 0.0)
    sent(downlink)
    assert downlink.received(up(hello=make_hello(handshake=1)), 0.1) == []
    assert sent(downlink) == []
    assert downlink.state is State.OPEN


@pytest.mark.parametrize("state", ["AWAITED", "GONE"])
def test_nothing_is_sent_or_heard_without_a_handshake(state: str) -> None:
    downlink = make_downlink()
    if state == "GONE":
        downlink = opened()
        downlink.gone()
    assert downlink.received(up(sequence=1, report=link_pb2.Report()), 0.1) == []
    assert downlink.received(up(heartbeat=link_pb2.Heartbeat(sent=9)), 0.2) == []
    downlink.orders(link_pb2.Orders(end_sessions=[1]), [])
    downlink.drain(1.0)
    downlink.acknowledge()
    assert downlink.tick(1_000.0) == []
    assert downlink.out == []


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (make_hello(version=LINK_VERSION + 1), ["version 2", "1 is spoken here", "install the same version"]),
        (make_hello(version=0), ["version 0"]),
        (make_hello(incarnation=2), ["incarnation 2 of worker 4 has been replaced"]),
        (make_hello(incarnation=0), ["incarnation 0"]),
    ],
)
def test_a_wrong_hello_is_refused_with_a_sentence(hello: link_pb2.Hello, words: list[str]) -> None:
    reason = make_downlink(index=4).refuses(hello)
    assert reason is not None
    assert all(word in reason for word in words)


def test_a_right_hello_is_not_refused_whether_first_or_repeated() -> None:
    downlink = make_downlink()
    assert downlink.refuses(make_hello()) is None
    downlink.received(up(hello=make_hello()), 0.0)
    assert downlink.refuses(make_hello()) is None


def test_a_worker_that_was_given_up_is_refused() -> None:
    downlink = opened()
    downlink.gone()
    assert downlink.refuses(make_hello()) == "worker 0 has been given up"


# Open


def test_reports_beats_and_goodbyes_become_events() -> None:
    downlink = opened()
    report = link_pb2.Report(end_sessions=[1], end_reasons=[link_pb2.LEFT])
    beat = link_pb2.Heartbeat(sent=1, refused={"protocol": 4})
    assert downlink.received(up(sequence=1, report=report), 0.1) == [Reported(report)]
    assert downlink.received(up(heartbeat=beat), 0.2) == [Beat(beat)]
    assert downlink.received(up(sequence=2, goodbye=link_pb2.Goodbye(reason="drained")), 0.3) == [
        Departed("drained")
    ]
    assert downlink.state is State.GONE


def test_a_goodbye_is_acknowledged_again_whenever_its_worker_is_heard() -> None:
    """It waits for that, and the connection on which it was said may break."""
    downlink = opened()
    downlink.received(up(sequence=1, goodbye=link_pb2.Goodbye(reason="drained")), 0.1)
    downlink.gone()
    for now in (0.2, 0.3):
        assert downlink.received(up(heartbeat=link_pb2.Heartbeat(sent=1)), now) == []
        (message,) = sent(downlink)
        assert message.acknowledged == 1
        assert message.WhichOneof("body") is None


def test_a_report_is_handled_once_however_often_it_comes() -> None:
    downlink = opened()
    message = up(sequence=1, report=link_pb2.Report(end_sessions=[1]))
    assert downlink.received(message, 0.1)
    assert downlink.received(message, 0.2) == []


def test_a_report_behind_a_gap_waits_for_its_repeat() -> None:
    downlink = opened()
    assert downlink.received(up(sequence=2, report=link_pb2.Report()), 0.1) == []
    (message,) = sent(downlink)
    assert message.resend.first == 1
    assert message.epoch == 7


def test_a_bare_acknowledgement_is_no_event() -> None:
    assert opened().received(up(acknowledged=1), 0.1) == []


def test_every_message_carries_the_epoch() -> None:
    downlink = make_downlink(epoch=2**31 - 1)
    downlink.received(up(hello=make_hello()), 0.0)
    downlink.orders(link_pb2.Orders(), [])
    downlink.drain(2.5)
    downlink.tick(HEARTBEAT)
    messages = sent(downlink)
    assert [message.WhichOneof("body") for message in messages] == ["welcome", "orders", "drain", "heartbeat"]
    assert {message.epoch for message in messages} == {2**31 - 1}
    assert messages[2].drain.grace_seconds == 2.5
    assert messages[3].heartbeat.sent == 2


def test_payloads_travel_behind_the_header() -> None:
    downlink = opened()
    downlink.orders(link_pb2.Orders(end_sessions=[1]), [b"ab"])
    assert [bytes(frame) for frame in downlink.out[0][1:]] == [b"ab"]
    (message,) = sent(downlink)
    assert message.orders == link_pb2.Orders(payloads=link_pb2.Payloads(sizes=[2]), end_sessions=[1])


def test_a_report_can_be_acknowledged_at_once() -> None:
    downlink = opened()
    downlink.received(up(sequence=1, report=link_pb2.Report()), 0.1)
    assert sent(downlink) == []
    downlink.acknowledge()
    assert sent(downlink) == [link_pb2.Downward(epoch=7, acknowledged=1, handshake=1)]


# Silence


def watch(downlink: Downlink, start: float, end: float) -> list[Event]:
    """Ticks as the shell does, every tenth of a second."""
    ticks = round((end - start) * 10)
    return [event for n in range(ticks + 1) for event in downlink.tick(start + n * (end - start) / ticks)]


def test_a_worker_is_silent_only_after_the_liveness_time() -> None:
    downlink = opened(now=10.0)
    assert watch(downlink, 10.0, 10.0 + LIVENESS) == []
    assert downlink.silent_for(10.0 + LIVENESS) == LIVENESS
    assert downlink.tick(10.5 + LIVENESS) == [Silent(LIVENESS + 0.5)]


def test_a_coordinator_that_was_stopped_itself_does_not_take_its_workers_for_dead() -> None:
    downlink = opened()
    assert downlink.tick(LIVENESS + 100) == []
    assert downlink.state is State.OPEN
    assert watch(downlink, LIVENESS + 100, 2 * LIVENESS + 99.9) == []
    assert watch(downlink, 2 * LIVENESS + 100, 2 * LIVENESS + 101) != []


def test_silence_is_told_once_and_is_final() -> None:
    downlink = opened()
    assert watch(downlink, 0.0, LIVENESS) == []
    assert downlink.tick(LIVENESS + 1) == [Silent(LIVENESS + 1)]
    assert downlink.state is State.GONE
    assert downlink.tick(LIVENESS + 2) == []
    assert downlink.received(up(sequence=1, report=link_pb2.Report()), LIVENESS + 3) == []
    assert downlink.refuses(make_hello()) is not None


def test_anything_heard_counts_as_a_sign_of_life() -> None:
    downlink = opened()
    downlink.received(up(sequence=9, report=link_pb2.Report()), 2.0)  # a gap, and yet somebody spoke
    assert downlink.tick(2.0 + LIVENESS) == []


def test_one_that_has_not_said_hello_yet_is_not_silent() -> None:
    assert make_downlink().tick(1e9) == []


def test_a_lost_worker_is_sent_nothing_more() -> None:
    downlink = opened()
    downlink.orders(link_pb2.Orders(), [])
    downlink.gone()
    assert downlink.out == []


# Both ends and what lies between


Message = list[Buffer]


class Link:
    """A worker and a coordinator with a pipe each way that keeps the order, as ZeroMQ does, and may lose.

    The worker counts its events; what it tells of them is the last one in a Hello (as its ``pid``) and each
    by number in a report. So what the coordinator knows must always be all up to some number. Orders are
    numbered too.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.up: deque[Message] = deque()
        self.down: deque[Message] = deque()
        # The worker:
        self.uplink = Uplink(grace=1e9, now=0.0)
        self.events = 0
        self.unreported: list[int] = []
        self.obeyed: list[int] = []
        # The coordinator:
        self.epoch = 0
        self.known = 0
        self.ordered = 0
        self.ordered_since_greeted: list[int] = []
        self.restart()

    def restart(self) -> None:
        """Another coordinator takes the place of this one. It knows of nobody."""
        self.epoch += 1
        self.downlink = make_downlink(epoch=self.epoch, liveness=1e9)
        self.known = -1

    def happen(self) -> None:
        self.events += 1
        self.unreported.append(self.events)
        self.flush()

    def order(self) -> None:
        if self.downlink.state is State.OPEN:
            self.ordered += 1
            self.ordered_since_greeted.append(self.ordered)
            payload = str(self.ordered).encode()
            self.downlink.orders(link_pb2.Orders(end_sessions=[self.ordered]), [payload])
            self.transmit()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.uplink.tick(link_pb2.Heartbeat(), self.now))
        assert self.downlink.tick(self.now) == []
        self.transmit()

    def deliver_up(self) -> None:
        if self.up:
            message = link_pb2.Upward.FromString(bytes(self.up.popleft()[0]))
            if self.downlink.state is State.AWAITED and not message.HasField("hello"):
                identify = link_pb2.Downward(epoch=self.epoch, identify=link_pb2.Identify())
                self.down.append([identify.SerializeToString()])
                return
            for event in self.downlink.received(message, self.now):
                self.learn(event)
            self.transmit()

    def deliver_down(self) -> None:
        if self.down:
            frames = self.down.popleft()
            message = link_pb2.Downward.FromString(bytes(frames[0]))
            payloads = unpack(frames[1:], message.orders.payloads)
            self.carry_out(self.uplink.received(message, self.now), payloads)

    def lose_up(self) -> None:
        if self.up:
            self.up.popleft()

    def lose_down(self) -> None:
        if self.down:
            self.down.popleft()

    def heal(self) -> None:
        """From here on nothing is lost, and time passes."""
        for _ in range(12):
            self.tick(HEARTBEAT)
            for _ in range(10_000):
                if not self.up and not self.down:
                    break
                self.deliver_up()
                self.deliver_down()
            else:
                raise AssertionError("the two ends talk without end")

    def learn(self, event: Event) -> None:
        match event:
            case Greeted(hello):
                assert hello.pid >= self.known, "a Hello that knows less than its predecessors"
                self.known = hello.pid
                self.ordered_since_greeted = []
            case Reported(report):
                for number in report.end_sessions:
                    assert number == self.known + 1, "an event was lost, or told twice"
                    self.known = number
            case Beat():
                pass
            case _:
                raise AssertionError(event)

    def carry_out(self, effects: list[uplink.Effect], payloads: Sequence[Buffer | Shared] = ()) -> None:
        """As the worker's shell does."""
        for effect in effects:
            match effect:
                case Greet():
                    self.unreported.clear()
                    self.uplink.hello(link_pb2.Hello(incarnation=1, pid=self.events))
                case Opened():
                    self.flush()
                case Obey(orders):
                    self.obeyed.extend(orders.end_sessions)
                    assert list(payloads) == [b"%d" % self.obeyed[-1]]
                case _:
                    raise AssertionError(effect)
        self.transmit()

    def flush(self) -> None:
        if self.uplink.state is uplink.State.OPEN and self.unreported:
            self.uplink.report(link_pb2.Report(end_sessions=self.unreported), [])
            self.unreported.clear()
        self.transmit()

    def transmit(self) -> None:
        for pipe, out in ((self.up, self.uplink.out), (self.down, self.downlink.out)):
            pipe.extend(out)
            out.clear()

    def check_agreed(self) -> None:
        assert self.uplink.state is uplink.State.OPEN
        assert self.downlink.state is State.OPEN
        assert self.uplink.epoch == self.epoch
        assert self.known == self.events
        assert self.obeyed == sorted(set(self.obeyed)), "an order was obeyed twice, or out of order"
        assert set(self.ordered_since_greeted) <= set(self.obeyed)
        assert self.uplink._end.unacknowledged == 0
        assert self.downlink._end.unacknowledged == 0


STEPS: list[Callable[[Link], None]] = [
    Link.happen,
    Link.order,
    Link.deliver_up,
    Link.deliver_down,
    Link.lose_up,
    Link.lose_down,
    lambda link: link.tick(0.3),
    lambda link: link.tick(1.0),
]
STEP_NAMES = st.sampled_from(range(len(STEPS)))


def run(steps: list[int]) -> Link:
    link = Link()
    for step in steps:
        if step < len(STEPS):
            STEPS[step](link)
        else:
            link.restart()
    link.heal()
    link.check_agreed()
    return link


def test_over_a_good_pipe_everything_arrives_once() -> None:
    link = Link()
    link.heal()
    for _ in range(100):
        link.happen()
        link.order()
    link.heal()
    link.check_agreed()
    assert link.obeyed == list(range(1, 101))


def test_a_hello_repeated_to_a_slow_coordinator_loses_nothing() -> None:
    # The coordinator gets both Hellos at once. What the worker says after the first welcome must not be
    # taken for a repeat, nor dropped, because of the second.
    link = Link()
    link.tick(0.0)
    link.tick(1.5)
    assert len(link.up) == 2
    link.deliver_up()
    link.order()
    link.deliver_down()
    link.happen()
    while link.up or link.down:
        link.deliver_up()
        link.deliver_down()
    link.happen()
    link.heal()
    link.check_agreed()
    assert link.obeyed == [1]


def test_what_happens_before_the_welcome_is_reported_after_it() -> None:
    link = Link()
    link.tick(0.0)
    link.happen()
    link.tick(1.5)
    link.happen()
    # The repeat of the lost Hello must not know less, or more, than the reports take for granted.
    link.lose_up()
    link.heal()
    link.check_agreed()
    assert link.known == 2


def test_orders_sent_before_the_welcome_arrived_are_obeyed_all_the_same() -> None:
    link = Link()
    link.tick(0.0)
    link.deliver_up()
    link.lose_down()
    link.order()
    link.heal()
    link.check_agreed()
    assert link.obeyed == [1]


def test_a_new_coordinator_learns_everything_by_one_hello() -> None:
    link = Link()
    link.heal()
    for _ in range(20):
        link.happen()
    link.restart()
    hellos = 0
    while link.up:
        link.deliver_up()
        link.deliver_down()
        hellos += sum(link_pb2.Upward.FromString(bytes(m[0])).HasField("hello") for m in link.up)
    link.heal()
    link.check_agreed()
    # Each of the 20 messages was answered with Identify; a Hello lists all sessions, so one must do.
    assert link.uplink._handshake == 2


@settings(max_examples=300)
@given(st.lists(STEP_NAMES, max_size=60))
def test_whatever_is_lost_or_late_both_ends_agree_in_the_end(steps: list[int]) -> None:
    link = run(steps)
    assert link.obeyed == list(range(1, link.ordered + 1))


@settings(max_examples=300)
@given(st.lists(st.sampled_from(range(len(STEPS) + 1)), max_size=60))
def test_even_when_coordinators_come_and_go(steps: list[int]) -> None:
    run(steps)
