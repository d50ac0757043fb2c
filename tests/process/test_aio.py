"""The asyncio twins: the same, awaited; cancelling a task gives its call up."""

from __future__ import annotations

import asyncio

import pytest

from coordinator import Coordinator, aio
from manager.api.cohort import AsyncCohort
from manager.api.outcome import Progress
from manager.errors import CallTimeout, NotEnoughParticipants, ParticipantLost
from tests.support import PATIENCE, Devices, instruction


class Echo(aio.ParticipantProxy):
    async def echo(self, payload: bytes) -> bytes:
        return (await self.run(instruction("echo", payload))).result.payload


def test_progress_ends_with_all(devices: Devices) -> None:
    async def main() -> None:
        async with aio.Coordinator(1, "127.0.0.1:0", log_level="warning") as coordinator:
            await asyncio.to_thread(devices.join, coordinator.listen, 3)
            cohort = await coordinator.get_participants(3, timeout=20)
            told: list[Progress] = []
            await cohort.run(instruction("echo", b"x"), timeout=20, progress=told.append)
            assert (told[-1].asked, told[-1].answered, told[-1].failed) == (3, 3, 0)
            await cohort.reduce(instruction("fail"), timeout=20, progress=told.append)
            assert (told[-1].asked, told[-1].answered, told[-1].failed) == (3, 0, 3)

    asyncio.run(main())


def test_breaking_out_of_a_loop_over_answers_gives_the_call_up(devices: Devices) -> None:
    async def scenario() -> None:
        async with aio.Coordinator[Echo](
            workers=1, listen="127.0.0.1:0", log_level="critical"
        ) as coordinator:
            joined = await asyncio.to_thread(devices.join, coordinator.listen, 2)
            cohort = await coordinator.get_participants(2, timeout=20)
            messages = [instruction("hold" if n == 1 else "echo") for n in range(2)]
            async for proxy, _ in cohort.stream(messages):
                assert proxy is cohort[0]
                holding = next(device for device in joined if device.id == cohort[1].id)
                assert await asyncio.to_thread(holding.holding.wait, PATIENCE)
                break
            assert await asyncio.to_thread(holding.cancelled.wait, PATIENCE)
            await until_nothing_is_left(coordinator)
            holding.release()

    asyncio.run(scenario())


def test_a_connection_of_another_event_loop_says_so_instead_of_waiting(devices: Devices) -> None:
    with Coordinator(workers=1, listen="127.0.0.1:0", control="127.0.0.1:0", log_level="critical") as running:
        kept: list[aio.Connection[aio.ParticipantProxy]] = []

        async def attach() -> None:
            kept.append(await aio.connect(running.control))
            assert (await kept[0].get_participants(0)).ids == []

        async def again() -> None:
            with pytest.raises(RuntimeError, match="of another event loop; connect anew"):
                await kept[0].get_participants(1, timeout=2)

        asyncio.run(attach())
        asyncio.run(again())


async def elsewhere(coordinator: aio.Coordinator[Echo], cohort: AsyncCohort[Echo]) -> None:
    """In an event loop that isn't the coordinator's."""
    with pytest.raises(RuntimeError, match="of another event loop; use it there"):
        await coordinator.lease(1, timeout=2)
    with pytest.raises(RuntimeError, match="of another event loop; use it there"):
        await cohort.run(instruction("echo"), timeout=2)
    with pytest.raises(RuntimeError, match="of another event loop; use it there"):
        async for _ in cohort.stream(instruction("echo"), timeout=2):
            pass


async def until_nothing_is_left(coordinator: aio.Coordinator[Echo]) -> None:
    """It learns by and by that a script has gone."""
    async with asyncio.timeout(PATIENCE):
        while True:
            status = await coordinator.status()
            if not status.leased and not status.calls:
                return


def test_a_coordinator_and_a_connection_in_one_event_loop(devices: Devices) -> None:
    async def main() -> None:
        async with aio.Coordinator(
            2, "127.0.0.1:0", Echo, control="127.0.0.1:0", log_level="warning"
        ) as coordinator:
            joined = await asyncio.to_thread(devices.join, coordinator.listen, 4)
            cohort = await coordinator.get_participants(4, timeout=20)
            assert await asyncio.gather(*(proxy.echo(b"x") for proxy in cohort)) == [b"x"] * 4
            await asyncio.to_thread(asyncio.run, elsewhere(coordinator, cohort))
            assert (await coordinator.status()).leased == (await coordinator.status()).busy == 0
            async with aio.connect(coordinator.control, Echo) as connection:
                attached = await connection.get_participants(4, timeout=20)
                outcome = await attached.run(instruction("echo"), timeout=20)
                assert len(outcome.results) == 4
                async with connection.lease(3) as leased:
                    assert len(leased) == 3
                    with pytest.raises(NotEnoughParticipants):
                        await coordinator.lease(2, timeout=0.1)
                with pytest.raises(CallTimeout):
                    await attached[0].run(instruction("hold"), timeout=0.1)
                holding = next(device for device in joined if device.id == attached[0].id)
                assert await asyncio.to_thread(holding.holding.wait, PATIENCE)
                assert (await connection.status()).participants == 4
            await until_nothing_is_left(coordinator)

            # A task that is cancelled gives its call up, and the participant is told.
            holding.release()
            proxy = next(proxy for proxy in cohort if proxy.id != holding.id)
            device = next(device for device in joined if device.id == proxy.id)
            task = asyncio.create_task(proxy.run(instruction("hold")))
            await asyncio.to_thread(device.holding.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(device.cancelled.wait, 20)
            assert (await coordinator.status()).calls == 0
            device.release()

            task = asyncio.create_task(proxy.run(instruction("hold")))
            await asyncio.to_thread(device.holding.wait, 20)
            await asyncio.to_thread(device.cut)
            with pytest.raises(ParticipantLost):
                await task

    asyncio.run(main())


def test_awaiting_a_connection_instead_of_entering_it(devices: Devices) -> None:
    async def main() -> None:
        async with aio.Coordinator(
            1, "127.0.0.1:0", control="127.0.0.1:0", log_level="warning"
        ) as coordinator:
            connection = await aio.connect(coordinator.control)
            await asyncio.to_thread(devices.join, coordinator.listen, 1)
            lease = await connection.lease(1, timeout=20)
            await connection.close()
            assert len(lease) == 1
            assert len(await coordinator.lease(1, timeout=20)) == 1, (
                "the connection's lease didn't end with it"
            )

    asyncio.run(main())
