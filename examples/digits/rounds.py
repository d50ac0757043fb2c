"""One round: the model goes out, the participants train it, and one model comes of what they send back.

Decides what participants are asked to do, and which way their answers become the next model:

- **reduced**, the usual way: the coordinator's workers fold each answer into a weighted mean as it arrives.
  This script gets one model, however many participants there are.
- **collected**, to compare: this script gets all models, and averages them by averaging.py.

Either way, who fails, is lost or is late costs the round its own contribution, and nothing else. If nobody
answers, the model stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from coordinator import Cohort, Outcome, instruction, to_arrays
from examples.digits.averaging import weighted_mean
from examples.digits.cluster import Trainer
from examples.digits.model import Parameters
from manager.api.outcome import Progress, Reduced
from protos.stream_pb2 import ServerMessage

EPOCHS = 5
BATCH_SIZE = 10
LEARNING_RATE = 0.2
"""How a participant trains in one round: E, B and η in the paper."""

ROUND_TIMEOUT = 30.0
"""Seconds after which a round does without those that have not answered."""

Watch: TypeAlias = Callable[[Progress], object]


@dataclass(frozen=True)
class Round:
    """What became of a round.

    ``parameters`` are the model after it. ``loss`` is that of the model before it on the examples of those
    who answered; None if nobody did. ``answered`` counts them, and ``outcome`` tells what became of the rest.
    """

    parameters: Parameters
    loss: float | None
    answered: int
    outcome: Outcome[Trainer] | Reduced[Trainer]


def run_round(
    cohort: Cohort[Trainer],
    number: int,
    parameters: Parameters,
    *,
    collect: bool = False,
    progress: Watch | None = None,
) -> Round:
    """Has the cohort train the model once. ``progress`` is told now and then how many have answered."""
    settings = {"round": number, "epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    message = instruction("train", config=settings, tensors=parameters)
    one_way = _collected if collect else _reduced
    return one_way(cohort, message, progress, parameters)


def _reduced(
    cohort: Cohort[Trainer], message: ServerMessage, progress: Watch | None, before: Parameters
) -> Round:
    reduced = cohort.reduce(message, "weighted_mean", timeout=ROUND_TIMEOUT, progress=progress)
    if not reduced.folded:
        return Round(before, None, 0, reduced)
    return Round(dict(reduced.tensors), float(reduced.metrics["loss"]), len(reduced.folded), reduced)


def _collected(
    cohort: Cohort[Trainer], message: ServerMessage, progress: Watch | None, before: Parameters
) -> Round:
    outcome = cohort.run(message, timeout=ROUND_TIMEOUT, progress=progress)
    # By name, not as they came: a sum of floats depends on its order, if only in the last of 53 bits.
    answers = [outcome.results[trainer].result for trainer in sorted(outcome.results, key=lambda t: t.id)]
    if not answers:
        return Round(before, None, 0, outcome)
    weights = [answer.weight for answer in answers]
    models = [to_arrays(answer.tensors) for answer in answers]
    losses = [answer.metrics["loss"].float_value for answer in answers]
    loss = float(np.average(losses, weights=weights))
    return Round(weighted_mean(models, weights), loss, len(answers), outcome)
