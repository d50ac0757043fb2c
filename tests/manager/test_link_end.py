"""Two ends of a link lose nothing, whatever lies between them drops, repeats, delays or puts out of order."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.link.end import Frames, LinkEnd
from manager.link.sequence import ACKNOWLEDGE_AFTER
from manager.payloads.blobs import CAN_SHARE, SHARE_SIZE, Blob
from protos import link_pb2
from protos.frames import Shared, unpack

INTERVAL = 0.5


class End:
    """One end, and what is on the wire towards it."""

    def __init__(self, make: Any, parse: Any, field: str) -> None:
        self.link: LinkEnd[Any, Any] = LinkEnd(make)
        self.link.open(1, INTERVAL, 0.0)
        self.parse = parse
        self.field = field
        self.wire: list[Frames] = []
        self.sent: list[int] = []
        self.received: list[int] = []

    def send(self, number: int) -> None:
        payload = b"%d" % number
        if self.field == "report":
            self.link.send([payload], report=link_pb2.Report(end_sessions=[number]))
        else:
            self.link.send([payload], orders=link_pb2.Orders(end_sessions=[number]))
        self.sent.append(number)

    def receive(self, frames: Frames, now: float) -> None:
        message = self.parse(bytes(frames[0]))
        if not self.link.received(message, now):
            return
        for field in ("report", "orders"):
            if message.WhichOneof("body") == field:
                (number,) = getattr(message, field).end_sessions
                assert unpack(frames[1:], getattr(message, field).payloads) == [b"%d" % number]
                self.received.append(number)


class Pair:
    def __init__(self) -> None:
        self.now = 0.0
        self.manager = End(link_pb2.Upward, link_pb2.Downward.FromString, "report")
        self.coordinator = End(link_pb2.Downward, link_pb2.Upward.FromString, "orders")

    @property
    def both(self) -> list[tuple[End, End]]:
        return [(self.manager, self.coordinator), (self.coordinator, self.manager)]

    def transmit(self) -> None:
        for end, other in self.both:
            other.wire.extend(end.link.out)
            end.link.out.clear()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for end, _ in self.both:
            end.link.tick(link_pb2.Heartbeat(), self.now)
        self.transmit()

    def deliver(self, end: End, index: int = 0, repeat: bool = False) -> None:
        if end.wire:
            index %= len(end.wire)
            frames = end.wire[index] if repeat else end.wire.pop(index)
            end.receive(frames, self.now)
            self.transmit()

    def heal(self) -> None:
        """From here on nothing is lost. Ends once the wire is empty after each tick."""
        for _ in range(8):
            self.tick(INTERVAL)
            for _ in range(20_000):
                if not self.manager.wire and not self.coordinator.wire:
                    break
                for end, _ in self.both:
                    self.deliver(end)
            else:
                raise AssertionError("the two ends talk without end")

    def check(self) -> None:
        for end, other in self.both:
            assert other.received == end.sent
            assert end.link.unacknowledged == 0


STEP = st.tuples(
    st.sampled_from(
        ["send", "deliver", "deliver", "deliver out of order", "repeat", "drop", "drop all", "tick"]
    ),
    st.booleans(),
    st.integers(0, 20),
)


@settings(max_examples=200)
@given(st.lists(STEP, max_size=80))
def test_everything_arrives_once_and_in_order(steps: list[tuple[str, bool, int]]) -> None:
    pair = Pair()
    for number, (step, at_manager, index) in enumerate(steps):
        end = pair.manager if at_manager else pair.coordinator
        match step:
            case "send":
                end.send(number)
                pair.transmit()
            case "deliver":
                pair.deliver(end)
            case "deliver out of order":
                pair.deliver(end, index)
            case "repeat":
                pair.deliver(end, index, repeat=True)
            case "drop":
                if end.wire:
                    end.wire.pop(index % len(end.wire))
            case "drop all":
                end.wire.clear()
            case "tick":
                pair.tick(index / 20)
        for end, other in pair.both:
            assert other.received == end.sent[: len(other.received)]
    pair.heal()
    pair.check()


def test_over_a_good_wire_nothing_is_sent_twice() -> None:
    pair = Pair()
    frames = 0
    for number in range(10 * ACKNOWLEDGE_AFTER):
        pair.manager.send(number)
        pair.transmit()
        frames += len(pair.coordinator.wire)
        while pair.coordinator.wire:
            pair.deliver(pair.coordinator)
        while pair.manager.wire:
            pair.deliver(pair.manager)
    assert frames == 10 * ACKNOWLEDGE_AFTER
    pair.heal()
    pair.check()


def test_a_stream_in_one_direction_is_acknowledged_without_heartbeats() -> None:
    pair = Pair()
    for number in range(ACKNOWLEDGE_AFTER):
        pair.manager.send(number)
    pair.transmit()
    assert pair.manager.link.unacknowledged == ACKNOWLEDGE_AFTER
    while pair.coordinator.wire:
        pair.deliver(pair.coordinator)
    assert len(pair.manager.wire) == 1
    pair.deliver(pair.manager)
    assert pair.manager.link.unacknowledged == 0


def test_the_loss_of_the_last_message_shows_at_the_next_heartbeat() -> None:
    pair = Pair()
    pair.manager.send(1)
    pair.transmit()
    pair.coordinator.wire.clear()
    pair.tick(INTERVAL)
    pair.deliver(pair.coordinator)
    pair.deliver(pair.manager)
    pair.deliver(pair.manager)
    pair.deliver(pair.coordinator)
    assert pair.coordinator.received == [1]


def test_a_burst_behind_a_gap_asks_once() -> None:
    pair = Pair()
    for number in range(20):
        pair.manager.send(number)
    pair.transmit()
    pair.coordinator.wire.pop(0)
    while pair.coordinator.wire:
        pair.deliver(pair.coordinator)
    assert len(pair.manager.wire) == 1


def test_a_lost_request_for_a_repeat_is_made_again_later() -> None:
    pair = Pair()
    pair.manager.send(1)
    pair.manager.send(2)
    pair.transmit()
    pair.coordinator.wire.pop(0)
    pair.deliver(pair.coordinator)
    pair.manager.wire.clear()
    pair.heal()
    pair.check()


def test_a_message_without_payloads_is_its_header_alone() -> None:
    end = Pair().manager.link
    end.send(report=link_pb2.Report(end_sessions=[1]))
    end.send(goodbye=link_pb2.Goodbye(reason="drained"))
    first, second = end.out
    assert link_pb2.Upward.FromString(bytes(first[0])).report == link_pb2.Report(end_sessions=[1])
    assert link_pb2.Upward.FromString(bytes(second[0])).goodbye.reason == "drained"
    assert len(first) == len(second) == 1


@pytest.mark.skipif(not CAN_SHARE, reason="needs memory that can be shared")
def test_memory_that_is_shared_is_kept_until_it_is_acknowledged() -> None:
    pair = Pair()
    blob = Blob.of(bytes(SHARE_SIZE))
    shared, alive = Shared(blob.descriptor, SHARE_SIZE), weakref.ref(blob)
    pair.manager.link.send([b"small", blob], report=link_pb2.Report())
    del blob
    (frames,) = pair.manager.link.out
    report = link_pb2.Upward.FromString(bytes(frames[0])).report
    assert unpack(frames[1:], report.payloads) == [b"small", shared]
    pair.tick(0.0)
    assert alive() is not None, "it may have to be sent again"
    pair.manager.link.received(link_pb2.Downward(acknowledged=1, handshake=1), 0.0)
    assert alive() is None


def test_heartbeats_are_sent_when_due() -> None:
    end = Pair().manager.link
    assert end.beat_at == 0.0
    end.tick(link_pb2.Heartbeat(), 0.0)
    end.tick(link_pb2.Heartbeat(), INTERVAL - 0.01)
    assert len(end.out) == 1
    assert end.beat_at == INTERVAL
    end.tick(link_pb2.Heartbeat(), INTERVAL)
    assert len(end.out) == 2


def test_an_acknowledgement_can_be_sent_at_once() -> None:
    pair = Pair()
    pair.manager.send(1)
    pair.transmit()
    pair.deliver(pair.coordinator)
    pair.coordinator.link.acknowledge()
    pair.transmit()
    pair.deliver(pair.manager)
    assert pair.manager.link.unacknowledged == 0
