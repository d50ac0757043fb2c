"""When a Participant comes back, where to, and when it doesn't."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading

import grpc
import psutil
import pytest

from participant_sdk import (
    ConnectionLost,
    Instruction,
    Rejected,
    Result,
)
from protos import messages
from protos.messages import result
from tests.participant_sdk.support import (
    PATIENCE,
    Make,
    Peer,
    Running,
    Runs,
    ScriptedCoordinator,
    reconnect,
)


def test_it_comes_back_when_the_stream_is_lost(make: Make, run: Runs, log: pytest.LogCaptureFixture) -> None:
    async def first(peer: Peer) -> None:
        await peer.receive()
        assert await peer.ask("train") == result()
        await peer.end(grpc.StatusCode.UNAVAILABLE, "going down")

    async def second(peer: Peer) -> None:
        await peer.receive()
        assert await peer.ask("train") == result()
        participant.stop()
        await peer.expect_leave()

    participant = make("edge-7")
    participant.on("train")(lambda instruction: Result())
    with ScriptedCoordinator(first, second) as coordinator:
        run(participant, coordinator.address)
    (warning,) = [record for record in log.records if record.levelno == logging.WARNING]
    text = warning.getMessage()
    assert text.startswith(
        f"edge-7: lost the coordinator at {coordinator.address} (going down); trying again"
    )
    assert text.endswith("s (attempt 1)")


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.OK], ids=str)
def test_it_comes_back_after_any_end_that_is_no_refusal(make: Make, run: Runs, code: grpc.StatusCode) -> None:
    async def first(peer: Peer) -> None:
        await peer.receive()
        if code is not grpc.StatusCode.OK:
            await peer.end(code, "")

    async def second(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make()
    with ScriptedCoordinator(first, second) as coordinator:
        run(participant, coordinator.address)


def test_it_goes_where_it_is_sent(make: Make, run: Runs) -> None:
    async def target(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make()
    with ScriptedCoordinator(target) as there:

        async def script(peer: Peer) -> None:
            await peer.receive()
            await peer.send(reconnect(0.01, there.address))
            await peer.expect_leave()

        with ScriptedCoordinator(script) as here:
            run(participant, here.address)


def test_told_to_reconnect_while_busy_it_answers_first(make: Make, run: Runs) -> None:
    told = threading.Event()

    async def first(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("train"))
        await peer.send(reconnect(0.01))
        told.set()
        assert await peer.receive() == result(payload=b"x" * 3_000_000)
        await peer.expect_leave()

    async def second(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make()

    @participant.on("train")
    def train(instruction: Instruction) -> Result:
        assert told.wait(PATIENCE)
        return Result(payload=b"x" * 3_000_000)

    with ScriptedCoordinator(first, second) as coordinator:
        run(participant, coordinator.address)


def test_a_handler_that_outlives_its_stream_is_told_and_waited_for(make: Make, run: Runs) -> None:
    returned = threading.Event()

    async def first(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("train"))
        await peer.end(grpc.StatusCode.UNAVAILABLE, "going down")

    async def second(peer: Peer) -> None:
        await peer.receive()
        assert returned.is_set()
        assert await peer.ask("ping") == result(status="pong")
        participant.stop()
        await peer.expect_leave()

    participant = make()

    @participant.on("train")
    def train(instruction: Instruction) -> Result:
        assert instruction.cancelled.wait(PATIENCE)
        returned.set()
        return Result(status="late")

    participant.on("ping")(lambda instruction: Result(status="pong"))
    with ScriptedCoordinator(first, second) as coordinator:
        run(participant, coordinator.address)


def test_a_stop_while_waiting_to_reconnect_ends_at_once(
    make: Make, run: Runs, log: pytest.LogCaptureFixture
) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(reconnect(3600.0))
        await peer.expect_leave()

    participant = make()
    with ScriptedCoordinator(script) as coordinator, Running(run, participant, coordinator.address):
        coordinator.wait()


def test_a_breach_of_the_coordinators_ends_that_stream_only(make: Make, run: Runs) -> None:
    async def first(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("train"))
        await peer.send(messages.instruction("train"))
        assert "another one was in flight" in (await peer.expect_leave()).leave.reason

    async def second(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make()

    @participant.on("train")
    def train(instruction: Instruction) -> None:
        assert instruction.cancelled.wait(PATIENCE)

    with ScriptedCoordinator(first, second) as coordinator:
        run(participant, coordinator.address)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
    ],
    ids=str,
)
def test_a_refusal_is_raised_with_its_text(
    make: Make, run: Runs, code: grpc.StatusCode, log: pytest.LogCaptureFixture
) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.end(code, "not you")

    with ScriptedCoordinator(script) as coordinator, pytest.raises(Rejected) as caught:
        run(make("edge-7"), coordinator.address)
    assert (caught.value.code, caught.value.text) == (code, "not you")
    assert caught.value.address == coordinator.address
    (record,) = [each for each in log.records if each.levelno == logging.INFO]  # and not "connected"
    assert record.getMessage() == f"edge-7: reached the coordinator at {coordinator.address}"


def test_with_a_number_of_attempts_it_gives_up(make: Make, run: Runs, log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionLost, match="connection refused"):
        run(make("edge-7"), "127.0.0.1:1", attempts=1)
    assert sum("trying again" in record.getMessage() for record in log.records) == 1


def test_no_connection_is_left_open_behind_it(make: Make, run: Runs) -> None:
    """gRPC closes one only once nobody has its call any more; that must not be left to garbage collection."""
    counts = []

    def connections() -> int:
        port = int(coordinator.address.rpartition(":")[2])
        ours = psutil.Process().net_connections("tcp")
        return sum(bool(each.raddr) and each.raddr[1] == port for each in ours)

    async def moves_it(peer: Peer) -> None:
        await peer.receive()
        assert await peer.ask("train") == result()
        await peer.send(reconnect(0.01))
        await peer.expect_leave()

    async def loses_it(peer: Peer) -> None:
        await peer.receive()
        assert await peer.ask("train") == result()
        await peer.end(grpc.StatusCode.UNAVAILABLE, "going down")

    async def last(peer: Peer) -> None:
        await peer.receive()
        assert await peer.ask("train") == result()
        for _ in range(100):
            counts.append(connections())
            if counts[-1] == 1:
                break
            await asyncio.sleep(0.05)
        participant.stop()
        await peer.expect_leave()

    participant = make("edge-7")
    participant.on("train")(lambda instruction: Result())
    gc.collect()
    gc.disable()
    try:
        with ScriptedCoordinator(moves_it, moves_it, loses_it, moves_it, last) as coordinator:
            run(participant, coordinator.address)
    finally:
        gc.enable()
    assert counts[-1] == 1, counts
