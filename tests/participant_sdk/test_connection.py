"""consume and dispatch, blocking and in asyncio, against a scripted coordinator.

Each test is written once, for asyncio; the blocking connection is put behind the same two awaitables.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import grpc
import pytest

from participant_sdk import (
    AddressError,
    ConnectionClosed,
    ConnectionLost,
    ParticipantError,
    ProtocolError,
    Reconnect,
    Rejected,
    aio,
    client,
)
from participant_sdk.stream import Stream
from protos import stream_pb2
from protos.chunks import WHOLE_SIZE
from protos.messages import instruction, result
from tests.participant_sdk.support import PATIENCE, Forever, Peer, ScriptedCoordinator

EMPTY = stream_pb2.ParticipantMessage()

Consume: TypeAlias = Callable[[], Awaitable[stream_pb2.ServerMessage]]
Dispatch: TypeAlias = Callable[[stream_pb2.ParticipantMessage], Awaitable[None]]
Open: TypeAlias = Callable[..., Any]


@asynccontextmanager
async def blocking(address: str, **options: Any) -> AsyncIterator[tuple[Consume, Dispatch]]:
    connection = client.connection(address, **options)
    await asyncio.to_thread(connection.__enter__)
    consume, dispatch = connection
    try:
        yield lambda: asyncio.to_thread(consume), lambda message: asyncio.to_thread(dispatch, message)
    finally:
        await asyncio.to_thread(connection.__exit__, None, None, None)


@pytest.fixture(params=[blocking, aio.connection], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Open:
    opener: Open = request.param
    return opener


def run(scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario, 3 * PATIENCE)

    asyncio.run(bounded())


def test_instructions_and_answers_alternate_until_it_leaves(connect: Open) -> None:
    async def script(peer: Peer) -> None:
        assert await peer.receive() == EMPTY
        for weight in (1.0, 2.0):
            assert await peer.ask("train", config={"weight": weight}) == result(weight=weight)
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                for _ in range(2):
                    message = await consume()
                    await dispatch(result(weight=message.instruction.config["weight"].float_value))

    run(scenario())


def test_an_empty_message_passes_unchanged(connect: Open) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(stream_pb2.ServerMessage())
        assert await peer.receive() == EMPTY
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                assert await consume() == stream_pb2.ServerMessage()
                await dispatch(EMPTY)

    run(scenario())


def test_an_id_and_attributes_turn_an_empty_first_message_into_a_hello(connect: Open) -> None:
    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        assert (hello.participant_id, dict(hello.attributes)) == ("edge-7", {"region": "eu"})
        assert hello.sdk_version.startswith("muster-python/")
        assert not hello.accepts_cancel
        await peer.send(instruction("x"))
        assert await peer.receive() == EMPTY
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            options = {"participant_id": "edge-7", "attributes": {"region": "eu"}}
            async with connect(coordinator.address, **options) as (consume, dispatch):
                await dispatch(EMPTY)
                await consume()
                await dispatch(EMPTY)

    run(scenario())


def test_a_hello_of_the_callers_own_is_sent_as_it_is(connect: Open) -> None:
    own = stream_pb2.ParticipantMessage(hello=stream_pb2.Hello(participant_id="own", accepts_cancel=True))

    async def script(peer: Peer) -> None:
        assert await peer.receive() == own
        await peer.send(stream_pb2.ServerMessage(cancel=stream_pb2.Cancel()))
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address, participant_id="other") as (consume, dispatch):
                await dispatch(own)
                assert (await consume()).WhichOneof("kind") == "cancel"

    run(scenario())


@pytest.mark.parametrize("size", [WHOLE_SIZE - 100, WHOLE_SIZE + 1, 5 * WHOLE_SIZE + 3])
def test_messages_of_any_size_pass(connect: Open, size: int) -> None:
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]

    async def script(peer: Peer) -> None:
        await peer.receive()
        before = peer.frames_received
        assert (await peer.ask("echo", payload=payload)).result.payload == payload
        assert (peer.frames_received - before > 1) == (size > WHOLE_SIZE)
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                await dispatch(result(payload=(await consume()).instruction.payload))

    run(scenario())


@pytest.mark.parametrize(("address", "there"), [("", True), ("other:2", False)])
def test_an_order_to_reconnect_is_raised(connect: Open, address: str, there: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        order = stream_pb2.Reconnect(delay_seconds=1.5, address=address)
        await peer.send(stream_pb2.ServerMessage(reconnect=order))
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                with pytest.raises(Reconnect) as caught:
                    await consume()
            assert caught.value.delay_seconds == 1.5
            assert caught.value.address == (coordinator.address if there else address)

    run(scenario())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.OK, ConnectionClosed),
        (grpc.StatusCode.FAILED_PRECONDITION, ProtocolError),
        (grpc.StatusCode.ALREADY_EXISTS, Rejected),
        (grpc.StatusCode.UNAVAILABLE, ConnectionLost),
        (grpc.StatusCode.CANCELLED, ConnectionLost),
    ],
    ids=str,
)
def test_how_the_stream_ends_is_raised_from_then_on(
    connect: Open, code: grpc.StatusCode, kind: type[ParticipantError]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        if code is not grpc.StatusCode.OK:
            await peer.end(code, "because of this")

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                for _ in range(2):
                    with pytest.raises(kind) as caught:
                        await consume()
                with pytest.raises(kind):
                    await dispatch(EMPTY)
        if code is not grpc.StatusCode.OK:
            assert "because of this" in str(caught.value)

    run(scenario())


def test_a_message_out_of_turn_brings_the_coordinators_words(connect: Open) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.receive()
        await peer.end(grpc.StatusCode.FAILED_PRECONDITION, "the server speaks next")

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                with pytest.raises(ProtocolError, match="the server speaks next"):  # noqa: PT012
                    await dispatch(EMPTY)
                    await consume()

    run(scenario())


def test_words_of_the_coordinator_survive_a_write_that_fails(connect: Open) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.end(grpc.StatusCode.FAILED_PRECONDITION, "the server speaks next")

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (_, dispatch):
                with pytest.raises(ProtocolError, match="the server speaks next"):  # noqa: PT012
                    while True:
                        await dispatch(result(payload=b"x" * 3 * WHOLE_SIZE))

    run(scenario())


def test_nobody_there(connect: Open) -> None:
    async def scenario() -> None:
        async with connect("127.0.0.1:1") as (consume, dispatch):
            with pytest.raises(ConnectionLost, match=r"can't reach the coordinator at 127\.0\.0\.1:1"):
                await dispatch(EMPTY)
            with pytest.raises(ConnectionLost):
                await consume()

    run(scenario())


def test_a_coordinator_that_dies(connect: Open) -> None:
    forever = Forever()

    async def scenario() -> None:
        with ScriptedCoordinator(forever) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                waiting = asyncio.ensure_future(consume())
                assert await asyncio.to_thread(forever.began.wait, PATIENCE)
                await asyncio.to_thread(coordinator.kill)
                with pytest.raises(ConnectionLost):
                    await waiting

    run(scenario())


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff\xff\xff"],
        [b"\x22\x02\x12\x00"],  # a chunk without a size
        [stream_pb2.ServerMessage(chunk=stream_pb2.Chunk(total_size=9, data=b"a")).SerializeToString(), b""],
        [
            stream_pb2.ServerMessage(
                chunk=stream_pb2.Chunk(total_size=2, data=b"\xff\xff")
            ).SerializeToString()
        ],
        [
            stream_pb2.ServerMessage(
                chunk=stream_pb2.Chunk(total_size=2, data=b"\x22\x00")
            ).SerializeToString()
        ],
    ],
    ids=["garbage", "no size", "interleaved", "garbage in chunks", "chunks in chunks"],
)
def test_what_can_not_be_read_is_a_protocol_error(connect: Open, frames: list[bytes]) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        for frame in frames:
            await peer.send_raw(frame)
        await peer.expect_end()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                with pytest.raises(ProtocolError, match="sent what can't be read"):
                    await consume()

    run(scenario())


def test_without_a_first_message_there_is_no_goodbye(connect: Open) -> None:
    said: list[stream_pb2.ParticipantMessage] = []

    async def script(peer: Peer) -> None:
        with suppress(StopAsyncIteration):
            said.append(await peer.receive())

    async def scenario() -> None:
        scripted = ScriptedCoordinator(script)
        scripted._all_done.set()  # it may never hear of the stream
        with scripted as coordinator:
            async with connect(coordinator.address):
                pass
        assert said == []

    run(scenario())


def test_a_leave_of_the_callers_own_is_the_last_word(connect: Open) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        assert (await peer.expect_leave()).leave.reason == "battery"

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (_, dispatch):
                await dispatch(EMPTY)
                await dispatch(stream_pb2.ParticipantMessage(leave=stream_pb2.Leave(reason="battery")))

    run(scenario())


def test_mistakes_are_told_at_once(connect: Open) -> None:
    with pytest.raises(AddressError):
        aio.connection("nowhere")
    with pytest.raises(AddressError):
        client.connection("nowhere")
    with pytest.raises(TypeError, match="attribute 'cores'=4"):
        client.connection("host:1", attributes={"cores": 4})  # type: ignore[dict-item]

    async def scenario() -> None:
        async with connect("127.0.0.1:1") as (consume, dispatch):
            with pytest.raises(TypeError, match="not dict"):
                await dispatch({})
        with pytest.raises(ConnectionClosed, match="isn't open"):
            await consume()

    run(scenario())


class Begun:
    """Tells when a stream first does this."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, times: int = 1) -> None:
        do = getattr(Stream, method)
        self._times = times
        self._event = threading.Event()

        def begin(*arguments: Any) -> Any:
            self._times -= 1
            if self._times == 0:
                self._event.set()
            return do(*arguments)

        monkeypatch.setattr(Stream, method, begin)

    async def __call__(self) -> None:
        assert await asyncio.to_thread(self._event.wait, PATIENCE)


@pytest.mark.parametrize("speaks", [True, False])
def test_who_waits_in_consume_is_told_that_the_connection_was_closed(
    connect: Open, speaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than cancelled, which it was not."""
    both_wait = Begun(monkeypatch, "read", times=2)

    async def script(peer: Peer) -> None:
        with suppress(StopAsyncIteration):
            await peer.receive()
            await peer.expect_leave()

    async def scenario() -> None:
        scripted = ScriptedCoordinator(script)
        if not speaks:
            scripted._all_done.set()  # it may never hear of the stream
        with scripted as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):
                if speaks:
                    await dispatch(EMPTY)
                waiting = [asyncio.ensure_future(consume()) for _ in range(2)]
                await both_wait()
            for each in waiting:
                with pytest.raises(ConnectionClosed):
                    await each

    run(scenario())


def test_who_waits_in_dispatch_is_told_that_the_connection_was_closed(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("participant_sdk.stream.LEAVE_TIMEOUT", 0.05)
    both_written = Begun(monkeypatch, "write", times=2)

    async def scenario() -> None:
        with ScriptedCoordinator(Forever()) as coordinator:
            async with connect(coordinator.address) as (_, dispatch):
                await dispatch(EMPTY)
                large = result(payload=bytes(20 * WHOLE_SIZE))  # more than fits in between
                waiting = asyncio.ensure_future(dispatch(large))
                await both_written()
            with pytest.raises(ConnectionClosed):
                await waiting

    run(scenario())


def test_each_message_is_consumed_once(connect: Open) -> None:
    """However many wait for it: here two, of whom each takes what comes and answers it."""
    names = ["a", "b", "c", "d"]
    consumed: list[tuple[int, str]] = []

    async def script(peer: Peer) -> None:
        await peer.receive()
        for name in names:
            assert (await peer.ask(name)).result.status == name
        await peer.end(grpc.StatusCode.UNAVAILABLE, "that was all")

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with connect(coordinator.address) as (consume, dispatch):

                async def serve(who: int) -> None:
                    with pytest.raises(ConnectionLost, match="that was all"):  # noqa: PT012
                        while True:
                            name = (await consume()).instruction.name
                            consumed.append((who, name))
                            await dispatch(result(status=name))

                serving = [asyncio.ensure_future(serve(who)) for who in range(2)]
                await dispatch(EMPTY)
                await asyncio.gather(*serving)
        assert [name for _, name in consumed] == names

    run(scenario())


def test_whoever_waits_next_gets_the_message_of_a_cancelled_consume() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        for name in ("first", "second"):
            await peer.ask(name)
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with aio.connection(coordinator.address) as (consume, dispatch):
                waiting = [asyncio.ensure_future(consume()) for _ in range(4)]
                await asyncio.sleep(0)
                for given_up in (0, 2):
                    waiting[given_up].cancel()
                await dispatch(EMPTY)
                for number, name in ((1, "first"), (3, "second")):
                    assert (await waiting[number]).instruction.name == name
                    await dispatch(EMPTY)
            assert waiting[0].cancelled()
            assert waiting[2].cancelled()

    run(scenario())


def test_a_cancelled_consume_loses_nothing() -> None:
    cancelled = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        assert await asyncio.to_thread(cancelled.wait, PATIENCE)
        await peer.ask("train")
        await peer.expect_leave()

    async def scenario() -> None:
        with ScriptedCoordinator(script) as coordinator:
            async with aio.connection(coordinator.address) as (consume, dispatch):
                await dispatch(EMPTY)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(consume(), 0.05)
                cancelled.set()
                assert (await consume()).instruction.name == "train"
                await dispatch(EMPTY)

    run(scenario())
