"""An app for ``participant start``: participants that answer with their own id, and count what they got."""

from __future__ import annotations

import os

from participant_sdk import Instruction, Participant, Result


def participants() -> list[Participant]:
    """ECHO_PREFIX names them, ECHO_COUNT says how many."""
    return [make(f"{os.environ['ECHO_PREFIX']}-{n}") for n in range(int(os.environ["ECHO_COUNT"]))]


def make(name: str) -> Participant:
    participant = Participant(name, {"group": os.environ["ECHO_PREFIX"]})
    seen: dict[str, int] = {}

    @participant.on("echo")
    def echo(instruction: Instruction) -> Result:
        number = str(instruction.config["number"])
        seen[number] = seen.get(number, 0) + 1
        return Result(status=name, metrics={"number": int(number), "times": seen[number]})

    return participant
