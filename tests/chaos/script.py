"""A training script that makes random calls, several at a time, and writes down how each ended.

It stands for what users write: it knows nothing of faults. When the coordinator is gone it attaches again. On
SIGTERM it begins no more calls, waits for those that run, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator import CoordinatorGone, NotEnoughParticipants, aio
from manager.api.outcome import Ends, Reduced
from manager.api.proxy import AsyncParticipantProxy
from manager.errors import CallCancelled, CallTimeout, ParticipantFailed, ParticipantLost
from protos import stream_pb2
from protos.messages import from_scalars, instruction
from tests.chaos.journal import Journal

Cohort = aio.Cohort[AsyncParticipantProxy]
Connection = aio.Connection[AsyncParticipantProxy]
Told = list[list[Any]]
"""How a call ended by participant: [id, "result", call, nonce, intact], [id, "failure", text], [id, kind]."""

CALLERS = 4
"""Calls that a script has under way at the same time."""

PAUSE = 0.12
"""Seconds between two calls of a caller, at most."""

SMALL, LARGE = 2_000, 3_000_000
FEW = 4
"""Participants of a call with large payloads: it is many calls that this run is about, not many bytes."""


class Script:
    def __init__(self, control: str, name: str, seed: str, slots: int, journal: Journal) -> None:
        self._control = control
        self._name = name
        self._dice = random.Random(seed)
        self._slots = slots
        self._journal = journal
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()
        self._life = 0  # pid of the coordinator attached to
        self._kinds: dict[str, tuple[int, Callable[[Connection, Cohort, float], Awaitable[None]]]] = {
            "run": (5, self._run),
            "single": (5, self._single),
            "reduce": (5, self._reduce),
            "each": (2, self._each),
            "stream": (3, self._stream),
            "lease": (3, self._lease),
            "large": (1, self._large),
        }

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        self._journal.write("started")
        while not self._stopping.is_set():
            try:
                async with aio.connect(self._control, timeout=5.0) as connection:
                    self._life = (await connection.status()).pid
                    self._journal.write("attached", coordinator=self._life)
                    await asyncio.gather(*(self._caller(connection) for _ in range(CALLERS)))
            except CoordinatorGone as gone:
                self._journal.write("unattached", why=str(gone))
                await asyncio.sleep(0.1)
        self._journal.write("stopped")

    async def _caller(self, connection: Connection) -> None:
        """One call after the other, until the script stops or the coordinator is gone."""
        cohort: Cohort | None = None
        dice = self._dice
        kinds = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        acquired = 0.0
        while not self._stopping.is_set():
            try:
                if cohort is None or dice.random() < 0.5:
                    acquired = self._journal.write("asking")
                    cohort = await connection.get_participants(1, timeout=10.0)
                    ids = cohort.ids
                    if len(set(ids)) < len(ids):
                        self._journal.write("twice", participants=ids)
                await self._kinds[dice.choices(kinds, weights)[0]][1](connection, cohort, acquired)
            except NotEnoughParticipants as shortage:
                self._journal.write("shortage", why=str(shortage))
            except CoordinatorGone:
                return
            await asyncio.sleep(dice.uniform(0.0, PAUSE))

    # The kinds of calls

    async def _run(self, _connection: Connection, cohort: Cohort, acquired: float) -> None:
        part = self._part(cohort)
        limits = self._limits(len(part))
        call = self._begin("run", part, acquired, limits)
        message = self._message(call, limits, name=self._dice.choice(["work", "work", "block"]))
        running = part.run(message, timeout=limits["timeout"], quorum=limits["quorum"])
        outcome = await self._until_it_ends(call, running, limits)
        if outcome is not None:
            self._journal.write("end", call=call, how="outcome", told=_told(outcome, outcome.results))

    async def _each(self, _connection: Connection, cohort: Cohort, acquired: float) -> None:
        """An instruction of its own for each, by position or by participant."""
        part = self._part(cohort)
        limits = self._limits(len(part))
        if self._dice.random() < 0.5 and len(part) > 1 and limits["quorum"] is None:
            chosen: Sequence[AsyncParticipantProxy] = self._dice.sample(list(part), max(1, len(part) // 2))
        else:
            chosen = part
        call = self._begin("each", chosen, acquired, limits)
        messages = {proxy: self._message(call, limits, to=proxy.id) for proxy in chosen}
        asked: Any = list(messages.values()) if chosen is part else messages
        running = part.run(asked, timeout=limits["timeout"], quorum=limits["quorum"])
        outcome = await self._until_it_ends(call, running, limits)
        if outcome is not None:
            self._journal.write("end", call=call, how="outcome", told=_told(outcome, outcome.results))

    async def _reduce(self, _connection: Connection, cohort: Cohort, acquired: float) -> None:
        part = self._part(cohort)
        limits = self._limits(len(part))
        reducer = self._dice.choice(["sum", "sum", "sum", "mean", "weighted_mean"])
        call = self._begin("reduce", part, acquired, limits, reducer=reducer)
        message = self._message(call, limits, slots=self._slots, whole=reducer == "sum", odd=0.01)
        running = part.reduce(message, reducer, timeout=limits["timeout"], quorum=limits["quorum"])
        reduced: Reduced[AsyncParticipantProxy] | None = await self._until_it_ends(call, running, limits)
        if reduced is not None:
            told = [*_ends(reduced), *([proxy.id, "folded"] for proxy in reduced.folded)]
            sums = {name: array.tolist() for name, array in reduced.tensors.items()}
            self._journal.write("end", call=call, how="outcome", told=told, sums=sums, weight=reduced.weight)

    async def _stream(self, _connection: Connection, cohort: Cohort, acquired: float) -> None:
        part = self._part(cohort)
        limits = self._limits(len(part))
        call = self._begin("stream", part, acquired, limits)
        answers = part.stream(self._message(call, limits), timeout=limits["timeout"], quorum=limits["quorum"])
        results: list[tuple[AsyncParticipantProxy, stream_pb2.ParticipantMessage]] = []

        async def collect() -> bool:
            async with answers:
                async for answer in answers:
                    results.append(answer)  # noqa: PERF401 - what is there counts if it is given up
            return True

        if await self._until_it_ends(call, collect(), limits):
            told = [*_ends(answers), *(_result(proxy, message) for proxy, message in results)]
            self._journal.write("end", call=call, how="outcome", told=told)

    async def _lease(self, connection: Connection, _cohort: Cohort, _acquired: float) -> None:
        number = self._dice.randint(1, 6)
        acquired = self._journal.write("asking")
        async with connection.lease(number, timeout=5.0) as leased:
            lease = f"{self._name}.lease{next(self._numbers)}"
            members = [[proxy.id, proxy._member.key] for proxy in leased]
            self._journal.write("leased", lease=lease, members=members, coordinator=self._life)
            try:
                for _ in range(self._dice.randint(1, 3)):
                    kind = self._dice.choice([self._run, self._reduce, self._stream, self._single])
                    await kind(connection, leased, acquired)
            finally:
                self._journal.write("released", lease=lease)

    async def _large(self, connection: Connection, cohort: Cohort, acquired: float) -> None:
        """Payloads that travel in chunks, there or back."""
        part = cohort.sample(min(FEW, len(cohort)))
        limits = self._limits(len(part)) | {"never": 0.0}
        limits["timeout"] = limits["timeout"] and limits["timeout"] + 5.0
        up = self._dice.random() < 0.5
        call = self._begin("large", part, acquired, limits)
        bulk = self._dice.randint(1_000_000, LARGE)
        message = self._message(call, limits, size=bulk if up else SMALL, down=SMALL if up else bulk)
        outcome = await self._until_it_ends(call, part.run(message, timeout=limits["timeout"]), limits)
        if outcome is not None:
            self._journal.write("end", call=call, how="outcome", told=_told(outcome, outcome.results))

    async def _single(self, _connection: Connection, cohort: Cohort, acquired: float) -> None:
        proxy = self._dice.choice(list(cohort))
        limits = self._limits(1) | {"quorum": None}
        call = self._begin("single", [proxy], acquired, limits)

        async def one() -> list[Any]:
            try:
                message = await proxy.run(self._message(call, limits), timeout=limits["timeout"])
            except ParticipantFailed as error:
                return [proxy.id, "failure", error.failure.text]
            except ParticipantLost:
                return [proxy.id, "lost"]
            except CallTimeout:
                return [proxy.id, "timed out"]
            except CallCancelled:
                return [proxy.id, "cancelled"]
            return _result(proxy, message)

        told = await self._until_it_ends(call, one(), limits)
        if told is not None:
            self._journal.write("end", call=call, how="outcome", told=[told])

    # What they share

    def _part(self, cohort: Cohort) -> Cohort:
        """All of them now and then; more often a few."""
        if self._dice.random() < 0.25:
            return cohort
        return cohort.sample(self._dice.randint(1, min(12, len(cohort))))

    def _limits(self, asked: int) -> dict[str, Any]:
        """How long the call may take, and what participants may do with it meanwhile."""
        dice = self._dice
        limits: dict[str, Any] = {
            "timeout": None,
            "quorum": None,
            "cancel": None,  # seconds after which the caller gives up
            "longest": dice.choice([0.0, 0.01, 0.05, 0.3]),
            "failure": dice.choice([0.0, 0.0, 0.1]),
            "never": 0.0,
            "stubborn": 0.0,
        }
        throw = dice.random()
        if throw < 0.15:
            limits |= {"timeout": dice.uniform(0.05, 1.0), "never": 0.1, "stubborn": 0.1}
        elif throw < 0.25:
            limits |= {"cancel": dice.uniform(0.0, 0.5), "never": 0.2, "stubborn": 0.1}
        elif throw < 0.45:
            limits |= {"timeout": dice.uniform(1.0, 3.0), "never": 0.02, "stubborn": 0.05}
            limits["quorum"] = dice.randint(1, asked)
        elif throw < 0.65:
            limits["timeout"] = dice.uniform(2.0, 5.0)
        return limits

    def _begin(
        self,
        kind: str,
        asked: Sequence[AsyncParticipantProxy],
        acquired: float,
        limits: Mapping[str, Any],
        **more: Any,
    ) -> str:
        call = f"{self._name}.{next(self._numbers)}"
        kept = {name: limits[name] for name in ("timeout", "quorum", "cancel")}
        ids = [proxy.id for proxy in asked]
        self._journal.write(
            "begin", call=call, kind=kind, asked=ids, acquired=round(acquired, 4), **kept, **more
        )
        return call

    def _message(
        self,
        call: str,
        limits: Mapping[str, Any],
        *,
        name: str = "work",
        to: str = "",
        size: int = SMALL,
        down: int = 100,
        slots: int = 0,
        whole: bool = False,
        odd: float = 0.0,
    ) -> stream_pb2.ServerMessage:
        payload = self._dice.randbytes(down)
        config = {key: limits[key] for key in ("longest", "failure", "never", "stubborn")}
        config |= {"call": call, "to": to, "size": size, "slots": slots, "whole": whole, "odd": odd}
        return instruction(name, config={**config, "crc": zlib.crc32(payload)}, payload=payload)

    async def _until_it_ends(self, call: str, running: Any, limits: Mapping[str, Any]) -> Any:
        """What the call returns; None if it was given up, as the limits say. Raises CoordinatorGone."""
        task = asyncio.ensure_future(running)
        try:
            if limits["cancel"] is not None:
                await asyncio.wait([task], timeout=limits["cancel"])
                if not task.done():
                    since = self._journal.write("giving up", call=call)
                    task.cancel()
                    await asyncio.wait([task])
                    if task.cancelled():
                        self._journal.write("end", call=call, how="given up", since=round(since, 4))
                        return None
            return await task
        except CoordinatorGone as error:
            self._journal.write("end", call=call, how="gone", why=str(error))
            raise
        except Exception as error:
            self._journal.write("end", call=call, how="error", why=repr(error))
            return None


def _told(ends: Ends[Any], results: Mapping[Any, stream_pb2.ParticipantMessage]) -> Told:
    return [*_ends(ends), *(_result(proxy, results[proxy]) for proxy in results)]


def _ends(ends: Any) -> Told:
    return [
        *([proxy.id, "failure", failure.text] for proxy, failure in ends.failures.items()),
        *([proxy.id, "lost"] for proxy in ends.lost),
        *([proxy.id, "timed out"] for proxy in ends.timed_out),
        *([proxy.id, "cancelled"] for proxy in ends.cancelled),
    ]


def _result(proxy: AsyncParticipantProxy, message: stream_pb2.ParticipantMessage) -> list[Any]:
    said: dict[str, Any] = dict(from_scalars(message.result.metrics))
    intact = zlib.crc32(message.result.payload) == said.get("crc") and said.get("participant") == proxy.id
    return [proxy.id, "result", said.get("call"), said.get("nonce"), intact]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", required=True)
    parser.add_argument("--name", required=True, help="of this life of this script; calls are named after it")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--slots", type=int, required=True, help="how many participants there are")
    parser.add_argument("--journal", type=Path, required=True)
    options = parser.parse_args()

    async def run() -> None:
        script = Script(options.control, options.name, options.seed, options.slots, Journal(options.journal))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, script.stop)
        await script.run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
