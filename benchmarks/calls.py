"""How a training script calls its participants in measurements, and what it notes of each call.

Decides what one mode does: ``awaited`` is one task per participant that awaits each answer of its own,
``cohort`` is one call to all of them after the other, ``stream`` the same with each result awaited as it
arrives, ``reduce`` a weighted mean of their tensors after the other, ``idle`` no call at all. Who they are
and how long it goes on is drive.py's.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np

from coordinator import aio, instruction
from protos import stream_pb2

MOST = 20_000
"""Rounds of which the times are kept."""


def payload_message(size: int) -> stream_pb2.ServerMessage:
    return instruction("echo", payload=bytes(size))


def tensor_message(size: int) -> stream_pb2.ServerMessage:
    """With a float32 tensor "w" of so many bytes."""
    return instruction("fit", tensors={"w": np.ones(size // 4, np.float32)})


def quantiles(values: list[float]) -> dict[str, float]:
    """In milliseconds: the median, the 99th percentile, and the worst."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "p50_ms": round(1000 * statistics.median(ordered), 3),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
        "worst_ms": round(1000 * ordered[-1], 3),
    }


class Calls:
    """Gives the same instruction again and again, and counts the answers."""

    def __init__(
        self,
        cohort: aio.Cohort[aio.ParticipantProxy],
        message: stream_pb2.ServerMessage,
        *,
        dtype: str = "float32",
        timed: bool = False,
        rounds: int = 0,
    ) -> None:
        """``timed``: note how long each awaited call takes. ``rounds``: end after so many calls to all."""
        self._cohort = cohort
        self._message = message
        self._dtype = dtype
        self._timed = timed
        self._limit = rounds
        self._latencies: list[float] = []
        self.round_trips = 0
        self.rounds: list[tuple[float, float]] = []
        """When calls to all began and ended (CLOCK_MONOTONIC), from the first one on."""

    def mode(self, name: str) -> Awaitable[None]:
        modes: dict[str, Callable[[], Awaitable[None]]] = {
            "awaited": self._awaited,
            "cohort": lambda: self._again(self._run),
            "stream": lambda: self._again(self._stream),
            "reduce": lambda: self._again(self._reduce),
            "idle": asyncio.Event().wait,  # type: ignore[dict-item]
        }
        return modes[name]()

    def take_latencies(self) -> list[float]:
        """Seconds that each call took which has ended since this was last asked."""
        taken, self._latencies = self._latencies, []
        return taken

    async def _awaited(self) -> None:
        one = self._one_timed if self._timed else self._one
        async with asyncio.TaskGroup() as tasks:
            for proxy in self._cohort:
                tasks.create_task(one(proxy))

    async def _one(self, proxy: aio.ParticipantProxy) -> None:
        while True:
            await proxy.run(self._message)
            self.round_trips += 1

    async def _one_timed(self, proxy: aio.ParticipantProxy) -> None:
        while True:
            began = time.monotonic()
            await proxy.run(self._message)
            self._latencies.append(time.monotonic() - began)
            self.round_trips += 1

    async def _again(self, call: Callable[[], Awaitable[int]]) -> None:
        done = 0
        while not self._limit or done < self._limit:
            began = time.monotonic()
            self.round_trips += await call()
            if len(self.rounds) < MOST:
                self.rounds.append((began, time.monotonic()))
            done += 1

    async def _run(self) -> int:
        outcome = await self._cohort.run(self._message)
        if len(outcome.results) != len(outcome):
            raise RuntimeError(f"not everyone answered: {outcome}")
        return len(outcome)

    async def _stream(self) -> int:
        results = 0
        async with self._cohort.stream(self._message) as answers:
            async for _ in answers:
                results += 1
        if results != len(self._cohort):
            raise RuntimeError(f"not everyone answered: {answers}")
        return results

    async def _reduce(self) -> int:
        reduced = await self._cohort.reduce(self._message, reducer="weighted_mean", dtype=self._dtype)
        if len(reduced.folded) != len(reduced):
            raise RuntimeError(f"not everyone's result was folded: {reduced}")
        # As in training: what came out goes down in the next round.
        tensors = {name: array.astype(np.float32, copy=False) for name, array in reduced.tensors.items()}
        self._message = instruction("fit", tensors=tensors)
        return len(reduced)
