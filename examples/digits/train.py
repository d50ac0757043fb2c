"""The training script: federated averaging (McMahan et al. 2017, algorithm 1) over a running coordinator.

Decides who takes part in each round, and what is shown of it. What happens in a round is rounds.py's
business; what participants do, participant.py's; how it all looks, show.py's.

    python -m examples.digits.train
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from coordinator import Connection, MusterError
from examples.digits import cluster, data, model, plot
from examples.digits.cluster import Trainer
from examples.digits.rounds import BATCH_SIZE, EPOCHS, LEARNING_RATE, Round, run_round
from examples.digits.show import Display, round_of


@click.command(context_settings={"auto_envvar_prefix": "DIGITS", "show_default": True})
@cluster.options
@click.option(
    "--per-round", type=click.IntRange(1), help="How many, chosen at random, take part in a round.  [all]"
)
@click.option(
    "--collect",
    is_flag=True,
    help="An ablation: collect all results in this script and average them here, where the coordinator's "
    "workers would have done it. The model is the same.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "out",
    show_default="out, beside this script",
    help="Directory for the plot.",
)
def main(
    control: str,
    ca: Path | None,
    token_file: Path | None,
    rounds: int,
    participants: int,
    per_round: int | None,
    collect: bool,
    out: Path,
) -> None:
    """Train on handwritten digits that lie with the participants, and stay there.

    Every option can also be set in the environment, such as DIGITS_ROUNDS=5.
    """
    try:
        with Display() as display, cluster.attach(control, ca, token_file, display) as connection:
            cluster.wait_for(participants, connection, display)
            accuracies = train(connection, rounds, per_round, display, collect=collect)
            compare(accuracies, out / "accuracy.png", display)
    except MusterError as error:
        raise click.ClickException(str(error)) from None


def train(
    connection: Connection[Trainer],
    rounds: int,
    per_round: int | None,
    display: Display,
    *,
    collect: bool,
) -> list[float]:
    """Trains a model for that many rounds. Returns its accuracy on the held-out examples after each.

    A round goes ahead with whoever is there.
    """
    _, held_out = data.load()
    parameters = model.initial(data.SEED)
    accuracies = []
    display.begin("rounds", total=rounds)
    for number in range(1, rounds + 1):
        cohort = connection.get_participants(1, per_round, where=cluster.WHERE, timeout=cluster.START_TIMEOUT)
        done = run_round(cohort, number, parameters, collect=collect, progress=display.follow)
        parameters = done.parameters
        accuracies.append(model.accuracy(parameters, held_out))
        display.advance(number, describe(number, rounds, accuracies[-1], done))
        explain(done, display)
    return accuracies


def describe(number: int, rounds: int, accuracy: float, done: Round) -> str:
    answered = f"{done.answered} of {len(done.outcome)} answered"
    line = f"{round_of(number, rounds)}  accuracy {accuracy:.3f}  {answered}"
    return line if done.loss is None else f"{line}  loss {done.loss:.3f}"


def explain(done: Round, display: Display) -> None:
    """Says what became of those who did not answer."""
    if done.answered < len(done.outcome):
        display.say(f"  {done.outcome}")
    for trainer, failure in done.outcome.failures.items():
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
    display.say(f"federated    accuracy {accuracies[-1]:.3f}  each example stayed with its participant")
    display.say(f"pooled data  accuracy {reached:.3f}  the same model, {epochs} epochs over all examples")
    plot.save(picture, accuracies, reached)
    display.say(f"plot         {picture}")


if __name__ == "__main__":
    main()
