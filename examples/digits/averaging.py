"""Federated averaging: how the work of many participants becomes one model.

Decides the formula, and nothing else: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", algorithm 1, last line of the server's part:

    w(t+1) = sum over participants k of  n(k) / n · w(k, t+1)

where n(k) is how many examples participant k has trained on, and n their sum over those who answered.

``cohort.reduce(…, "weighted_mean")`` computes the same in the coordinator's workers, so training doesn't need
this file. It is what that is compared with (``--collect``, and ablation.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from examples.digits.model import Parameters


def weighted_mean(models: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
    """The mean of the models, parameter by parameter, in their dtypes.

    ``weights`` holds a weight for each model, most often its number of examples. Raises ValueError unless
    they add up to more than 0, as they can't if there is no model at all.

    Products and sums are in float64, and rounded once, at the end: in float32 each would add an error as
    large as that, and the model would drift away from the mean, round by round.
    """
    total = sum(weights)
    if not total > 0:
        raise ValueError(f"a mean needs weights that add up to more than 0; these add up to {total}")
    mean: Parameters = {}
    for name, first in models[0].items():
        summed = np.zeros(first.shape, np.float64)
        for model, weight in zip(models, weights, strict=True):
            summed += np.multiply(model[name], weight, dtype=np.float64)  # else float32, as the array is
        mean[name] = (summed / total).astype(first.dtype)
    return mean
