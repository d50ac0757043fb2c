"""The ablation: does it matter where models are averaged?

Trains two models on one cluster, round by round: one averaged in the coordinator's workers, as train.py does,
the other collected and averaged in this script. Decides how alike the two must stay: their accuracies the
same in every round, to 1e-6. Ends with exit code 1 if they aren't.

    python -m examples.digits.ablation
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from coordinator import Cohort, MusterError
from examples.digits import cluster, data, model
from examples.digits.cluster import Trainer
from examples.digits.model import Parameters
from examples.digits.rounds import run_round
from examples.digits.show import Display, round_of
from examples.digits.train import explain

TOLERANCE = 1e-6
"""How far apart the accuracies may be. They are multiples of 1/360: they must be the same."""


@click.command(context_settings={"auto_envvar_prefix": "DIGITS", "show_default": True})
@cluster.options
def main(control: str, ca: Path | None, token_file: Path | None, rounds: int, participants: int) -> None:
    """Train twice on the same participants, averaging in the workers and in this script, and compare."""
    try:
        with Display() as display, cluster.attach(control, ca, token_file, display) as connection:
            cohort = cluster.wait_for(participants, connection, display)
            accuracy, parameters = compare(cohort, rounds, display)
            display.say(f"largest difference: accuracy {accuracy:.2g}, parameters {parameters:.2g}")
    except MusterError as error:
        raise click.ClickException(str(error)) from None
    if accuracy > TOLERANCE:
        raise click.ClickException(f"the accuracies differ by more than {TOLERANCE:g}")


def compare(cohort: Cohort[Trainer], rounds: int, display: Display) -> tuple[float, float]:
    """Trains two models in turn. Returns the largest differences: of the accuracies, and of any parameter.

    Each model goes its own way, so a difference in one round would be carried into all later ones. Raises
    click.ClickException if somebody doesn't answer, for then the two are means of different things.
    """
    _, held_out = data.load()
    reduced = collected = model.initial(data.SEED)
    differences = [(0.0, 0.0)]
    display.begin("trainings", total=2 * rounds)
    for number in range(1, rounds + 1):
        models = []
        for collect, parameters in ((False, reduced), (True, collected)):
            done = run_round(cohort, number, parameters, collect=collect, progress=display.follow)
            display.advance(2 * number - 1 + collect)
            if done.answered < len(cohort):
                explain(done, display)
                raise click.ClickException(f"round {number} can't be compared: not all have answered")
            models.append(done.parameters)
        reduced, collected = models
        accuracies = [model.accuracy(parameters, held_out) for parameters in models]
        differences.append((abs(accuracies[0] - accuracies[1]), largest_difference(reduced, collected)))
        line = f"accuracy {accuracies[0]:.6f} reduced  {accuracies[1]:.6f} collected"
        display.say(f"{round_of(number, rounds)}  {line}")
    accuracy, parameter = np.max(differences, axis=0)
    return float(accuracy), float(parameter)


def largest_difference(one: Parameters, other: Parameters) -> float:
    """Between any parameter of one model and the same one of the other."""
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


if __name__ == "__main__":
    main()
