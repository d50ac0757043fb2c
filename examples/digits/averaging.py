"""Federated averaging: how the work of many participants becomes one model.

Decides the formula, and nothing else: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", algorithm 1, last line of the server's part:

    w(t+1) = sum over participants k of  n(k) / n · w(k, t+1)

where n(k) is how many examples participant k has trained on, and n their sum over those who answered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from examples.digits.model import Parameters


def weighted_mean(models: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
    """The mean of the models, parameter by parameter, in their dtypes.

    ``weights`` holds a weight for each model, most often its number of examples. Raises ValueError unless
    they add up to more than 0, as they can't if there is no model at all.
    """
    total = sum(weights)
    if not total > 0:
        raise ValueError(f"a mean needs weights that add up to more than 0; these add up to {total}")
    mean: Parameters = {}
    for name, first in models[0].items():
        # Summed in double precision: rounding errors of many participants would add up in single.
        summed = np.zeros(first.shape, np.float64)
        for model, weight in zip(models, weights, strict=True):
            summed += weight / total * model[name]
        mean[name] = summed.astype(first.dtype)
    return mean
