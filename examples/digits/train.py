"""The training script: federated averaging (McMahan et al. 2017, algorithm 1) over a running coordinator.

Decides who takes part in a round, what they are asked to do, and what becomes of their answers. What they do
is participant.py's business; how models are averaged, averaging.py's; how it all looks, show.py's.

    python -m examples.digits.train
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

import coordinator
from coordinator import (
    Connection,
    CoordinatorGone,
    MusterError,
    NotEnoughParticipants,
    Outcome,
    ParticipantProxy,
)
from examples.digits import data, model, plot
from examples.digits.averaging import weighted_mean
from examples.digits.model import Parameters
from examples.digits.show import Display
from protos.messages import instruction
from protos.tensors import to_arrays

EPOCHS = 5
BATCH_SIZE = 10
LEARNING_RATE = 0.2
"""How a participant trains in one round: E, B and η in the paper."""

WHERE = {"task": "digits"}
"""Other participants may be connected to the same coordinator. These are ours."""

START_TIMEOUT = 120.0
"""Seconds to wait for the coordinator, and then for the participants: all may be started at once."""

ROUND_TIMEOUT = 30.0
"""Seconds after which a round does without those that have not answered."""


class Trainer(ParticipantProxy):
    """A participant, as this script sees it."""

    @property
    def examples(self) -> int:
        """How many it holds, as it said when it connected."""
        return int(self.attributes["examples"])


@click.command(context_settings={"auto_envvar_prefix": "DIGITS", "show_default": True})
@click.option(
    "--connect",
    metavar="HOST:PORT",
    default="127.0.0.1:50050",
    envvar="MUSTER_CONTROL",
    help="The coordinator's control address.",
)
@click.option("--rounds", type=click.IntRange(1), default=20, help="How many rounds of training.")
@click.option(
    "--participants", type=click.IntRange(1), default=data.SHARDS, help="How many to wait for before round 1."
)
@click.option(
    "--per-round", type=click.IntRange(1), help="How many, chosen at random, take part in a round.  [all]"
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "out",
    show_default="out, beside this script",
    help="Directory for the plot.",
)
def main(connect: str, rounds: int, participants: int, per_round: int | None, out: Path) -> None:
    """Train on handwritten digits that lie with the participants, and stay there.

    Every option can also be set in the environment, such as DIGITS_ROUNDS=5.
    """
    try:
        with Display() as display, attach(connect, display) as connection:
            wait_for(participants, connection, display)
            accuracies = train(connection, rounds, per_round, display)
            compare(accuracies, out / "accuracy.png", display)
    except MusterError as error:
        raise click.ClickException(str(error)) from None


def attach(address: str, display: Display) -> Connection[Trainer]:
    """Attaches to the coordinator, which may still be on its way up."""
    deadline = time.monotonic() + START_TIMEOUT
    display.begin("coordinator", total=1)
    display.say(f"attaching to the coordinator at {address}")
    while True:
        try:
            return coordinator.connect(address, Trainer)
        except CoordinatorGone:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def wait_for(count: int, connection: Connection[Trainer], display: Display) -> None:
    """Waits until that many participants are there, and shows how many are."""
    deadline = time.monotonic() + START_TIMEOUT
    display.begin("participants", total=count)
    there = -1
    while True:
        try:
            cohort = connection.get_participants(count, where=WHERE, timeout=0.5)
            break
        except NotEnoughParticipants as shortage:
            if time.monotonic() > deadline:
                raise click.ClickException(f"only {shortage.matching} of {count} participants came") from None
            if shortage.matching != there:
                there = shortage.matching
                display.advance(there, f"{there} of {count} participants are here")
    examples = sum(participant.examples for participant in cohort)
    workers = len({participant.worker for participant in cohort})
    display.advance(
        count, f"{len(cohort)} participants are here, on {workers} workers, with {examples} examples"
    )


def train(
    connection: Connection[Trainer], rounds: int, per_round: int | None, display: Display
) -> list[float]:
    """Trains a model for that many rounds. Returns its accuracy on the held-out examples after each."""
    _, held_out = data.load()
    parameters = model.initial(data.SEED)
    accuracies = []
    display.begin("rounds", total=rounds)
    for number in range(1, rounds + 1):
        parameters, outcome = run_round(connection, number, parameters, per_round)
        accuracies.append(model.accuracy(parameters, held_out))
        answered = f"{len(outcome.results)} of {len(outcome)} answered"
        display.advance(number, f"round {number}  accuracy {accuracies[-1]:.3f}  {answered}")
        explain(outcome, display)
    return accuracies


def run_round(
    connection: Connection[Trainer], number: int, parameters: Parameters, per_round: int | None
) -> tuple[Parameters, Outcome[Trainer]]:
    """One round: send the model out, let the participants train it, average what comes back.

    Who fails, is lost or is late costs the round its own contribution, and nothing else. A round goes ahead
    with whoever is there; if nobody answers, the model stays as it was.
    """
    settings = {"round": number, "epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    cohort = connection.get_participants(1, per_round, where=WHERE, timeout=START_TIMEOUT)
    outcome = cohort.run(instruction("train", config=settings, tensors=parameters), timeout=ROUND_TIMEOUT)

    # By name, not as they came: a sum of floats depends on its order, and every run should end the same.
    answers = [outcome.results[trainer].result for trainer in sorted(outcome.results, key=lambda t: t.id)]
    if answers:
        models = [to_arrays(answer.tensors) for answer in answers]
        parameters = weighted_mean(models, [answer.weight for answer in answers])
    return parameters, outcome


def explain(outcome: Outcome[Trainer], display: Display) -> None:
    """Says what became of those who did not answer."""
    if len(outcome.results) < len(outcome):
        display.say(f"  {outcome}")
    for trainer, failure in outcome.failures.items():
        display.say(f"  {trainer.id} failed: {failure.text}")


def compare(accuracies: list[float], picture: Path, display: Display) -> None:
    """Shows how far the federation got, next to training on all examples in one place, and plots both."""
    epochs = len(accuracies) * EPOCHS
    examples, held_out = data.load()
    pooled = model.train(
        model.initial(data.SEED),
        examples,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        rng=np.random.default_rng(data.SEED),
    )
    reached = model.accuracy(pooled, held_out)
    plot.save(picture, accuracies, reached)
    display.say(f"federated    accuracy {accuracies[-1]:.3f}  each example stayed with its participant")
    display.say(f"pooled data  accuracy {reached:.3f}  the same model, {epochs} epochs over all examples")
    display.say(f"plot         {picture}")


if __name__ == "__main__":
    main()
