"""Both ends of a link, through restarts of either, with anything between them: a state machine.

test_downlink.py keeps the order of what it doesn't lose, as ZeroMQ does; here messages are repeated and put
out of order, too, managers are started again, and coordinators forget who is who. What the shells keep
(worker.py, links.py) is modelled: which events are known, which orders were given. After each step:

- what a worker tells is acted upon once, in order, without a gap, and only by the coordinator that greets it;
- what a coordinator orders is obeyed once, in order, without a gap, in the handshake that it was meant for.

Once the wire is good again both agree on everything, and nothing waits for an acknowledgement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.workers import downlink
from coordinator.workers.downlink import Beat, Downlink, Greeted, Reported
from manager.link import uplink
from manager.link.end import Frames
from manager.link.uplink import Greet, Obey, Opened, Uplink
from protos import link_pb2
from protos.frames import check_orders, check_report, unpack

HEARTBEAT = 0.5

SAYS_WHICH_HANDSHAKE = "handshake" in link_pb2.Upward.DESCRIPTOR.fields_by_name
"""Without that, a message must not come later than the Hello or Welcome of the next handshake. With ZeroMQ it
doesn't: each connection keeps the order, and what is left in one that broke is lost."""


@dataclass
class Sent:
    """A message on its way."""

    identity: str  # of the manager
    frames: Frames
    handshake: int
    upward: bool = False


@dataclass
class Manager:
    """One incarnation of a worker: its Uplink and what worker.py keeps."""

    incarnation: int
    now: float
    events: int = 0
    unreported: list[int] = field(default_factory=list)
    obeyed: int = 0  # orders of this handshake

    def __post_init__(self) -> None:
        self.uplink = Uplink(grace=1e9, now=self.now)
        self.identity = f"0.{self.incarnation}"

    @property
    def handshake(self) -> int:
        return self.uplink._handshake


class LinkUnderFaults:
    """One slot, whoever is in it, and one coordinator, whichever it is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.up: list[Sent] = []
        self.down: list[Sent] = []
        self.late: list[Sent] = []
        self.seen_up: dict[str, int] = {}  # the latest handshake of which something has arrived
        self.seen_down: dict[str, int] = {}
        self.manager = Manager(1, 0.0)
        self.epoch = 0
        self._new_coordinator()

    # What happens

    def something_happens_at_the_worker(self) -> None:
        manager = self.manager
        manager.events += 1
        manager.unreported.append(manager.events)
        self._flush()

    def the_coordinator_wants_something(self) -> None:
        if self.downlink.state is downlink.State.OPEN:
            self.ordered += 1
            orders = link_pb2.Orders(end_sessions=[self.ordered])
            meant = f"{self.epoch} {self.downlink.incarnation} {self.downlink._handshake} {self.ordered}"
            self.downlink.orders(orders, [meant.encode()])
            self._transmit()

    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._carry_out(self.manager.uplink.tick(link_pb2.Heartbeat(), self.now), [])
        assert self.downlink.tick(self.now) == []
        self._transmit()

    def another_coordinator_takes_over(self) -> None:
        self._new_coordinator()

    def the_worker_is_killed_and_started_again(self) -> None:
        self.manager = Manager(self.manager.incarnation + 1, self.now)
        self._new_downlink()

    def the_coordinator_forgets_who_is_who(self) -> None:
        self.identity = ""

    # What becomes of messages

    def a_message_has_a_fate(self, index: int, fate: str) -> None:
        if not self.up and not self.down:
            return
        wires = [wire for wire in (self.up, self.down) if wire]
        wire = wires[index % len(wires)]
        message = wire.pop(index % len(wire))
        if fate in ("arrives", "comes twice"):
            self._arrives(message)
        if fate in ("comes late", "comes twice"):
            self.late.append(message)

    def a_late_one_arrives(self, index: int, again: bool) -> None:
        if not self.late:
            return
        at = index % len(self.late)
        self._arrives(self.late[at] if again else self.late.pop(at))

    def all_arrive_in_order(self) -> None:
        for _ in range(20):
            for wire in (self.up, self.down):
                if wire:
                    self._arrives(wire.pop(0))

    def all_goes_well_for_a_while(self) -> None:
        for _ in range(3):
            self.time_passes(HEARTBEAT)
            self.all_arrive_in_order()

    def _arrives(self, sent: Sent) -> None:
        if sent.upward:
            self._arrives_up(sent)
        else:
            self._arrives_down(sent)

    # What must hold

    def what_the_coordinator_knows_is_true(self) -> None:
        if self.downlink.state is downlink.State.OPEN:
            assert self.known <= self.manager.events

    def heal(self) -> None:
        """From here on nothing is lost, and time passes: both come to agree."""
        for _ in range(14):
            self.time_passes(HEARTBEAT)
            for _ in range(5_000):
                if not self.up and not self.down:
                    break
                self.all_arrive_in_order()
            else:
                raise AssertionError("the two ends talk without end")
        manager = self.manager
        assert manager.uplink.state is uplink.State.OPEN
        assert self.downlink.state is downlink.State.OPEN
        assert manager.uplink.epoch == self.epoch
        assert manager.handshake == self.downlink._handshake
        assert self.known == manager.events
        assert manager.obeyed == self.ordered
        assert manager.uplink.unacknowledged == 0
        assert self.downlink._end.unacknowledged == 0

    # The coordinator's shell

    def _new_coordinator(self) -> None:
        self.epoch += 1
        self.identity = ""
        self._new_downlink()

    def _new_downlink(self) -> None:
        incarnation = self.manager.incarnation
        self.downlink = Downlink(
            0, incarnation, epoch=self.epoch, heartbeat=HEARTBEAT, liveness=1e9, grace=1e9
        )
        self.known = -1
        self.ordered = 0

    def _arrives_up(self, sent: Sent) -> None:
        message = link_pb2.Upward.FromString(bytes(sent.frames[0]))
        if self._comes_too_late(sent, self.seen_up, message):
            return
        payloads = unpack(sent.frames[1:], message.report.payloads)
        check_report(message.report)
        if message.HasField("hello"):
            if self.downlink.refuses(message.hello) is not None:
                refusal = link_pb2.Downward(epoch=self.epoch, refusal=link_pb2.Refusal())
                self.down.append(Sent(sent.identity, [refusal.SerializeToString()], 0))
                return
            self.identity = sent.identity
        elif sent.identity != self.identity:
            identify = link_pb2.Downward(epoch=self.epoch, identify=link_pb2.Identify())
            self.down.append(Sent(sent.identity, [identify.SerializeToString()], sent.handshake))
            return
        for event in self.downlink.received(message, self.now):
            match event:
                case Greeted(hello):
                    assert hello.incarnation == self.manager.incarnation
                    assert hello.pid >= self.known, "a Hello that knows less than its predecessors"
                    self.known, self.ordered = hello.pid, 0
                case Reported(report):
                    assert payloads == [f"{self.manager.incarnation}".encode()]
                    for number in report.end_sessions:
                        assert number == self.known + 1, "an event was lost, or told twice"
                        self.known = number
                case Beat():
                    pass
                case _:
                    raise AssertionError(event)
        self._transmit()

    # The manager's shell

    def _arrives_down(self, sent: Sent) -> None:
        if sent.identity != self.manager.identity:
            return  # its process is gone
        message = link_pb2.Downward.FromString(bytes(sent.frames[0]))
        if message.epoch == self.manager.uplink.epoch and self._comes_too_late(sent, self.seen_down, message):
            return
        payloads = unpack(sent.frames[1:], message.orders.payloads)
        check_orders(message.orders)
        self._carry_out(self.manager.uplink.received(message, self.now), payloads)

    def _carry_out(self, effects: list[uplink.Effect], payloads: list[Any]) -> None:
        manager = self.manager
        for effect in effects:
            match effect:
                case Greet():
                    manager.unreported.clear()
                    manager.uplink.hello(link_pb2.Hello(incarnation=manager.incarnation, pid=manager.events))
                case Opened():
                    manager.obeyed = 0
                    self._flush()
                case Obey(orders):
                    (number,) = orders.end_sessions
                    assert number == manager.obeyed + 1, "an order was lost, or obeyed twice"
                    manager.obeyed = number
                    epoch, incarnation, handshake, meant = map(int, bytes(payloads[0]).split())
                    assert (epoch, incarnation, handshake, meant) == (
                        manager.uplink.epoch,
                        manager.incarnation,
                        manager.handshake,
                        number,
                    )
                case _:
                    raise AssertionError(effect)
        self._transmit()

    def _flush(self) -> None:
        manager = self.manager
        if manager.uplink.state is uplink.State.OPEN and manager.unreported:
            report = link_pb2.Report(
                end_sessions=manager.unreported, end_reasons=[link_pb2.LOST] * len(manager.unreported)
            )
            manager.uplink.report(report, [f"{manager.incarnation}".encode()])
            manager.unreported.clear()
        self._transmit()

    # The wire

    def _transmit(self) -> None:
        manager = self.manager
        self.up += [
            Sent(manager.identity, frames, manager.handshake, upward=True) for frames in manager.uplink.out
        ]
        manager.uplink.out.clear()
        self.down += [Sent(self.identity, frames, self.downlink._handshake) for frames in self.downlink.out]
        self.downlink.out.clear()

    @staticmethod
    def _comes_too_late(
        sent: Sent, seen: dict[str, int], message: link_pb2.Upward | link_pb2.Downward
    ) -> bool:
        """Whether nobody could tell that it is of an earlier handshake."""
        latest = seen[sent.identity] = max(seen.get(sent.identity, 0), sent.handshake)
        says_it = message.WhichOneof("body") in ("hello", "welcome", "identify", "refusal")
        return sent.handshake < latest and not says_it and not SAYS_WHICH_HANDSHAKE


L = LinkUnderFaults
FATES = ["arrives", "arrives", "is lost", "comes late", "comes twice"]
numbers = st.integers(0, 30)
steps = st.one_of(
    st.just((L.something_happens_at_the_worker,)),
    st.just((L.the_coordinator_wants_something,)),
    st.tuples(st.just(L.time_passes), st.sampled_from([0.05, 0.3, 0.6, 1.1])),
    *[st.tuples(st.just(L.a_message_has_a_fate), numbers, st.sampled_from(FATES))] * 3,
    st.tuples(st.just(L.a_late_one_arrives), numbers, st.booleans()),
    st.just((L.all_arrive_in_order,)),
    st.just((L.all_goes_well_for_a_while,)),
    st.sampled_from(
        [
            (L.another_coordinator_takes_over,),
            (L.the_worker_is_killed_and_started_again,),
            (L.the_coordinator_forgets_who_is_who,),
        ]
    ),
)


@settings(max_examples=200)
@given(st.lists(steps, min_size=20, max_size=100))
def test_whatever_the_wire_does_and_whoever_is_started_again(steps: list[tuple[Any, ...]]) -> None:
    link = LinkUnderFaults()
    for step, *arguments in steps:
        step(link, *arguments)
        link.what_the_coordinator_knows_is_true()
    link.heal()
