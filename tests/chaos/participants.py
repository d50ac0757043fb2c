"""Many participants in one process, each with a journal of what it was told and what it answered.

What a participant does with an instruction is drawn from the call's id and its own, within what the
instruction's config allows. It writes down an answer before it hands it to the SDK: so whatever a caller gets
is in the journal, and what is in the journal may still be lost on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from participant_sdk import Instruction, ParticipantError, Result, aio
from participant_sdk.logs import set_up_logging
from protos import stream_pb2
from protos.messages import failure
from tests.chaos.journal import Journal

REJOIN_AFTER = 1.0
"""Seconds after which a participant that was refused is started again, as whoever runs a device would."""


@dataclass(frozen=True)
class Doing:
    """What a participant does with one instruction."""

    seconds: float
    ends: str  # result, failure, odd (a result that doesn't fit) or never (until it is cancelled)
    stubborn: bool  # a cancel is ignored, the answer comes too late


def drawn(call: str, participant: str, config: dict[str, Any]) -> Doing:
    """The same for the same call and participant, always."""
    dice = random.Random(f"{call}/{participant}")
    seconds = dice.uniform(0.0, config["longest"])
    stubborn = dice.random() < config["stubborn"]
    ends = "result"
    throw = dice.random()
    for other in ("failure", "never", "odd"):
        if throw < config[other]:
            ends = other
            break
        throw -= config[other]
    return Doing(seconds, ends, stubborn)


def participant_name(slot: int) -> str:
    return f"p{slot:03}"


class Member:
    """One participant."""

    def __init__(self, slot: int, logs: Path) -> None:
        self.id = participant_name(slot)
        self._slot = slot
        self._journal = Journal(logs / f"participant-{self.id}.jsonl")
        self._participant: aio.Participant | None = None
        self._stopped = False

    async def run(self, address: str) -> None:
        self._journal.write("started")
        while not self._stopped:
            self._participant = aio.Participant(self.id, {"slot": str(self._slot)})
            self._participant.on("work")(self._work)
            self._participant.on("block")(self._block)
            try:
                await self._participant.run(address)
            except ParticipantError as error:
                self._journal.write("refused", why=str(error))
                await asyncio.sleep(REJOIN_AFTER)
        self._journal.write("stopped")

    def stop(self) -> None:
        self._stopped = True
        if self._participant is not None:
            self._participant.stop()

    async def _work(self, instruction: Instruction) -> Result | stream_pb2.ParticipantMessage:
        """In the event loop."""
        nonce, doing = self._received(instruction)
        ends = asyncio.get_running_loop().time() + doing.seconds
        try:
            if doing.ends == "never":
                await asyncio.Event().wait()
            await asyncio.sleep(doing.seconds)
        except asyncio.CancelledError:
            self._journal.write("cancelled", call=instruction.config["call"], nonce=nonce)
            if not doing.stubborn:
                raise
            await asyncio.sleep(max(0.2, ends - asyncio.get_running_loop().time()))
        return self._answer(instruction, nonce, doing)

    def _block(self, instruction: Instruction) -> Result | stream_pb2.ParticipantMessage:
        """In the participant's thread."""
        nonce, doing = self._received(instruction)
        if doing.ends == "never":
            instruction.cancelled.wait()
        else:
            time.sleep(doing.seconds)
        if instruction.cancelled.is_set() and not doing.stubborn:
            self._journal.write("cancelled", call=instruction.config["call"], nonce=nonce)
            raise asyncio.CancelledError
        return self._answer(instruction, nonce, doing)

    def _received(self, instruction: Instruction) -> tuple[str, Doing]:
        config = dict(instruction.config)
        nonce = secrets.token_hex(8)
        intact = zlib.crc32(instruction.payload) == config["crc"]
        addressed = config["to"] in ("", self.id)
        self._journal.write("received", call=config["call"], nonce=nonce, intact=intact, addressed=addressed)
        return nonce, drawn(str(config["call"]), self.id, config)

    def _answer(
        self, instruction: Instruction, nonce: str, doing: Doing
    ) -> Result | stream_pb2.ParticipantMessage:
        config: dict[str, Any] = dict(instruction.config)
        call = config["call"]
        if doing.ends == "failure":
            self._journal.write("answered", call=call, nonce=nonce, what="failure")
            return failure(stream_pb2.Failure.HANDLER_ERROR, f"{call} {nonce}")
        if config["slots"]:
            check = secrets.randbits(40)
            weight = 1.0 + secrets.randbelow(4)
            odd = doing.ends == "odd"
            self._journal.write(
                "answered", call=call, nonce=nonce, what="result", check=check, weight=weight, odd=odd
            )
            dtype = np.int64 if config["whole"] else np.float64
            seat = np.zeros(config["slots"], dtype)
            seat[self._slot] = 1
            return Result({"odd" if odd else "seat": seat, "check": np.array([check], dtype)}, weight=weight)
        payload = random.Random(nonce).randbytes(config["size"])
        self._journal.write("answered", call=call, nonce=nonce, what="result")
        metrics = {"call": call, "participant": self.id, "nonce": nonce, "crc": zlib.crc32(payload)}
        return Result(metrics=metrics, payload=payload, weight=1.0)


async def run(address: str, members: list[Member]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for member in members:
            member.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with asyncio.TaskGroup() as group:
        for member in members:
            group.create_task(member.run(address))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connect", required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    set_up_logging("info", "console")
    members = [Member(options.first + number, options.logs) for number in range(options.count)]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(options.connect, members))


if __name__ == "__main__":
    main()
