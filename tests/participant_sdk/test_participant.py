"""What a Participant answers, blocking and in asyncio, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import numpy as np
import pytest

from participant_sdk import (
    AddressError,
    ConnectionLost,
    Instruction,
    Result,
    aio,
)
from protos import messages, stream_pb2
from protos.messages import failure, result
from protos.tensors import to_arrays
from tests.participant_sdk.support import (
    CANCEL,
    PATIENCE,
    Make,
    Peer,
    Running,
    Runs,
    ScriptedCoordinator,
)

Failure = stream_pb2.Failure


def test_it_says_who_it_is_and_answers_by_name(make: Make, run: Runs, log: pytest.LogCaptureFixture) -> None:
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
    (error,) = [record for record in log.records if record.levelno == logging.ERROR]
    assert error.getMessage() == "edge-7: the handler of 'boom' failed"
    assert vars(error)["participant"] == "edge-7"
    assert error.exc_info is not None


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


def test_one_without_a_handler_is_warned_of(make: Make, run: Runs, log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionLost):
        run(make("edge-7"), "127.0.0.1:1", attempts=0)
    (warning,) = log.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().startswith("edge-7: there is no handler: every instruction will fail")


def test_a_bad_address_is_told_at_once(make: Make, run: Runs) -> None:
    with pytest.raises(AddressError):
        run(make(), "nowhere")
