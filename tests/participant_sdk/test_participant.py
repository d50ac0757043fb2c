"""A whole Participant, blocking and in asyncio, against a scripted coordinator."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import grpc
import numpy as np
import pytest

from participant_sdk import (
    AddressError,
    ConnectionLost,
    Instruction,
    Participant,
    Rejected,
    Result,
    aio,
)
from participant_sdk.base import BaseParticipant
from participant_sdk.participant import run_all
from protos import messages, stream_pb2
from protos.messages import failure, result
from protos.tensors import to_arrays
from tests.participant_sdk.support import PATIENCE, Peer, ScriptedCoordinator

Failure = stream_pb2.Failure
CANCEL = stream_pb2.ServerMessage(cancel=stream_pb2.Cancel())


def reconnect(delay: float, address: str = "") -> stream_pb2.ServerMessage:
    message = stream_pb2.Reconnect(delay_seconds=delay, address=address)
    return stream_pb2.ServerMessage(reconnect=message)


class Runs(Protocol):
    """Runs a participant to its end."""

    def __call__(self, participant: Any, address: str, **options: Any) -> None: ...


Make: TypeAlias = Callable[..., BaseParticipant]


def run_blocking(participant: Participant, address: str, **options: Any) -> None:
    participant.run(address, **options)


def run_asyncio(participant: aio.Participant, address: str, **options: Any) -> None:
    asyncio.run(participant.run(address, **options))


@pytest.fixture(params=["blocking", "asyncio"])
def flavour(request: pytest.FixtureRequest) -> tuple[Make, Runs]:
    if request.param == "blocking":
        return Participant, run_blocking
    return aio.Participant, run_asyncio


@pytest.fixture
def make(flavour: tuple[Make, Runs]) -> Make:
    return flavour[0]


@pytest.fixture
def run(flavour: tuple[Make, Runs]) -> Runs:
    return flavour[1]


class Running:
    """Runs a participant in a thread of the test's; leaving the block stops it."""

    def __init__(self, run: Runs, participant: BaseParticipant, address: str) -> None:
        self.participant = participant
        self.error: BaseException | None = None

        def target() -> None:
            try:
                run(participant, address)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=target)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.participant.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "muster.participant"):
        yield caplog


def test_it_says_who_it_is_and_answers_by_name(make: Make, run: Runs) -> None:
    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        assert (hello.participant_id, dict(hello.attributes)) == ("edge-7", {"region": "eu"})
        assert hello.accepts_cancel
        assert hello.sdk_version.startswith("muster-python/")
        answer = await peer.ask("train", config={"rate": 0.5}, tensors={"w": np.ones(3)})
        assert to_arrays(answer.result.tensors)["w"].tolist() == [0.5, 0.5, 0.5]
        assert (await peer.ask("evaluate")).result.metrics["loss"].float_value == 0.25
        assert (await peer.ask("nonsense")).failure.code == Failure.UNKNOWN_INSTRUCTION
        assert await peer.ask("boom") == failure(Failure.HANDLER_ERROR, "ValueError: bad")
        participant.stop()
        assert (await peer.expect_leave()).leave.reason == "stopped"

    participant = make("edge-7", {"region": "eu"})

    @participant.on("train")
    def train(instruction: Instruction) -> dict[str, Any]:
        assert threading.current_thread().name == "handlers of edge-7"
        return {"w": instruction.tensors["w"] * instruction.config["rate"]}

    @participant.on("evaluate")
    async def evaluate(instruction: Instruction) -> Result:
        await asyncio.sleep(0)
        return Result(metrics={"loss": 0.25})

    @participant.on("boom")
    def boom(instruction: Instruction) -> None:
        raise ValueError("bad")

    with ScriptedCoordinator(script) as coordinator:
        run(participant, coordinator.address)


def test_large_messages_pass_both_ways(make: Make, run: Runs) -> None:
    weights = np.arange(500_000, dtype=np.float64)

    async def script(peer: Peer) -> None:
        await peer.receive()
        answer = await peer.ask("train", tensors={"w": weights})
        np.testing.assert_array_equal(to_arrays(answer.result.tensors)["w"], weights * 2)
        participant.stop()
        await peer.expect_leave()

    participant = make()
    participant.on()(lambda instruction: {"w": instruction.tensors["w"] * 2})
    with ScriptedCoordinator(script) as coordinator:
        run(participant, coordinator.address)


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
def test_a_refusal_is_raised_with_its_text(make: Make, run: Runs, code: grpc.StatusCode) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.end(code, "not you")

    with ScriptedCoordinator(script) as coordinator, pytest.raises(Rejected) as caught:
        run(make("edge-7"), coordinator.address)
    assert (caught.value.code, caught.value.text) == (code, "not you")
    assert caught.value.address == coordinator.address


def test_with_a_number_of_attempts_it_gives_up(make: Make, run: Runs, log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionLost, match="connection refused"):
        run(make(), "127.0.0.1:1", attempts=1)
    assert len(log.records) == 1


def test_a_bad_address_is_told_at_once(make: Make, run: Runs) -> None:
    with pytest.raises(AddressError):
        run(make(), "nowhere")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_a_cancel_reaches_the_handler_and_is_answered_once(
    make: Make, run: Runs, asynchronous: bool, raises: bool
) -> None:
    began = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("train"))
        assert await asyncio.to_thread(began.wait, PATIENCE)
        await peer.send(CANCEL)
        await peer.send(CANCEL)
        answer = await peer.receive()
        if raises:
            assert answer.failure.code == Failure.CANCELLED
        else:
            assert answer == result(status="partial")
        assert await peer.ask("ping") == result()  # the next instruction gets its own answer
        participant.stop()
        await peer.expect_leave()

    participant = make()
    participant.on("ping")(lambda instruction: Result())

    def finish() -> Result:
        if raises:
            raise InterruptedError("stopped")
        return Result(status="partial")

    if asynchronous:

        @participant.on("train")
        async def train_async(instruction: Instruction) -> Result:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                assert instruction.cancelled.is_set()
            return finish()

    else:

        @participant.on("train")
        def train(instruction: Instruction) -> Result:
            began.set()
            assert instruction.cancelled.wait(PATIENCE)
            return finish()

    with ScriptedCoordinator(script) as coordinator:
        run(participant, coordinator.address)


def test_a_cancel_between_instructions_means_nothing(make: Make, run: Runs) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(CANCEL)
        assert await peer.ask("train") == result(weight=1)
        participant.stop()
        await peer.expect_leave()

    participant = make()
    participant.on("train")(lambda instruction: Result(weight=0 if instruction.cancelled.is_set() else 1))
    with ScriptedCoordinator(script) as coordinator:
        run(participant, coordinator.address)


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


def test_a_stop_leaves_at_once_and_waits_for_the_handler(make: Make, run: Runs) -> None:
    began, left = threading.Event(), threading.Event()
    finished: list[bool] = []

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("train"))
        await peer.expect_leave()
        left.set()

    participant = make()

    @participant.on("train")
    def train(instruction: Instruction) -> None:
        began.set()
        assert instruction.cancelled.wait(PATIENCE)
        assert left.wait(PATIENCE)
        finished.append(True)

    with ScriptedCoordinator(script) as coordinator:
        with Running(run, participant, coordinator.address):
            assert began.wait(PATIENCE)
        assert finished == [True]


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


def test_a_stop_before_the_run_counts_once(make: Make, run: Runs) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make()
    participant.stop()
    run(participant, "127.0.0.1:1")
    with ScriptedCoordinator(script) as coordinator:
        run(participant, coordinator.address)


def test_one_participant_runs_once_at_a_time(make: Make, run: Runs) -> None:
    ready = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        ready.set()
        await peer.expect_leave()

    participant = make()
    with ScriptedCoordinator(script) as coordinator, Running(run, participant, coordinator.address):
        assert ready.wait(PATIENCE)
        with pytest.raises(RuntimeError, match="running already"):
            run(participant, coordinator.address)


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


def test_a_blocked_handler_does_not_block_the_stream(make: Make) -> None:
    """Seen by a second participant of the same loop, which goes on answering."""
    blocked, release = threading.Event(), threading.Event()

    async def script(peer: Peer) -> None:
        if (await peer.receive()).hello.participant_id == "blocked":
            assert await peer.ask("block") == result()
            blocked_one.stop()
        else:
            assert await asyncio.to_thread(blocked.wait, PATIENCE)
            for _ in range(3):
                assert await peer.ask("ping") == result()
            release.set()
            free_one.stop()
        await peer.expect_leave()

    blocked_one, free_one = make("blocked"), make("free")

    def block(instruction: Instruction) -> Result:
        blocked.set()
        assert release.wait(PATIENCE)
        return Result()

    blocked_one.on("block")(block)
    free_one.on("ping")(lambda instruction: Result())
    with ScriptedCoordinator(script, script) as coordinator:
        assert run_all([blocked_one, free_one], coordinator.address) == [None, None]


def test_each_participant_of_a_process_has_a_connection_of_its_own() -> None:
    connections: set[str] = set()
    participants = [Participant(str(number)) for number in range(5)]
    everyone = threading.Barrier(5)

    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        connections.add(peer.connection)
        await asyncio.to_thread(everyone.wait, PATIENCE)
        participants[int(hello.participant_id)].stop()
        await peer.expect_leave()

    with ScriptedCoordinator(*[script] * 5) as coordinator:
        assert run_all(participants, coordinator.address) == [None] * 5
    assert len(connections) == 5


def test_one_that_is_refused_does_not_disturb_the_others() -> None:
    good, bad = Participant("good"), Participant("bad")

    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        if hello.participant_id == "bad":
            await peer.end(grpc.StatusCode.PERMISSION_DENIED, "not you")
        assert await peer.ask("ping") == result()
        good.stop()
        await peer.expect_leave()

    good.on("ping")(lambda instruction: Result())
    with ScriptedCoordinator(script, script) as coordinator:
        none, error = run_all([good, bad], coordinator.address)
    assert none is None
    assert isinstance(error, Rejected)


def test_cancelling_an_asyncio_run_says_goodbye() -> None:
    reasons: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("train"))
        reasons.append((await peer.expect_leave()).leave.reason)

    async def scenario() -> None:
        participant = aio.Participant()
        began = asyncio.Event()
        ended: list[bool] = []

        @participant.on("train")
        async def train(instruction: Instruction) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(instruction.cancelled.is_set())

        with ScriptedCoordinator(script) as coordinator:
            running = asyncio.create_task(participant.run(coordinator.address))
            await asyncio.wait_for(began.wait(), PATIENCE)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert ended == [True]
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
    assert reasons == ["stopped"]


def test_a_blocking_run_works_where_an_event_loop_runs_already() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = Participant()

    async def cell_of_a_notebook() -> None:
        with ScriptedCoordinator(script) as coordinator:
            participant.run(coordinator.address)

    asyncio.run(cell_of_a_notebook())


def test_a_blocking_call_in_the_background_loop_is_refused_rather_than_hung() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        answer = await peer.ask("train")
        assert "use participant_sdk.aio here" in answer.failure.text
        participant.stop()
        await peer.expect_leave()

    participant = Participant()

    @participant.on("train")
    async def train(instruction: Instruction) -> None:
        Participant().run("127.0.0.1:1")

    with ScriptedCoordinator(script) as coordinator:
        participant.run(coordinator.address)


def test_many_blocking_runs_share_one_loop() -> None:
    participants = [Participant(str(number)) for number in range(4)]
    loops: set[str] = set()

    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        loops.update(thread.name for thread in threading.enumerate() if thread.name == "muster-loop")
        assert sum(thread.name == "muster-loop" for thread in threading.enumerate()) == 1
        participants[int(hello.participant_id)].stop()
        await peer.expect_leave()

    with ScriptedCoordinator(*[script] * 4) as coordinator:
        threads = [threading.Thread(target=each.run, args=(coordinator.address,)) for each in participants]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert loops == {"muster-loop"}
