"""Decides what one end of a link does to lose nothing. Sans-IO.

Both ends use it: the manager with Upward messages out and Downward in (uplink.py), the coordinator the other
way round (coordinator/workers/downlink.py). The handshake is theirs; this begins when it is done. Messages to
be sent are collected in ``out``, each as the frames of one multipart message; the caller sends them in order.
If ZeroMQ can't take one it may be dropped: it will be asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Generic, TypeVar

from manager.link.sequence import Sequence, Verdict
from manager.payloads.blobs import Payload
from protos import link_pb2
from protos.frames import Buffer, pack

Frames = list[Buffer]
Out = TypeVar("Out", link_pb2.Upward, link_pb2.Downward)
In = TypeVar("In", link_pb2.Upward, link_pb2.Downward)


class LinkEnd(Generic[Out, In]):
    """Numbers, acknowledges, repeats and beats for one link. Times are monotonic seconds."""

    def __init__(self, make: Callable[..., Out]) -> None:
        """``make`` gives an outgoing message from the body's field, filled in with what all of them have."""
        self._make: Callable[..., Out] = make
        self._sequence: Sequence[tuple[Frames, Seq[Payload]]] = Sequence()
        self._handshake = 0
        self._interval = float("inf")
        self._beat_at = float("inf")
        self._asked_until = 0.0
        self.out: list[Frames] = []

    def open(self, handshake: int, interval: float, now: float) -> None:
        """A handshake is done: numbers start anew, and a heartbeat is due every ``interval`` seconds."""
        self._sequence = Sequence()
        self._handshake = handshake
        self._interval = interval
        self._beat_at = now
        self._asked_until = now

    @property
    def sent(self) -> int:
        """The number of the last message that was numbered."""
        return self._sequence.sent

    @property
    def unacknowledged(self) -> int:
        """Messages sent that the other end has not acknowledged yet."""
        return self._sequence.unacknowledged

    def send(self, payloads: Seq[Payload] = (), **body: object) -> None:
        """Numbers a message with this body and sends it with its payloads, again if need be.

        Until it is acknowledged it is kept, and with it the memory of payloads that are shared.
        """
        header: link_pb2.Payloads | None
        tail: list[Buffer]
        header, tail = pack(payloads)
        message = self._make(**body)
        if header is not None:
            for part in body:
                getattr(message, part).payloads.CopyFrom(header)
        message.handshake = self._handshake
        message.sequence = self._sequence.next()
        message.acknowledged = self._sequence.acknowledge()
        frames = [message.SerializeToString(), *tail]
        self._sequence.keep((frames, payloads))
        self.out.append(frames)

    def received(self, message: In, now: float) -> bool:
        """Takes note of an incoming message; returns whether it is new and to be acted upon.

        Heartbeats and requests for a repeat are dealt with here.
        """
        if message.handshake != self._handshake:
            return False  # its numbers mean something else
        sequence = self._sequence
        sequence.acknowledged(message.acknowledged)
        if message.sequence:
            verdict = sequence.arrived(message.sequence)
            if verdict is Verdict.GAP:
                self._ask_again(now)
            if sequence.acknowledgement_due:
                self.acknowledge()
            return verdict is Verdict.NEW
        body = message.WhichOneof("body")
        if body == "resend":
            self.out.extend(frames for frames, _ in sequence.again(message.resend.first))
        elif body == "heartbeat" and message.heartbeat.sent > sequence.received:
            self._ask_again(now)
        return True

    def tick(self, beat: link_pb2.Heartbeat, now: float) -> None:
        """Sends the heartbeat if it is due. The caller has filled in what it reports of itself."""
        if now < self._beat_at:
            return
        self._beat_at = now + self._interval
        beat.sent = self._sequence.sent
        self._transmit(heartbeat=beat)

    @property
    def beat_at(self) -> float:
        """When the next heartbeat is due."""
        return self._beat_at

    def _ask_again(self, now: float) -> None:
        if now < self._asked_until:
            return
        self._asked_until = now + self._interval / 2
        self._transmit(resend=link_pb2.Resend(first=self._sequence.received + 1))

    def acknowledge(self) -> None:
        """Acknowledges what has been received, without waiting for an occasion."""
        self._transmit()

    def _transmit(self, **body: object) -> None:
        """Sends a message that need not be repeated if it is lost."""
        message = self._make(**body)
        message.handshake = self._handshake
        message.acknowledged = self._sequence.acknowledge()
        self.out.append([message.SerializeToString()])
