"""What the coordinator says of itself, asked all the time: its status, and who is connected.

Nobody answers while it is stopped or dead; then the last answer stands, and ``heard_at`` tells how old it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc.aio

from coordinator.control.server import CONTROL_OPTIONS
from protos import control_pb2
from protos.control_pb2_grpc import ControlStub

INTERVAL = 0.03
"""Seconds between two questions: how exactly the run can measure."""

PATIENCE = 0.5


@dataclass(frozen=True)
class Session:
    key: int
    worker: int
    peer: str
    coordinator: int  # the pid of the one whose key it is


class Observer:
    def __init__(self, control: str) -> None:
        self._control = control
        self.status = control_pb2.Status()
        self.sessions: dict[str, Session] = {}
        self.listed_at = 0.0  # when the list was asked for
        self.heard_at = 0.0
        self.twice: set[str] = set()
        """Participants that were listed more than once at a time."""
        self._news = asyncio.Condition()

    async def run(self) -> None:
        while True:
            channel = grpc.aio.insecure_channel(self._control, options=CONTROL_OPTIONS)
            try:
                await self._ask(cast(Any, ControlStub(channel)))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(INTERVAL)
            finally:
                await channel.close()  # gRPC's own would wait ever longer between its attempts

    async def until(self, condition: Callable[[], bool], timeout: float, since: float = 0.0) -> float | None:
        """When the condition was first seen to hold, in what was heard after ``since``; None: not in time."""
        found: list[float] = []

        async def wait() -> None:
            async with self._news:
                while not (self.heard_at > since and condition()):
                    await self._news.wait()
                found.append(time.monotonic())

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wait(), timeout)
        return found[0] if found else None

    async def listing(self, timeout: float = 20.0) -> dict[str, Session]:
        """Who is connected, asked for now. The last answer, if none comes in time."""
        now = time.monotonic()
        await self.until(lambda: self.listed_at >= now, timeout)
        return self.sessions

    async def _ask(self, stub: Any) -> None:
        while True:
            asked_at = time.monotonic()
            status = await stub.GetStatus(control_pb2.StatusRequest(), timeout=PATIENCE)
            pages = stub.ListParticipants(control_pb2.ListParticipantsRequest(), timeout=PATIENCE)
            sessions: dict[str, Session] = {}
            async for page in pages:
                for participant in page.participants:
                    if participant.id in sessions:
                        self.twice.add(participant.id)
                    sessions[participant.id] = Session(
                        participant.key, participant.worker, participant.peer, status.pid
                    )
            async with self._news:
                self.status, self.sessions = status, sessions
                self.listed_at, self.heard_at = asked_at, time.monotonic()
                self._news.notify_all()
            await asyncio.sleep(INTERVAL)
