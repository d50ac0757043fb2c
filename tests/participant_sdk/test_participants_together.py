"""Several participants of one process, and a blocking one beside a running event loop."""

from __future__ import annotations

import asyncio
import threading

import grpc

from participant_sdk import (
    Instruction,
    Participant,
    Rejected,
    Result,
)
from participant_sdk.participant import run_all
from protos.messages import result
from tests.participant_sdk.support import (
    PATIENCE,
    Make,
    Peer,
    ScriptedCoordinator,
)


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
    everyone = threading.Barrier(4)

    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        await asyncio.to_thread(everyone.wait, PATIENCE)
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
