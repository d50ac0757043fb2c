"""The device's side: participants that train on their own shard whenever they are asked to.

Decides what a participant does with a "train" instruction, and which participants live in this process. When
they train, with which settings, and what becomes of the result is the training script's business (train.py).

    participant start --app examples.digits.participant:participants --connect 127.0.0.1:50051

A real device runs one participant, with the data that it has. Here each process runs several, and the
environment variable DIGITS_SHARDS says with which shards: "0-4" is the first five; all, if it is not set.
``hospital`` in place of ``participants`` is one participant with all of them.
"""

from __future__ import annotations

import os

import numpy as np

from examples.digits import data, model
from participant_sdk import Instruction, Participant, Result


def participants() -> list[Participant]:
    """One participant for each shard of this process. This is what ``--app`` names."""
    examples, _ = data.load()
    shards = data.split(examples.labels)
    return [make_participant(number, examples.take(shards[number])) for number in shards_of_this_process()]


def hospital() -> Participant:
    """One participant for all shards of this process. Who it is, its certificate or token says."""
    examples, _ = data.load()
    shards, ours = data.split(examples.labels), shards_of_this_process()
    held = np.concatenate([shards[number] for number in ours])
    return make_participant(ours[0], examples.take(held), participant_id="")


def make_participant(number: int, examples: data.Examples, participant_id: str | None = None) -> Participant:
    """A participant that holds these examples. It is named by its number, which also seeds its training,
    unless it is given another id."""
    if participant_id is None:
        participant_id = f"digits-{number:02}"
    participant = Participant(participant_id, {"task": "digits", "examples": str(len(examples))})

    @participant.on("train")
    def train(instruction: Instruction) -> Result:
        config = instruction.config
        parameters = dict(instruction.tensors)
        loss = model.loss(parameters, examples)  # of the model as it came, the same one for all of us
        trained = model.train(
            parameters,
            examples,
            epochs=int(config["epochs"]),
            batch_size=int(config["batch_size"]),
            learning_rate=float(config["learning_rate"]),
            # Another order of the examples in every round, yet the same in every run: results repeat exactly.
            rng=np.random.default_rng([data.SEED, number, int(config["round"])]),
        )
        return Result(tensors=trained, weight=len(examples), metrics={"loss": loss})

    return participant


def shards_of_this_process() -> range:
    """What DIGITS_SHARDS says. Ends the process with a sentence if that makes no sense."""
    text = os.environ.get("DIGITS_SHARDS", f"0-{data.SHARDS - 1}")
    first, _, last = text.partition("-")
    try:
        shards = range(int(first), int(last or first) + 1)
    except ValueError:
        shards = range(0)
    if not shards or shards[-1] >= data.SHARDS:
        raise SystemExit(f"DIGITS_SHARDS is {text!r}; write it like 0-4, from 0 up to {data.SHARDS - 1}")
    return shards
