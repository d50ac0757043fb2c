"""How the server is stopped that participants connect to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from manager.access.security import Security
from manager.limits import Limits
from manager.serving.endpoint import Endpoint


class Server:
    """In the place of gRPC's: it notes who stops it, and that no two do at once."""

    def __init__(self) -> None:
        self.stops: list[float] = []
        self.stopping = 0

    async def stop(self, grace: float) -> None:
        assert not self.stopping, "two at once may crash gRPC"
        self.stops.append(grace)
        self.stopping += 1
        try:
            await asyncio.sleep(grace)
        finally:
            self.stopping -= 1


class Servicer:
    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self.parted = False

    def drain(self) -> None:
        pass

    def part(self) -> None:
        self.parted = True


@pytest.mark.parametrize("how", ["time is up", "drained", "hastened"])
def test_whatever_ends_a_drain_grpc_is_stopped_by_one_at_a_time(how: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("manager.serving.endpoint.CLOSE_TIMEOUT", 0.01)

    async def scenario() -> None:
        servicer, server = Servicer(), Server()
        endpoint = Endpoint(servicer, Limits(), Security())  # type: ignore[arg-type]
        endpoint._server = server  # type: ignore[assignment]
        draining = asyncio.create_task(endpoint.drain(0.01 if how == "time is up" else 600))
        await asyncio.sleep(0)
        if how == "drained":
            servicer.drained.set()
        elif how == "hastened":
            endpoint.hasten(0)
        await draining
        assert servicer.parted
        assert server.stops == [pytest.approx(server.stops[0]), 0.01]
        assert not server.stopping

    asyncio.run(asyncio.wait_for(scenario(), 20))
