"""What reads generated frames: the decoders, and the cores behind them. None may raise but what it documents.

Each target makes frames from a ``random.Random`` and reads them as its shell does in production. ``feed``
returns whether they were accepted; whatever it raises is a bug. Targets keep state, as a connection does, and
begin anew now and then.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from google.protobuf.message import DecodeError, Message

from coordinator.workers.downlink import Downlink, Greeted
from coordinator.workers.downlink import State as DownlinkState
from manager.link import uplink
from manager.payloads.blobs import view_of
from manager.reducing.batch import Batch
from manager.reducing.contributions import Contribution, RefusedError, decode, encode
from manager.reducing.reducers import make_reducer
from manager.serving.incoming import checked
from manager.serving.session import Action, BreachError, Session
from manager.serving.session import State as SessionState
from participant_sdk import handlers, lifecycle
from participant_sdk.errors import ConnectionClosed, ProtocolError
from participant_sdk.lifecycle import Answered, Due, Ended, Lifecycle, Perform, Received, Stop, Wait
from participant_sdk.stream import Stream
from protos import link_pb2, parsing, stream_pb2
from protos.chunks import Assembler, in_memory, in_one_buffer, read_chunk
from protos.envelope import Kind, MalformedMessageError, kind_of
from protos.frames import MalformedFramesError, Shared, check_orders, check_report, unpack
from protos.messages import ScalarError, from_scalars
from protos.parsing import check_result
from protos.sliced import ReceivedMessage, read_result
from protos.tensors import TensorError, to_arrays
from tests.fuzz import corpus
from tests.fuzz.wire import Fields, mangled, mutated

Frames = list[bytes]

LIFE = 400
"""Frames after which a target that keeps state begins anew."""


class Target(ABC):
    """A reader of frames."""

    name: ClassVar[str]
    corpus: Sequence[tuple[Message, list[bytes]]]
    favourite = 0
    """The message of the corpus that has most to get wrong."""

    def __init__(self) -> None:
        self._fields: list[Fields] = [corpus.apart(message) for message, _ in self.corpus]
        self._age = 0

    def frames(self, rng: random.Random) -> Frames:
        """What is read next: most often a changed valid message, sometimes a valid one, or noise."""
        at = self.favourite if rng.random() < 0.3 else rng.randrange(len(self.corpus))
        draw = rng.random()
        if draw < 0.04:
            return [rng.randbytes(rng.randrange(80)) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        if draw < 0.2:
            return [self.corpus[at][0].SerializeToString(), *self.corpus[at][1]]
        frames = [mutated(rng, self._fields[at], self._fields), *self.corpus[at][1]]
        if rng.random() < 0.15:
            frames = _other_frames(rng, frames)
        return frames

    def feed(self, frames: Frames, rng: random.Random) -> bool:
        """Reads them; returns whether they were accepted."""
        self._age += 1
        if self._age % LIFE == 1:
            self.begin()
        return self.read(frames, rng)

    def begin(self) -> None:  # noqa: B027 - most have nothing to begin
        """Forgets all that was."""

    @abstractmethod
    def read(self, frames: Frames, rng: random.Random) -> bool: ...


def _other_frames(rng: random.Random, frames: Frames) -> Frames:
    match rng.randrange(4):
        case 0:
            return frames[: rng.randrange(len(frames) + 1)]
        case 1:
            return [*frames, rng.randbytes(rng.randrange(20))]
        case 2 if len(frames) > 1:
            return [frames[0], *(mangled(rng, frame) for frame in frames[1:])]
        case _:
            return [*frames, *frames[1:]]


class Upward(Target):
    """What the coordinator hears from a worker: coordinator/workers/links.py."""

    name = "upward"
    corpus = corpus.UPWARD
    favourite = 1

    def begin(self) -> None:
        self._now = 0.0
        self._next = 1
        self._handshake = corpus.UPWARD[0][0].hello.handshake
        self._link = Downlink(0, 1, epoch=7, heartbeat=0.5, liveness=3.0, grace=30.0)
        self._link.received(corpus.UPWARD[0][0], 0.0)

    def read(self, frames: Frames, rng: random.Random) -> bool:
        try:
            message = link_pb2.Upward.FromString(frames[0] if frames else b"\xff")
            payloads = unpack(frames[1:], message.report.payloads)
            check_report(message.report)
        except (DecodeError, MalformedFramesError):
            return False
        report = message.report
        _in_range(payloads, report.payloads, [group.payload for p in report.partials for group in p.groups])
        assert len(report.answer_sessions) == len(report.answer_tags) <= len(payloads)
        link = self._link
        self._now += 0.01
        if message.sequence and rng.random() < 0.7:
            message.sequence = self._next  # in order, as it mostly is
        if rng.random() < 0.7:
            message.handshake = self._handshake
        if message.HasField("hello") and link.refuses(message.hello) is not None:
            return False
        events = link.received(message, self._now)
        if any(isinstance(event, Greeted) for event in events):
            self._next = 1
            self._handshake = message.hello.handshake
        elif events and message.sequence == self._next:
            self._next += 1
        link.orders(link_pb2.Orders(end_sessions=[1]), [])
        link.tick(self._now)
        for frame in link.out:
            link_pb2.Downward.FromString(bytes(frame[0]))
        link.out.clear()
        if link.state is DownlinkState.GONE:
            self.begin()
        return bool(events)


class Downward(Target):
    """What a worker hears from the coordinator: manager/worker.py."""

    name = "downward"
    corpus = corpus.DOWNWARD
    favourite = 1

    def begin(self) -> None:
        self._now = 0.0
        self._link = uplink.Uplink(grace=30.0, now=0.0)
        self._link.tick(link_pb2.Heartbeat(), 0.0)
        self._link.hello(link_pb2.Hello(incarnation=1))
        self._handshake = 0
        self._welcome(self._link)

    def _welcome(self, link: uplink.Uplink) -> None:
        self._next = 1
        self._handshake += 1
        welcome = link_pb2.Welcome(
            version=uplink.LINK_VERSION, heartbeat_seconds=0.5, grace_seconds=30.0, handshake=self._handshake
        )
        link.received(link_pb2.Downward(epoch=7, welcome=welcome), self._now)

    def read(self, frames: Frames, rng: random.Random) -> bool:
        try:
            message = link_pb2.Downward.FromString(frames[0] if frames else b"\xff")
            payloads = unpack(frames[1:], message.orders.payloads)
            check_orders(message.orders)
        except (DecodeError, MalformedFramesError):
            return False
        orders = message.orders
        indices = [*orders.instruct_payloads, *(broadcast.payload for broadcast in orders.broadcasts)]
        _in_range(payloads, orders.payloads, indices)
        link = self._link
        self._now += 0.01
        if rng.random() < 0.7:
            message.epoch = link.epoch
        if rng.random() < 0.7:
            message.handshake = self._handshake
        if message.sequence and rng.random() < 0.7:
            message.sequence = self._next
        effects = [*link.received(message, self._now), *link.tick(link_pb2.Heartbeat(), self._now)]
        for effect in effects:
            if isinstance(effect, uplink.Greet):
                link.hello(link_pb2.Hello(incarnation=1))
                self._welcome(link)
            elif isinstance(effect, uplink.Obey | uplink.Drain) and message.sequence == self._next:
                self._next += 1
        if link.state is uplink.State.OPEN:
            link.report(link_pb2.Report(end_sessions=[1]), [])
        for frame in link.out:
            link_pb2.Upward.FromString(bytes(frame[0]))
        link.out.clear()
        if link.state is uplink.State.CLOSED:
            self.begin()
        return bool(effects)


def _in_range(payloads: Sequence[Any], header: link_pb2.Payloads, indices: Sequence[int]) -> None:
    """What the shells rely upon once a message has been let through."""
    assert len(payloads) == len(header.sizes)
    for payload, size in zip(payloads, header.sizes, strict=True):
        assert (payload.size if isinstance(payload, Shared) else len(payload)) == size
    assert all(0 <= index < len(payloads) for index in indices)


def _participants() -> list[tuple[Message, list[bytes]]]:
    return [(message, []) for message in corpus.PARTICIPANTS]


class Participant(Target):
    """What a manager reads from a participant's stream: manager/serving/servicer.py."""

    name = "participant"
    corpus = _participants()

    def begin(self) -> None:
        self._session = Session()
        self._session.received(Kind.HELLO)
        self._assembler: Assembler[bytes] = Assembler(in_memory)

    def read(self, frames: Frames, rng: random.Random) -> bool:
        if rng.random() < 0.5:
            self._session.instructed()
        try:
            for data in frames:
                self._receive(data)
        except (MalformedMessageError, BreachError):  # it ends the stream
            self.begin()
            return False
        if self._session.state is SessionState.ENDED:
            self.begin()
        return True

    def _receive(self, data: bytes) -> None:
        kind = kind_of(data)
        assert kind_of(data[:6], len(data)) is kind
        if kind is Kind.CHUNK:
            whole = self._assembler.add(*read_chunk(data))
            if whole is None:
                return
            data, kind = whole, kind_of(whole)
        if kind is Kind.HELLO:
            try:
                stream_pb2.ParticipantMessage.FromString(data)
            except DecodeError:
                return
        if self._session.received(kind) is Action.ANSWER:
            answer = bytes(view_of(checked(data, kind)))
            stream_pb2.ParticipantMessage.FromString(answer)  # what reaches a caller can be read


class Results(Target):
    """Results read and folded in: manager/serving/folding.py, by each of the built-in reducers."""

    name = "results"
    corpus = _participants()[:3]

    def feed(self, frames: Frames, rng: random.Random) -> bool:
        with mock.patch.object(parsing, "_SMALL", -1):  # so that all is walked, whatever its size
            return super().feed(frames, rng)

    def begin(self) -> None:
        names = ("sum", "mean", "weighted_mean", "min", "max")
        self._batches = [Batch(1, 1, lambda name=name: make_reducer(name, {}, ())) for name in names]  # type: ignore[misc]
        self._session = 0

    def read(self, frames: Frames, rng: random.Random) -> bool:
        data = b"".join(frames)
        try:
            accepted = _agrees(data)
            result, tensors = read_result(data)
            metrics = from_scalars(result.metrics)
        except (MalformedMessageError, TensorError, ScalarError):
            return False
        assert accepted
        folded = False
        for batch in self._batches:
            self._session += 1
            try:
                batch.fold(self._session, Contribution(tensors, metrics, result.weight))
            except RefusedError:
                continue
            batch.folded(self._session, len(data))
            folded = True
        if rng.random() < 0.01:
            for batch in self._batches:
                for _, _, state in batch.partial().groups:
                    decode(encode(state))
        return folded


def _agrees(data: bytes) -> bool:
    """Whether protobuf can read it; the walk must say the same."""
    try:
        message = stream_pb2.ParticipantMessage.FromString(data)
    except DecodeError:
        message = None
    try:
        check_result(data)
    except MalformedMessageError:
        assert message is None, "protobuf reads what the walk refuses"
        return False
    assert message is not None, "the walk lets through what protobuf refuses"
    return True


class Handed(Target):
    """What a participant reads from a manager, and what its handler is given: participant_sdk."""

    name = "handed"
    corpus = [(message, []) for message in corpus.SERVERS]  # noqa: RUF012 - of the class

    address = "127.0.0.1:1"

    def begin(self) -> None:
        self._error: ProtocolError | None = None
        make: Any = in_one_buffer if self._age // LIFE % 2 else in_memory
        self._assembler: Assembler[bytes | memoryview] = Assembler(make)
        self._life = Lifecycle("h:1", random=random.Random(self._age).random)
        self._wait = True
        self._busy = False
        self._now = 0.0

    def read(self, frames: Frames, rng: random.Random) -> bool:
        received = None
        try:
            for frame in frames:
                received = Stream._whole(self, frame)  # type: ignore[arg-type] # all of a Stream that it needs
        except ProtocolError as error:
            self._assembler = Assembler(in_memory)
            self._step(Ended(error))
            return False
        if received is None:
            return True
        self._check(frames[-1], received)
        self._step(Received(received))
        handlers.answer(dict, received, threading.Event())  # type: ignore[arg-type] # reads it, and fails
        if rng.random() < 0.3:
            self._anything(rng)
        return True

    def _check(self, data: bytes, received: ReceivedMessage) -> None:
        """Sliced, it must be the same as parsed."""
        if data[:1] != b"\x0a" or received.message.WhichOneof("kind") != "instruction":
            return
        buffer = np.frombuffer(data, np.uint8).copy().data
        try:
            arrays, payload = ReceivedMessage.sliced(buffer).take_bulk()
        except TensorError:
            arrays, payload = {}, b""
            try:
                to_arrays(received.message.instruction.tensors)
            except TensorError:
                return
            raise AssertionError("sliced, it is refused") from None
        expected = to_arrays(received.message.instruction.tensors)
        assert {n: (a.shape, a.tobytes()) for n, a in arrays.items()} == {
            n: (a.shape, a.tobytes()) for n, a in expected.items()
        }
        assert payload == received.message.instruction.payload

    def _step(self, event: lifecycle.Event) -> None:
        self._now += 0.1
        for effect in self._life.handle(event, self._now):
            if isinstance(effect, Wait):
                assert effect.seconds >= 0
                self._wait = True
            elif isinstance(effect, Perform):
                self._busy = True
        if self._life.state is lifecycle.State.DONE:
            self.begin()
        elif self._wait and self._life.state is lifecycle.State.WAITING:
            self._wait = False
            self._step(Due())

    def _anything(self, rng: random.Random) -> None:
        """Another event that may come."""
        if self._busy and rng.random() < 0.7:
            self._busy = False
            self._step(Answered(b""))
        elif rng.random() < 0.1:
            self._step(Stop())
        else:
            self._step(Ended(ConnectionClosed("it broke", "try again")))


TARGETS: list[Callable[[], Target]] = [Upward, Downward, Participant, Results, Handed]
