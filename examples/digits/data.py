"""The data: handwritten digits, and who holds which of them.

Decides what is held out for testing, and how the rest is split, unevenly, into one shard per participant.
What is learnt from them is model.py's business.

The digits are the 1,797 images of 8 × 8 pixels that come with scikit-learn (the test set of "Optical
Recognition of Handwritten Digits", Alpaydın and Kaynak, UCI, 1998), so nothing is downloaded.

In a real federation nobody could write this file: each participant has data of its own, which nobody else
ever sees. Here every process loads the same digits, and each participant looks at its own shard alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PIXELS = 64
CLASSES = 10
SHARDS = 20
HELD_OUT = 360

ALPHA = 0.3
"""How even the split is. With a large alpha all shards look alike; with a small one each holds many examples
of few digits."""

SEED = 2017
SMALLEST_SHARD = 10
MOST_DEALS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images, and which digit each of them shows.

    ``images``: float32 of shape (n, 64), the pixels row by row, from 0 (paper) to 1 (ink).
    ``labels``: int64 of shape (n,), from 0 to 9.
    """

    images: npt.NDArray[np.floating[Any]]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> Examples:
        return Examples(self.images[indices], self.labels[indices])


def load() -> tuple[Examples, Examples]:
    """The examples to train on (1,437), and those held out for testing (360): every time the same."""
    digits = np.loadtxt(_digits(), delimiter=",", dtype=np.float32)  # 64 pixels from 0 to 16, and the label
    examples = Examples(digits[:, :PIXELS] / 16, digits[:, PIXELS].astype(np.int64))
    shuffled = np.random.default_rng(SEED).permutation(len(examples))
    return examples.take(shuffled[HELD_OUT:]), examples.take(shuffled[:HELD_OUT])


def _digits() -> Path:
    """Where scikit-learn keeps what its ``load_digits`` reads. To import that takes a second.

    Ends the process, which is of no use without digits, with a sentence if it isn't installed.
    """
    try:
        files = metadata.files("scikit-learn") or ()
    except metadata.PackageNotFoundError:
        raise SystemExit("the digits are those of scikit-learn: pip install '.[examples]'") from None
    (found,) = (file for file in files if file.name == "digits.csv.gz")
    return Path(found.locate())


def split(
    labels: npt.NDArray[np.int64], shards: int = SHARDS, alpha: float = ALPHA, seed: int = SEED
) -> list[npt.NDArray[np.int64]]:
    """Deals all examples out to the shards, each to one of them. Returns the indices that each shard gets.

    Each digit is dealt out in proportions drawn from a symmetric Dirichlet distribution with parameter
    ``alpha``. The shards then differ in size as well as in their mix of digits. The idea of a Dirichlet over
    labels is that of Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", who draw a mix of labels for each of several equal shards; drawing shares for each
    label, as here, is due to Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning".

    The deal is repeated until no shard has fewer than SMALLEST_SHARD examples. The same seed gives the same
    split. Raises ValueError if MOST_DEALS of them don't lead there.
    """
    rng = np.random.default_rng(seed)
    for _ in range(MOST_DEALS):
        dealt = _deal(labels, shards, alpha, rng)
        if min(map(len, dealt)) >= SMALLEST_SHARD:
            return dealt
    raise ValueError(
        f"{len(labels)} examples, dealt out to {shards} shards with alpha {alpha}, always leave some shard "
        f"with fewer than {SMALLEST_SHARD}; take fewer shards, or a larger alpha"
    )


def _deal(
    labels: npt.NDArray[np.int64], shards: int, alpha: float, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    pieces: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(shards)]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(shards, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(indices)).astype(np.int64)
        for of_shard, piece in zip(pieces, np.split(indices, cuts), strict=True):
            of_shard.append(piece)
    return [np.concatenate(of_shard) for of_shard in pieces]
