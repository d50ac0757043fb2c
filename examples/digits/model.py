"""The model: a neural network with one hidden layer, written out in NumPy.

Decides what the network computes and how one participant improves it on its own examples. Where the examples
come from is data.py's business; how the work of many participants becomes one model, averaging.py's.

    images ──► hidden layer, ReLU ──► output layer ──► softmax ──► a probability for each digit
    (n, 64)        (n, 64)               (n, 10)                        (n, 10)

A model is its parameters: a dict of arrays by name, which is just what an instruction or a result carries.
Any framework will do in its place, if it gives and takes arrays by name.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from examples.digits.data import CLASSES, PIXELS, Examples

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Parameters: TypeAlias = dict[str, Array]

HIDDEN = 64


def initial(seed: int) -> Parameters:
    """An untrained model of float32 arrays; the same one for the same seed.

    Weights are normal with variance 2 / inputs (He et al. 2015, "Delving Deep into Rectifiers", eq. 10), and
    biases are 0. Averaging only works if all participants set out from the same model (McMahan et al. 2017,
    figure 1), so the training script sends it to them.
    """
    rng = np.random.default_rng(seed)

    def weight(inputs: int, outputs: int) -> Array:
        return rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)

    return {
        "hidden.weight": weight(PIXELS, HIDDEN),  # (64, 64)
        "hidden.bias": np.zeros(HIDDEN, np.float32),  # (64,)
        "output.weight": weight(HIDDEN, CLASSES),  # (64, 10)
        "output.bias": np.zeros(CLASSES, np.float32),  # (10,)
    }


def train(
    parameters: Parameters,
    examples: Examples,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rng: np.random.Generator,
) -> Parameters:
    """The model after ``epochs`` passes of stochastic gradient descent over the examples.

    This is ClientUpdate of McMahan et al. 2017, algorithm 1. ``parameters`` stays as it is, and so do dtypes.
    """
    trained = {name: array.copy() for name, array in parameters.items()}
    for _ in range(epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), batch_size):
            batch = examples.take(order[start : start + batch_size])
            _, gradient = loss_and_gradient(trained, batch)
            for name, array in trained.items():
                array -= learning_rate * gradient[name]
    return trained


def loss_and_gradient(parameters: Parameters, examples: Examples) -> tuple[float, Parameters]:
    """The loss, and its gradient: an array for each parameter, of its shape.

    At the output the gradient is "probability minus truth" (Bishop 2006, "Pattern Recognition and Machine
    Learning", eq. 4.109); the chain rule takes it back through the hidden layer (section 5.3).
    """
    hidden, scores = _forward(parameters, examples.images)
    log_probability = _log_softmax(scores)

    at_output = np.exp(log_probability)
    at_output[np.arange(len(examples)), examples.labels] -= 1
    at_output /= len(examples)
    at_hidden = (at_output @ parameters["output.weight"].T) * (hidden > 0)
    return _cross_entropy(log_probability, examples), {
        "hidden.weight": examples.images.T @ at_hidden,
        "hidden.bias": at_hidden.sum(axis=0),
        "output.weight": hidden.T @ at_output,
        "output.bias": at_output.sum(axis=0),
    }


def loss(parameters: Parameters, examples: Examples) -> float:
    """The mean cross-entropy over the examples: 0 where the model is right and sure of it."""
    _, scores = _forward(parameters, examples.images)
    return _cross_entropy(_log_softmax(scores), examples)


def accuracy(parameters: Parameters, examples: Examples) -> float:
    """The share of the examples that the model gets right, from 0 to 1."""
    _, scores = _forward(parameters, examples.images)
    return float((scores.argmax(axis=1) == examples.labels).mean())


def _forward(parameters: Parameters, images: Array) -> tuple[Array, Array]:
    """The activations of the hidden layer, (n, 64), and the scores of the digits, (n, 10)."""
    hidden = np.maximum(images @ parameters["hidden.weight"] + parameters["hidden.bias"], 0)
    scores = hidden @ parameters["output.weight"] + parameters["output.bias"]
    return hidden, scores


def _log_softmax(scores: Array) -> Array:
    """The logarithms of the digits' probabilities, (n, 10)."""
    # The largest score of each image becomes 0. That changes no probability, and keeps exp() from overflow.
    lowered: Array = scores - scores.max(axis=1, keepdims=True)
    log_probability: Array = lowered - np.log(np.exp(lowered).sum(axis=1, keepdims=True))
    return log_probability


def _cross_entropy(log_probability: Array, examples: Examples) -> float:
    return -float(log_probability[np.arange(len(examples)), examples.labels].mean())
