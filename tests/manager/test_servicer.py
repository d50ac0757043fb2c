"""What becomes of streams: who is admitted, who is moved, and how those end that keep others waiting.

Without a socket: a stream is a queue of messages, and a context that takes note.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from manager.access.identity import Identity
from manager.limits import Limits
from manager.payloads.blobs import Payload, view_of
from manager.reducing.arithmetic import ResultBatch
from manager.serving.incoming import LEAST_CHUNK, MAX_HELLO
from manager.serving.refused import Cause
from manager.serving.servicer import SILENT_TIME, Servicer
from manager.serving.stream import Stream
from manager.serving.turns import LONG, TAKES_LONG, Turns
from manager.serving.verdicts import LEAVE_TIMEOUT, EndReason
from protos import messages, stream_pb2
from protos.chunks import CHUNK_SIZE, Pieces
from protos.envelope import Kind
from tests.manager.support import LoopClock, TurnWatch, settled

FILES = 1024
LEAVE = stream_pb2.ParticipantMessage(leave=stream_pb2.Leave()).SerializeToString()
INSTRUCTION = messages.instruction("train").SerializeToString()
MiB = 1024**2


class Sink:
    """Who is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.joins: dict[int, Stream] = {}

    def when_heard(self, callback: Callable[[], None]) -> None:
        callback()

    def joined(self, stream: Stream, hello: stream_pb2.Hello) -> None:
        self.joins[stream.id] = stream
        self.events.append(("joined", stream.id))

    def answered(self, stream: Stream, answer: Payload, kind: Kind) -> None:
        self.events.append(("answered", stream.id, kind, bytes(view_of(answer))))

    def ended(self, stream: Stream, reason: EndReason.ValueType) -> None:
        self.events.append(("ended", stream.id, EndReason.Name(reason)))


class Context:
    """The server's end of one stream."""

    def __init__(
        self, peer: str = "ipv4:127.0.0.1:1", metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> None:
        self._peer = peer
        self._metadata = metadata
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[stream_pb2.ServerMessage] = []
        self.status: tuple[grpc.StatusCode, str] = (grpc.StatusCode.OK, "")

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._metadata

    async def read(self) -> Any:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        self.written.append(stream_pb2.ServerMessage.FromString(data))

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        self.status = (code, text)
        raise grpc.aio.AbortError("as asked")


class Participant:
    """What a participant does, said by the test."""

    def __init__(self, servicer: Servicer, identity: Identity | None = None, **context: Any) -> None:
        self.context = Context(**context)
        self.task = asyncio.ensure_future(servicer.connect(None, self.context, identity))  # type: ignore[arg-type]

    def say(self, *data: bytes) -> None:
        for each in data:
            self.context.incoming.put_nowait(each)

    def hello(self, name: str = "", **fields: Any) -> None:
        hello = stream_pb2.Hello(participant_id=name, **fields)
        self.say(stream_pb2.ParticipantMessage(hello=hello).SerializeToString())

    def half_close(self) -> None:
        self.context.incoming.put_nowait(grpc.aio.EOF)

    def told_to_go(self) -> bool:
        return self.reconnect is not None

    @property
    def reconnect(self) -> stream_pb2.Reconnect | None:
        for message in self.context.written:
            if message.HasField("reconnect"):
                return message.reconnect
        return None

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended."""
        await asyncio.gather(self.task, return_exceptions=True)
        return self.context.status


class Served:
    """A servicer, its sink, and the participants that come."""

    def __init__(self, files: int = FILES, **limits: Any) -> None:
        self.sink = Sink()
        self.servicer = Servicer(self.sink, Limits(**limits), files)
        self.participants: list[Participant] = []

    def participant(self, identity: Identity | None = None, **context: Any) -> Participant:
        participant = Participant(self.servicer, identity, **context)
        self.participants.append(participant)
        return participant

    async def joined(
        self, name: str = "", identity: Identity | None = None, **context: Any
    ) -> tuple[Participant, Stream]:
        participant = self.participant(identity, **context)
        participant.hello(name)
        await settled()
        return participant, list(self.sink.joins.values())[-1]

    async def close(self) -> None:
        for participant in self.participants:
            participant.task.cancel()
        await asyncio.gather(*(each.task for each in self.participants), return_exceptions=True)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of those whose time is up; the others' must not be, however busy the machine is."""
    monkeypatch.setattr("manager.serving.overdue.INTERVAL", 0.02)
    monkeypatch.setattr("manager.serving.servicer.LEAVE_TIMEOUT", 0.2)
    monkeypatch.setattr("manager.serving.servicer.CHUNK_TIMEOUT", 0.2)


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await test(*args, **kwargs)

        asyncio.run(limited())

    return run


def chunk(data: bytes, total: int = 0) -> bytes:
    message = stream_pb2.Chunk(total_size=total, data=data)
    return stream_pb2.ParticipantMessage(chunk=message).SerializeToString()


# Admission


@on_a_loop
async def test_those_for_whom_there_is_no_room_are_told_to_come_back_and_nobody_hears_of_them() -> None:
    served = Served(max_per_worker=2, come_back=(3, 5))
    for number in range(5):
        served.participant().hello(f"p{number}")
    await settled()
    assert len(served.servicer.streams) == 2
    assert [event[0] for event in served.sink.events] == ["joined", "joined"]
    told = [participant.reconnect for participant in served.participants]
    assert told[:2] == [None, None]
    assert all(each is not None and 3 <= each.delay_seconds <= 5 for each in told[2:])
    assert served.servicer.refused == {Cause.MAX_PER_WORKER: 3}
    away = served.participants[-1]
    away.say(LEAVE)
    away.half_close()
    assert await away.status() == (grpc.StatusCode.OK, "")
    assert served.servicer.refused == {Cause.MAX_PER_WORKER: 3}
    assert len(served.sink.events) == 2
    await served.close()


@on_a_loop
async def test_when_one_leaves_there_is_room_for_another() -> None:
    served = Served(max_per_worker=1)
    first, _ = await served.joined()
    second = served.participant()
    second.hello()
    await settled()
    assert second.reconnect is not None
    first.say(LEAVE)
    first.half_close()
    await settled()
    third, stream = await served.joined()
    assert third.reconnect is None
    assert list(served.servicer.streams) == [stream.id]
    await served.close()


@on_a_loop
async def test_more_than_may_join_per_second_are_told_to_come_back_one_after_the_other() -> None:
    LoopClock()  # places are points in time: none passes between two of them
    served = Served(max_joins=5)
    for _ in range(15 + 15):
        served.participant().say(b"")
    await settled()
    assert len(served.servicer.streams) == 15
    delays = [each.reconnect.delay_seconds for each in served.participants if each.reconnect is not None]
    assert len(delays) == 15
    assert delays == sorted(delays)
    assert 0.4 <= delays[0] < 0.6
    assert 3.2 <= delays[-1] < 3.4
    await served.close()


@on_a_loop
async def test_where_there_is_no_room_for_a_stream_it_is_told_so_before_it_says_anything() -> None:
    clock = LoopClock()
    served = Served(files=200, come_back=(3, 5))
    for _ in range(served.servicer._room.streams):
        served.participant()
    await settled()
    late = served.participant()
    await clock.passes(LEAVE_TIMEOUT + 0.1)
    assert late.task.done()
    code, text = await late.status()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "as many as there may be" in text
    assert late.reconnect is not None
    assert 3 <= late.reconnect.delay_seconds <= 5
    await clock.passes(SILENT_TIME)
    first = served.participants[0]
    newcomer, _ = await served.joined()
    assert newcomer.reconnect is None
    assert (await first.status())[0] is grpc.StatusCode.UNAVAILABLE, "it said nothing, and kept others out"
    assert served.servicer.refused[Cause.SILENT] == 1
    assert not any(each.task.done() for each in served.participants[1:-2])
    await served.close()
    assert not served.servicer._open
    assert not served.servicer._silent


@pytest.mark.usefixtures("soon")
@on_a_loop
async def test_who_says_nothing_in_time_is_ended_and_counted_and_who_says_hello_may_be_idle() -> None:
    served = Served(hello_timeout=0.1)
    talker, _ = await served.joined("talker")
    silent = served.participant()
    code, text = await silent.status()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert text == "no first message came in 0.1 s; connect again, and say hello"
    assert served.servicer.refused == {Cause.HELLO_TIMEOUT: 1}
    assert not talker.task.done()
    await served.close()


@on_a_loop
async def test_streams_above_those_of_one_address_are_told_to_come_back_and_then_just_ended() -> None:
    served = Served(max_per_address=2, come_back=(3, 5))
    crowd = [served.participant(peer=f"ipv4:10.0.0.1:{port}") for port in range(8)]
    others = [served.participant(peer=peer) for peer in ("ipv4:10.0.0.2:1", *["ipv4:127.0.0.1:1"] * 9)]
    for each in [*crowd, *others]:
        each.hello()
    await settled()
    assert len(served.servicer.streams) == 2 + len(others)
    told = [each.reconnect for each in crowd]
    assert told[:2] == [None, None]
    assert all(each is not None and 3 <= each.delay_seconds <= 5 for each in told[2:4])
    assert told[4:] == [None] * 4
    for each in crowd[4:]:
        code, text = await each.status()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 2 streams are from one address (--max-per-address); come back in" in text
    assert served.servicer.refused == {Cause.MAX_PER_ADDRESS: 6}
    for each in crowd[2:4]:
        each.half_close()
    crowd[0].say(LEAVE)
    crowd[0].half_close()
    assert await crowd[0].status() == (grpc.StatusCode.OK, "")
    later, _ = await served.joined(peer="ipv4:10.0.0.1:99")
    assert later.reconnect is None
    await served.close()
    assert not len(served.servicer.crowds)
    assert served.servicer.refused == {Cause.MAX_PER_ADDRESS: 6}


# Credentials


@on_a_loop
async def test_a_participant_is_who_its_credentials_say() -> None:
    served = Served()
    for name in ("", "a"):
        _, stream = await served.joined(name, Identity("a"))
        assert stream.hello is not None
        assert stream.hello.participant_id == "a"
    assert not served.servicer.refused
    await served.close()


@on_a_loop
async def test_who_claims_to_be_another_is_never_pooled(caplog: pytest.LogCaptureFixture) -> None:
    served = Served()
    impostor = served.participant(Identity("a", b"digest"))
    impostor.hello("b")
    code, text = await impostor.status()
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text.startswith("the hello names b, but the credentials are those of a")
    assert served.sink.events == []
    assert served.servicer.refused == {Cause.CREDENTIALS: 1}
    assert "ended the stream of a participant at" in caplog.text


@on_a_loop
async def test_revoking_ends_the_streams_of_that_identity_whatever_they_do() -> None:
    served = Served()
    revoked, kept = Identity("a", b"1"), Identity("a", b"2")
    idle, idle_stream = await served.joined(identity=revoked)
    busy, stream = await served.joined(identity=revoked)
    assert stream.instruct(7, [INSTRUCTION])
    silent = served.participant(revoked)
    going, moved = await served.joined(identity=revoked)
    assert served.servicer.move(moved.id, 1.0)
    stays, _ = await served.joined(identity=kept)
    unknown, _ = await served.joined()
    await settled()
    served.servicer.revoke(lambda identity: identity is kept)
    for each in (idle, busy, silent, going):
        assert await each.status() == (
            grpc.StatusCode.UNAUTHENTICATED,
            "the token of this participant has been revoked",
        )
    await settled()
    ended = [event for event in served.sink.events if event[0] == "ended"]
    assert ended[0] == ("ended", moved.id, "MOVED")
    assert sorted(ended[1:]) == [("ended", idle_stream.id, "LOST"), ("ended", stream.id, "LOST")]
    assert not stays.task.done()
    assert not unknown.task.done()
    assert served.servicer.refused == {Cause.CREDENTIALS: 4}
    served.servicer.revoke(lambda identity: identity is kept)
    await served.close()
    assert served.servicer.refused == {Cause.CREDENTIALS: 4}


# Moves


@on_a_loop
async def test_an_idle_participant_can_be_moved() -> None:
    served = Served()
    participant, stream = await served.joined()
    assert served.servicer.move(stream.id, 0.7, "[::1]:7")
    await settled()
    assert served.sink.events[1:] == [("ended", stream.id, "MOVED")]
    assert participant.reconnect == stream_pb2.Reconnect(
        delay_seconds=participant.reconnect.delay_seconds if participant.reconnect else 0, address="[::1]:7"
    )
    assert participant.reconnect.delay_seconds == pytest.approx(0.7)
    assert not stream.instruct(1, [INSTRUCTION]), "an instruction that crosses it was given after all"
    assert not served.servicer.move(stream.id, 0.7), "it was moved twice"
    participant.say(LEAVE)
    participant.half_close()
    assert await participant.status() == (grpc.StatusCode.OK, "")
    assert served.sink.events[1:] == [("ended", stream.id, "MOVED")]


@on_a_loop
async def test_one_at_work_is_not_moved_and_answers() -> None:
    served = Served()
    participant, stream = await served.joined()
    assert stream.instruct(1, [INSTRUCTION])
    assert not served.servicer.move(stream.id, 0.7)
    participant.say(b"")
    await settled()
    assert served.sink.events[1:] == [("answered", stream.id, Kind.EMPTY, b"")]
    assert participant.reconnect is None
    assert not served.servicer.move(99, 0.7)
    await served.close()


@on_a_loop
async def test_one_whose_answer_is_still_being_folded_in_is_not_moved_before_that_is_done() -> None:
    served = Served()
    participant, stream = await served.joined()
    stream.folding = cast(ResultBatch, object())
    assert not served.servicer.move(stream.id, 0.7)
    served.servicer.drain()
    await settled()
    assert not participant.told_to_go()
    stream.folding = None
    served.servicer.folded(stream)
    await settled()
    assert participant.told_to_go()
    assert served.servicer.drained.is_set()
    await served.close()


@on_a_loop
async def test_whoever_drains_sends_participants_off_over_a_time_that_fits_their_number() -> None:
    served = Served(files=20_000, max_joins=10_000)
    for _ in range(3000):
        served.participant().say(b"")
    await settled()
    assert len(served.servicer.streams) == 3000
    stream = served.servicer.streams[1]
    assert stream.instruct(1, [INSTRUCTION])
    began = time.monotonic()
    served.servicer.drain()
    assert not served.servicer.drained.is_set()
    served.participants[0].say(b"")
    await settled()
    assert served.servicer.drained.is_set()
    took = time.monotonic() - began  # from the first to the last of them
    delays = [each.reconnect.delay_seconds for each in served.participants if each.reconnect is not None]
    assert len(delays) == 3000
    assert 0.25 <= min(delays) < 0.8
    assert max(delays) + took > 3.2
    assert max(delays) <= 3.75
    ends = [event for event in served.sink.events if event[0] == "ended"]
    assert {event[2] for event in ends} == {"MOVED"}
    assert len({event[1] for event in ends}) == 3000
    assert not served.servicer.refused
    await served.close()


# Those who won't go, or stand still


@pytest.mark.usefixtures("soon")
@on_a_loop
async def test_one_that_is_told_to_go_and_stays_is_cut_off() -> None:
    served = Served()
    participant, stream = await served.joined()
    served.servicer.move(stream.id, 0.5)
    code, text = await participant.status()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "told to reconnect" in text
    assert [event for event in served.sink.events if event[0] == "ended"] == [("ended", stream.id, "MOVED")]
    assert served.servicer.refused == {Cause.STAYED: 1}


@pytest.mark.usefixtures("soon")
@on_a_loop
async def test_one_that_says_again_and_again_that_it_leaves_has_to_go_as_well() -> None:
    served = Served()
    participant, stream = await served.joined()

    async def linger() -> None:
        while True:
            participant.say(LEAVE)
            await asyncio.sleep(0.01)

    lingering = asyncio.ensure_future(linger())
    code, text = await participant.status()
    lingering.cancel()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "took its leave" in text
    assert served.sink.events[1:] == [("ended", stream.id, "LEFT")]


@pytest.mark.usefixtures("soon")
@on_a_loop
async def test_half_a_message_and_then_silence_ends_the_stream_and_frees_what_came() -> None:
    served = Served()
    participant, stream = await served.joined()
    stream.instruct(1, [INSTRUCTION])
    free = served.servicer._spool.free
    participant.say(chunk(bytes(CHUNK_SIZE), total=8 * MiB))
    await settled()
    assert served.servicer._spool.free == free - 8 * MiB
    code, text = await participant.status()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing more of it came" in text
    gc.collect()
    await settled()
    assert served.servicer._spool.free == free
    assert served.sink.events[1:] == [("ended", stream.id, "VIOLATION")]
    assert served.servicer.refused == {Cause.STALLED: 1}


@pytest.mark.usefixtures("soon")
@on_a_loop
async def test_a_slow_message_has_all_the_time_it_needs_as_long_as_it_moves() -> None:
    clock = LoopClock()
    served = Served()
    participant, stream = await served.joined()
    stream.instruct(1, [INSTRUCTION])
    data = messages.result(payload=bytes(2 * MiB)).SerializeToString()
    pieces = list(Pieces(data, stream_pb2.ParticipantMessage))
    for piece in pieces:
        participant.say(piece)
        await clock.passes(0.15)  # much more in all than there may be between two of them
    assert served.sink.events[1:] == [("answered", stream.id, Kind.RESULT, data)]
    await clock.passes(1.0)  # idle for as long as it likes
    assert not participant.task.done()
    assert len(served.servicer._overdue) == 0
    await served.close()


# Many answers at once


@on_a_loop
async def test_large_answers_that_are_there_at_once_take_turns_and_small_ones_do_not_wait_for_them() -> None:
    clock, time = LoopClock(), asyncio.get_running_loop().time
    served = Served()
    served.servicer._turns = Turns(time)
    take = served.sink.answered

    def take_long(stream: Stream, answer: Payload, kind: Kind) -> None:
        take(stream, answer, kind)
        clock.jump(LONG / 4 if len(answer) > TAKES_LONG else 0)

    served.sink.answered = take_long  # type: ignore[method-assign]
    streams = [(await served.joined())[1] for _ in range(60)]
    for stream in streams:
        assert stream.instruct(1, [INSTRUCTION])
    await settled()
    answered = len(served.sink.events)
    watch = TurnWatch(time)
    large = messages.result(payload=bytes(TAKES_LONG)).SerializeToString()
    for participant in served.participants[:50]:
        participant.say(large)
    for participant in served.participants[50:]:
        participant.say(b"")
    while len(served.sink.events) < answered + 60:  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)
    events = served.sink.events[answered:]
    assert watch.longest <= 2.5 * LONG
    assert [event[1] for event in events if event[2] is Kind.RESULT] == [each.id for each in streams[:50]]
    assert [event[2] for event in events[:15]].count(Kind.EMPTY) == 10
    await served.close()


# Messages that are too large or too small


@on_a_loop
async def test_an_answer_that_is_too_large_is_a_failure_that_says_so_and_is_not_read() -> None:
    served = Served(max_message=5 * MiB)
    participant, stream = await served.joined()
    stream.instruct(1, [INSTRUCTION])
    free = served.servicer._spool.free
    participant.say(chunk(bytes(4096), total=5 * MiB + 1))
    code, text = await participant.status()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text == "a message of 5242881 bytes is over the limit of 5242880 bytes (--max-message)"
    _, answered, ended = served.sink.events
    assert answered[:3] == ("answered", stream.id, Kind.FAILURE)
    failure = stream_pb2.ParticipantMessage.FromString(answered[3]).failure
    assert (failure.code, failure.text) == (stream_pb2.Failure.RESOURCE_EXHAUSTED, text)
    assert ended == ("ended", stream.id, "VIOLATION")
    assert served.servicer._spool.free == free
    assert served.servicer.refused == {Cause.MAX_MESSAGE: 1}


@on_a_loop
async def test_answers_have_the_memory_and_the_disk_that_they_may_have() -> None:
    served = Served(upload_memory=2 * MiB, upload_disk=3 * MiB)
    assert (served.servicer._spool.free, served.servicer._spool._disk) == (2 * MiB, 3 * MiB)


@on_a_loop
async def test_one_that_is_just_small_enough_is_read() -> None:
    data = messages.result(payload=bytes(5 * MiB)).SerializeToString()
    served = Served(max_message=len(data))
    participant, stream = await served.joined()
    stream.instruct(1, [INSTRUCTION])
    participant.say(*Pieces(data, stream_pb2.ParticipantMessage))
    await settled()
    await settled()
    assert served.sink.events[1:] == [("answered", stream.id, Kind.RESULT, data)]
    await served.close()


@on_a_loop
async def test_a_message_in_tiny_chunks_is_refused_at_the_first_of_them_but_its_own_first() -> None:
    served = Served()
    participant, stream = await served.joined()
    stream.instruct(1, [INSTRUCTION])
    participant.say(chunk(b"\x12", total=1_000_000))
    await settled()
    assert not participant.task.done(), "the first may be small"
    participant.say(chunk(bytes(LEAST_CHUNK)))
    await settled()
    assert not participant.task.done()
    participant.say(chunk(bytes(LEAST_CHUNK - 1)))
    code, text = await participant.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"a chunk of {LEAST_CHUNK - 1} bytes" in text


@on_a_loop
async def test_a_first_message_that_is_too_large_is_refused() -> None:
    served = Served()
    participant = served.participant()
    participant.hello("p", attributes={"key": "v" * MAX_HELLO})
    code, text = await participant.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"it may have {MAX_HELLO} at most" in text
    assert served.sink.events == []


# The log


@on_a_loop
async def test_a_thousand_breaches_take_a_line_of_the_log_and_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    served = Served(files=20_000)
    for _ in range(1000):
        served.participant().say(b"\xff" * 10)
    for participant in served.participants:
        assert (await participant.status())[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert served.servicer.refused == {Cause.PROTOCOL: 1000}
    assert len(caplog.messages) == 1
